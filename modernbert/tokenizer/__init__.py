"""Tokenizers: text to token ids and back, and the training of new vocabularies."""
