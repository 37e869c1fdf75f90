"""Pretraining and fine-tuning: losses, optimizers, schedules, checkpoints and the training loop."""
