"""Labelled rows and judged collections to tuned models, one at a time or in sweeps."""
