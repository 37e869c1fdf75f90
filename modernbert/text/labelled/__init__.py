"""Labelled rows -> examples to learn from: what fine-tuning reads."""
