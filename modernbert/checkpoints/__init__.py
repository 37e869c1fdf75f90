"""Model folders and checkpoints of every format that is read or written."""
