"""Links: what a target tower does with the states of a source tower."""
