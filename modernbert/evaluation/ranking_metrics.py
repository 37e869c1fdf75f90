"""Ranking metrics as trec_eval defines them: nDCG@k, MRR@k and recall@k, between 0 and 1.

A query without a relevant document has no score and is excluded from means.
"""

import math
from collections.abc import Callable, Mapping, Sequence

__all__ = ["mean_over_queries", "mrr_at", "ndcg_at", "rank_ids", "recall_at"]

Judgments = Mapping[str, int]


def rank_ids(scores: Mapping[str, float]) -> list[str]:
    """Sort ids by descending score, ties by descending id, as in trec_eval.

    >>> rank_ids({"a": 1.0, "b": 2.0, "c": 1.0})
    ['b', 'c', 'a']
    """
    return sorted(scores, key=lambda name: (scores[name], name), reverse=True)


def ndcg_at(k: int, ranked: Sequence[str], judgments: Judgments) -> float:
    """Return nDCG@k with linear gains: the discounted gain of the first k over that of the ideal order.

    >>> round(ndcg_at(10, ["x", "good", "best"], {"best": 2, "good": 1}), 4)
    0.6199
    """
    gains = [max(judgments.get(name, 0), 0) for name in ranked[:k]]
    best = sorted((grade for grade in judgments.values() if grade > 0), reverse=True)[:k]
    return _discounted(gains) / _discounted(best)


def mrr_at(k: int, ranked: Sequence[str], judgments: Judgments) -> float:
    """Return the reciprocal rank of the first relevant id, or 0 if it is not among the first k.

    >>> mrr_at(10, ["x", "good", "best"], {"best": 2, "good": 1})
    0.5
    """
    hits = (1 / rank for rank, name in enumerate(ranked[:k], 1) if judgments.get(name, 0) > 0)
    return next(hits, 0.0)


def recall_at(k: int, ranked: Sequence[str], judgments: Judgments) -> float:
    """Return the share of the relevant ids that are among the first k.

    >>> recall_at(2, ["x", "good", "best"], {"best": 2, "good": 1})
    0.5
    """
    relevant = {name for name, grade in judgments.items() if grade > 0}
    return len(relevant.intersection(ranked[:k])) / len(relevant)


def mean_over_queries(
    metric: Callable[[int, Sequence[str], Judgments], float],
    k: int,
    rankings: Mapping[str, Sequence[str]],
    judgments: Mapping[str, Judgments],
) -> float:
    """Average a metric over the queries that have a relevant document; a query without a ranking counts as 0."""
    asked = [query for query, grades in judgments.items() if any(grade > 0 for grade in grades.values())]
    if not asked:
        return math.nan
    return sum(metric(k, rankings.get(query, ()), judgments[query]) for query in asked) / len(asked)


def _discounted(gains: Sequence[int]) -> float:
    return math.fsum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))
