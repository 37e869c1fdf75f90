"""Fault injection for training runs: kills, disk faults, bad losses. Run it with `python -m tests.faults`."""
