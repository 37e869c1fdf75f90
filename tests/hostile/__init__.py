"""Hostile model folders; `python -m tests.hostile` loads each of them."""
