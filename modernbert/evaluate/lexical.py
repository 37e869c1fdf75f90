"""BM25, the lexical ranking that every table of vectors is shown beside.

In: queries and passages as text. Out: a score for each pair. The words are lower-cased alphanumeric runs, no
stemming, no stop words; identifiers are split into their parts.
"""

import logging
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from modernbert.errors import InputError

__all__ = ["bm25_scores", "words_of"]

WORD = re.compile(r"[^\W_]+")
CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def words_of(text: str) -> list[str]:
    """Split a text into lower-cased words, and identifiers into their parts.

    >>> words_of("getHTTPResponse(max_len=3, utf8=True)")
    ['get', 'http', 'response', 'max', 'len', '3', 'utf8', 'true']
    """
    return [part.lower() for word in WORD.findall(text) for part in CAMEL.split(word)]


def bm25_scores(
    queries: Sequence[str], passages: Sequence[str], *, k1: float = 0.9, b: float = 0.4
) -> Float32[np.ndarray, "Q P"]:
    """Score every passage for every query by BM25 as Lucene computes it.

    Raises: InputError if bm25s is not installed, or there is no passage with a word.
    """
    try:
        import bm25s
    except ImportError:
        raise InputError("BM25 needs bm25s: pip install 'modernbert[demo]'") from None
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    corpus = [words_of(passage) for passage in passages]
    if not any(corpus):
        raise InputError(f"BM25 needs passages with words, found none in {len(corpus)}")
    index = bm25s.BM25(k1=k1, b=b, method="lucene")
    index.index(corpus, show_progress=False)
    scores = np.zeros((len(queries), len(passages)), dtype=np.float32)
    for row, query in enumerate(queries):
        known = index.get_tokens_ids(words_of(query))
        if known:
            scores[row] = index.get_scores_from_ids(known)
    return scores
