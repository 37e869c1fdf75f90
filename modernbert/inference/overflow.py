"""Token ids of texts and pairs that fit a model: texts over its length limit are an error, cut, or split."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from modernbert.data.words import merge_by_token, split_words
from modernbert.errors import InputError
from modernbert.tokenizer.input_templates import EncodedText
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = [
    "CUT",
    "CUT_OR_SPLIT",
    "OVERFLOWS",
    "Text",
    "apply_overflow",
    "average_chunks",
    "check_overflow",
    "encode_texts",
    "encode_words",
    "too_long",
]

Text = str | tuple[str, str]
"""A text, or a pair of texts."""

OVERFLOWS = ("error", "truncate", "split-mean")
# The fixes that errors name.
CUT = 'pass `overflow="truncate"` to cut it'
CUT_OR_SPLIT = f'{CUT}, or `overflow="split-mean"` to average over its chunks'
# Texts tokenized at a time, so that the ids of millions are never in memory.
_TEXTS_AT_A_TIME = 4_096


def check_overflow(overflow: str, *, mean_of: str | None = None) -> None:
    """Check the name of a policy; `mean_of` names outputs that cannot be averaged over chunks.

    Raises: InputError for an unknown name, or `split-mean` with such outputs.
    """
    if overflow not in OVERFLOWS:
        raise InputError(f"overflow: found {overflow!r}, expected {', '.join(OVERFLOWS)}")
    if overflow == "split-mean" and mean_of is not None:
        raise InputError(f"overflow: found split-mean, expected error or truncate: {mean_of}")


def apply_overflow(
    documents: Iterable[np.ndarray], tokenizer: Tokenizer, max_length: int, overflow: str, fix: str = CUT_OR_SPLIT
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number of each text and its ids: whole, cut at `max_length`, or in chunks of about equal size.

    Raises: InputError naming a text without tokens, or with the policy `error` one that is too long, and the fix.
    """
    for number, ids in enumerate(documents):
        if not len(ids):  # an empty text, if the tokenizer adds no special tokens
            raise InputError(f"text {number}: has no tokens, expected at least one")
        if len(ids) <= max_length:
            yield number, ids
        elif overflow == "truncate":
            yield number, tokenizer.truncate(ids, max_length)
        elif overflow == "split-mean":
            for chunk in tokenizer.split(ids, max_length):
                yield number, chunk
        else:
            raise InputError(f"text {number}: {too_long(len(ids), max_length, fix)}")


def encode_texts(
    tokenizer: Tokenizer,
    texts: Iterable[Text],
    max_length: int,
    overflow: str,
    *,
    prompt: str = "",
    fix: str = CUT_OR_SPLIT,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number of each text or pair and its ids, see `apply_overflow`; a pair is cut in its longer text.

    Raises: InputError naming the text that cannot be encoded, or for texts mixed with pairs.
    """

    def whole() -> Iterator[np.ndarray]:
        stream, first = iter(texts), 0
        while some := list(islice(stream, _TEXTS_AT_A_TIME)):
            single = [prompt + each for each in some if isinstance(each, str)]
            pairs: list[Any] = [each for each in some if not isinstance(each, str)]
            if single and pairs:
                raise InputError("texts: found texts and pairs of texts, expected one or the other")
            yield from tokenizer.encode(single, first=first)
            yield from tokenizer.encode_pairs(pairs, max_length if overflow == "truncate" else None)
            first += len(some)

    return apply_overflow(whole(), tokenizer, max_length, overflow, fix)


def encode_words(
    tokenizer: Tokenizer, texts: Sequence[str], max_length: int, overflow: str
) -> list[tuple[list[tuple[int, int]], EncodedText]]:
    """Return where the words of each text are, and its ids with the first token of each word that is not cut off.

    Words are split by `split_words`; letters of scripts without blanks that share a token are one word.

    Raises: InputError for a text that is too long, unless it is to be cut.
    """
    words = [split_words(text) for text in texts]
    encoded = tokenizer.encode_words(texts, [[start for start, _ in ranges] for ranges in words])
    kept = apply_overflow((ids for ids, _ in encoded), tokenizer, max_length, overflow, CUT)
    found = []
    room = max_length - tokenizer.num_special[1]
    for text, ranges, (_, ids), (whole, places) in zip(texts, words, kept, encoded, strict=True):
        ranges, first, _ = merge_by_token(text, ranges, places)
        found.append((ranges, EncodedText(ids, first if len(ids) == len(whole) else first[first < room])))
    return found


def too_long(num_tokens: int, max_length: int, fix: str) -> str:
    """Return the message that a text has too many tokens."""
    return f"has {num_tokens:,} tokens, expected at most {max_length:,}; {fix}"


def average_chunks(vectors: np.ndarray, numbers: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the mean vector of each text's chunks, weighted by their tokens.

    >>> average_chunks(np.array([[1.0], [2.0], [5.0]]), np.array([0, 1, 1]), np.array([4, 2, 1])).ravel().tolist()
    [1.0, 3.0]
    """
    if len(vectors) == 0 or numbers[-1] + 1 == len(vectors):
        return vectors
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    weighted = np.add.reduceat(vectors * lengths[:, None], starts, axis=0)
    return (weighted / np.add.reduceat(lengths, starts)[:, None]).astype(vectors.dtype)
