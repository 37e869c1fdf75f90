"""Fine-tuning tasks: rows to examples, and answers."""
