"""Model folders that nobody should load: `python -m tests.hostile` tries every one."""
