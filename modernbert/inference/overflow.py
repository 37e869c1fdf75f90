"""What becomes of a text that is longer than the model takes: an error, a cut, or parts that are averaged.

In: token ids of texts. Out: documents that fit, each with the number of its text. A file of its own because vectors,
labels and the server must agree about it, and drop nothing in silence.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from modernbert.errors import InputError
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["CUT_ALONE", "CUT_OR_SPLIT", "OVERFLOWS", "check_overflow", "apply_overflow", "mean_of_parts", "too_long"]

OVERFLOWS = ("error", "truncate", "split-mean")
# What there is to be done about a text that is too long.
CUT_OR_SPLIT, CUT_ALONE = "overflow may be truncate or split-mean", "overflow may be truncate"


def check_overflow(overflow: str) -> None:
    """Check a name.

    Raises: InputError for an unknown one.
    """
    if overflow not in OVERFLOWS:
        raise InputError(f"overflow: found {overflow!r}, expected {', '.join(OVERFLOWS)}")


def apply_overflow(
    documents: Iterable[np.ndarray],
    tokenizer: Tokenizer,
    longest: int,
    overflow: str,
    remedy: str = CUT_OR_SPLIT,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each text's number and its ids: whole, cut at `longest`, or part after part of like size.

    Raises: InputError naming a text without tokens, or the text that is too long and the remedy, if it is to be an
    error.
    """
    for number, ids in enumerate(documents):
        if not len(ids):  # of an empty text, where the tokenizer adds no special tokens
            raise InputError(f"text {number}: has no tokens, expected at least one")
        if len(ids) <= longest:
            yield number, ids
        elif overflow == "truncate":
            yield number, tokenizer.cut(ids, longest)
        elif overflow == "split-mean":
            for part in tokenizer.split(ids, longest):
                yield number, part
        else:
            raise InputError(f"text {number}: {too_long(len(ids), longest, remedy)}")


def too_long(num_tokens: int, longest: int, remedy: str) -> str:
    """Say how long a text is, how long it may be, and what can be done about it."""
    return f"has {num_tokens:,} tokens, expected at most {longest:,}; {remedy}"


def mean_of_parts(vectors: np.ndarray, numbers: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return one vector a text: the mean of those of its parts, each weighted by its tokens.

    >>> mean_of_parts(np.array([[1.0], [2.0], [5.0]]), np.array([0, 1, 1]), np.array([4, 2, 1])).ravel().tolist()
    [1.0, 3.0]
    """
    if len(vectors) == 0 or numbers[-1] + 1 == len(vectors):
        return vectors
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    weighted = np.add.reduceat(vectors * lengths[:, None], starts, axis=0)
    return (weighted / np.add.reduceat(lengths, starts)[:, None]).astype(vectors.dtype)
