"""Models and checkpoints of other libraries: read as data, and ours inside theirs."""
