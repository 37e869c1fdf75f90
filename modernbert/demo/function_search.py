"""Function search: rank functions for a docstring, by the vectors of a model or by BM25."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modernbert.demo.pairs import Pair
from modernbert.evaluation.bm25 import bm25_scores
from modernbert.evaluation.ranking_metrics import mrr_of_ranks, ndcg_of_ranks, ranks_of
from modernbert.inference.modernbert import ModernBert

__all__ = ["Ranking", "rank_by_bm25", "rank_by_vectors"]


@dataclass(frozen=True)
class Ranking:
    """The rank of the right function for each query, the first result, and scores."""

    ranks: list[int]
    first: list[int]
    ndcg: float
    mrr: float


def rank_by_vectors(bert: ModernBert, pairs: Sequence[Pair]) -> Ranking:
    """Rank all functions for each docstring by cosine similarity."""
    queries = bert.embed([pair.query for pair in pairs])
    passages = bert.embed([pair.passage for pair in pairs], overflow="truncate")
    return _ranking(queries @ passages.T)


def rank_by_bm25(pairs: Sequence[Pair]) -> Ranking:
    """Rank all functions for each docstring by BM25."""
    return _ranking(bm25_scores([pair.query for pair in pairs], [pair.passage for pair in pairs]))


def _ranking(scores: np.ndarray) -> Ranking:
    ranks = ranks_of(scores, np.arange(len(scores)))
    return Ranking(
        ranks=ranks.tolist(),
        first=scores.argmax(axis=1).tolist(),
        ndcg=ndcg_of_ranks(10, ranks),
        mrr=mrr_of_ranks(10, ranks),
    )
