"""ModernBERT encoders, unpadded from text to vectors."""
