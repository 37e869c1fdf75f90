"""Weights to scores: metrics, and the lexical ranking they are compared with."""
