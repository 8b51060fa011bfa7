"""The parts of `benchmarks/gpu.py`, each a function that yields rows."""
