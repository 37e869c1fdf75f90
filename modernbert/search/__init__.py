"""Search in files: passages, and a table of their embeddings."""
