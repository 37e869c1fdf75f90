"""Benchmarks of this package and of other libraries, run as `python -m benchmarks.NAME`."""
