"""The model: config, encoder, heads, initialization, surgery."""
