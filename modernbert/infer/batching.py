"""Texts of any number and length -> batches of a bounded number of tokens.

In: token ids of documents, in order. Out: batches in the same order. Nothing is sorted or padded: without padding, a
short text next to a long one costs nothing.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from modernbert.ragged import Batch, within

__all__ = ["batches"]


def batches(documents: Iterable[np.ndarray], budget_tokens: int) -> Iterator[Batch]:
    """Fill each batch up to the budget; a document longer than the budget makes a batch of its own.

    >>> [batch.layout.lengths for batch in batches([np.ones(3), np.ones(2), np.ones(9)], 5)]
    [(3, 2), (9,)]
    """
    return (Batch.from_documents(group) for group in within(documents, budget_tokens, len))
