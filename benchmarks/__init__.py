"""Benchmarks of the parts: `python -m benchmarks` lists them."""
