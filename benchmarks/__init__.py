"""Benchmarks of this package and of others on the same work."""
