"""Texts -> answers: the `ModernBert` object and its token-budget batches."""
