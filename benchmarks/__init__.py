"""Timings against other libraries, in one run: `python -m benchmarks.augment`."""
