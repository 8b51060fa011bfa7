"""Checks that a tower or link of another package keeps its protocol; `zippkit.testing` is their face."""
