"""Batches -> hidden states: config, attention, encoder, heads, initialisation, published folders."""
