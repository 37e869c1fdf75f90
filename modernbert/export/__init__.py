"""Weights -> files for other runtimes."""
