"""Metrics, and the evaluation of retrieval."""
