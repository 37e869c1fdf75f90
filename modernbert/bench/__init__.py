"""Claims -> ratios: what a model should cost on a device, and what it does."""
