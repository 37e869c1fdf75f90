"""BM25, the lexical baseline of retrieval evaluation.

Words are lower-cased alphanumeric runs, without stemming or stop words. Identifiers are split into their parts. Scripts
without spaces between words (Chinese, Japanese, Thai, ...) are split into overlapping character bigrams.

Source: Lucene's CJKAnalyzer for the bigrams.
"""

import logging
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64

from modernbert.data.words import is_unspaced_letter, split_words
from modernbert.errors import InputError
from modernbert.extras import missing

__all__ = ["bm25_best", "words_of"]

WORD = re.compile(r"[^\W_]+")
CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def words_of(text: str) -> list[str]:
    """Split a text into lower-cased words, and identifiers into their parts.

    >>> words_of("getHTTPResponse(max_len=3, utf8=True)")
    ['get', 'http', 'response', 'max', 'len', '3', 'utf8', 'true']
    >>> words_of("GDPは東京都")
    ['gdp', 'は東', '東京', '京都']
    """
    pairs: list[str] = []
    if not text.isascii() and any(map(is_unspaced_letter, set(text))):
        letters = [(a, b) for a, b in split_words(text) if is_unspaced_letter(text[a])]
        rest, last = [], 0
        runs: list[list[str]] = []
        for a, b in letters:
            if a != last or not runs:
                runs.append([])
                rest.append(text[last:a])
            runs[-1].append(text[a:b])
            last = b
        for run in runs:
            pairs += [x + y for x, y in zip(run, run[1:], strict=False)] or run
        text = " ".join([*rest, text[last:]])
    return [part.lower() for word in WORD.findall(text) for part in CAMEL.split(word)] + pairs


def bm25_best(
    queries: Sequence[str], passages: Sequence[str], k: int, *, k1: float = 0.9, b: float = 0.4
) -> tuple[Float32[np.ndarray, "Q k"], Int64[np.ndarray, "Q k"]]:
    """Rank passages by BM25 as Lucene computes it; return the scores and indices of each query's `k` best, best first.

    Ties are in the order of the passages. One query is scored at a time, so memory does not grow with all pairs.

    Raises:
        InputError: bm25s is not installed, or no passage has a word.
    """
    try:
        import bm25s
    except ImportError:
        raise missing("BM25", "bm25s") from None
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    corpus = [words_of(passage) for passage in passages]
    if not any(corpus):
        raise InputError(f"BM25 needs passages with words, found none in {len(corpus)}")
    index = bm25s.BM25(k1=k1, b=b, method="lucene")
    index.index(corpus, show_progress=False)
    k = min(k, len(passages))
    scores, numbers = np.zeros((len(queries), k), np.float32), np.zeros((len(queries), k), np.int64)
    for row, query in enumerate(queries):
        known = index.get_tokens_ids(words_of(query))
        of_query = index.get_scores_from_ids(known) if known else np.zeros(len(passages), np.float32)
        threshold = np.partition(of_query, -k)[-k]
        good = np.flatnonzero(of_query >= threshold)
        numbers[row] = good[np.argsort(-of_query[good], kind="stable")[:k]]
        scores[row] = of_query[numbers[row]]
    return scores, numbers
