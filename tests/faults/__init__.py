"""Runs that are killed, damaged and fed what cannot be learned from: `python -m tests.faults`."""
