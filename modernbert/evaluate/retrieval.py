"""How well the documents of a collection are ranked for its queries.

In: a collection, and a model or words to rank by. Out: nDCG@10, MRR@10, recall@100. Search is exact.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from modernbert.evaluate.collection import Collection
from modernbert.evaluate.lexical import bm25_scores
from modernbert.evaluate.metrics import mean_over_queries, mrr_at, ndcg_at, rank_ids, recall_at
from modernbert.infer.pipeline import ModernBert
from modernbert.infer.search import search_tokens, search_vectors
from modernbert.ragged import within

__all__ = ["Rank", "Retrieval", "hard_negatives", "rank_by_model", "rank_by_words", "score_collection"]

_DEPTH = 100
# Documents are embedded so many characters at a time, and their vectors let go once they are scored.
_BLOCK_CHARACTERS = 2**22


@dataclass(frozen=True)
class Retrieval:
    """Hold the scores of one system on one collection, how many texts it cut, and the seconds it took."""

    ndcg_10: float
    mrr_10: float
    recall_100: float
    num_cut: int
    seconds: float


Rank = Callable[[Collection, int], tuple[np.ndarray, np.ndarray, int]]
"""collection, k -> scores and numbers of each query's k best documents [Q, k], and how many texts were cut"""


def score_collection(collection: Collection, rank: Rank) -> Retrieval:
    """Return means over the queries that have a relevant document."""
    begun = time.perf_counter()
    documents = list(collection.documents)
    scores, numbers, num_cut = rank(collection, _DEPTH)
    rankings = {
        query: rank_ids({documents[n]: float(score) for n, score in zip(row, found, strict=True)})
        for query, row, found in zip(collection.queries, numbers.tolist(), scores.tolist(), strict=True)
    }
    seconds = time.perf_counter() - begun
    judgments = collection.judgments
    return Retrieval(
        mean_over_queries(ndcg_at, 10, rankings, judgments), mean_over_queries(mrr_at, 10, rankings, judgments),
        mean_over_queries(recall_at, _DEPTH, rankings, judgments), num_cut, seconds,
    )  # fmt: skip


def rank_by_model(bert: ModernBert) -> Rank:
    """Rank by the vectors of a model, one a text or one a token, as it was tuned; documents go through in blocks."""

    def rank(collection: Collection, k: int) -> tuple[np.ndarray, np.ndarray, int]:
        queries = bert.embed_queries(list(collection.queries.values()))
        num_cut = queries.num_cut

        def blocks() -> Iterator[np.ndarray | list[np.ndarray]]:
            nonlocal num_cut
            for texts in within(collection.documents.values(), _BLOCK_CHARACTERS, len):
                found = bert.embed_documents(texts)
                num_cut += found.num_cut
                yield found.vectors

        if bert.is_late:
            scores, numbers = search_tokens(queries.vectors, chain.from_iterable(blocks()), k)  # type: ignore[arg-type]
        else:
            scores, numbers = search_vectors(queries.vectors, blocks(), k)  # type: ignore[arg-type]
        return scores, numbers, num_cut

    return rank


def rank_by_words(collection: Collection, k: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Rank by BM25."""
    scores = bm25_scores(list(collection.queries.values()), list(collection.documents.values()))
    numbers = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, numbers, axis=1), numbers, 0


def hard_negatives(
    queries: Sequence[str], answers: Sequence[frozenset[str]], passages: Sequence[str], number: int
) -> list[list[str]]:
    """Return for each query the passages that share most words with it and do not answer it.

    Raises: InputError if bm25s is not installed.
    """
    if number == 0:
        return [[] for _ in queries]
    found: dict[str, list[str]] = {}
    fitting: Mapping[str, frozenset[str]] = dict(zip(queries, answers, strict=True))
    distinct = list(fitting)
    for query, row in zip(distinct, bm25_scores(distinct, passages), strict=True):
        best = np.argsort(-row, kind="stable")[: number + len(fitting[query])]
        found[query] = [passages[n] for n in best if passages[n] not in fitting[query]][:number]
    return [found[query] for query in queries]
