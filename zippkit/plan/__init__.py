"""Where links act, and in which order everything runs; no torch."""
