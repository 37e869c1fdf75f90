"""Results of `ModernBert`: vectors, guesses for masks, ranked documents."""

from dataclasses import dataclass

import numpy as np

__all__ = ["Guess", "Ranked", "TextVectors"]


@dataclass(frozen=True)
class Guess:
    """A token proposed for a mask, and its probability."""

    text: str
    token: int
    probability: float


@dataclass(frozen=True)
class Ranked:
    """A ranked document: its number in the list of documents, and its score."""

    index: int
    score: float


@dataclass(frozen=True)
class TextVectors:
    """The vectors of texts, float32 [N, E], or with late interaction a list of [tokens, E]; and how many were cut."""

    vectors: np.ndarray | list[np.ndarray]
    num_truncated: int
