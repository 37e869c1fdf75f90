"""Texts to embeddings, labels, spans, scores and filled masks."""
