"""Hidden states -> weights: losses, optimizer, schedules, checkpoints, the training loop."""
