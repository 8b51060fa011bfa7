"""zippkit's own decoder, for any discrete tokens."""
