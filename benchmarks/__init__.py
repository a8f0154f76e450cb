"""Benchmarks of parts of the program: `python -m benchmarks` lists them."""
