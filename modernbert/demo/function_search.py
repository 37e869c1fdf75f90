"""Function search: find the function of a docstring among all functions, by a model or by BM25."""

from collections.abc import Sequence
from dataclasses import dataclass

from modernbert.data.beir import Collection, Rank
from modernbert.demo.pairs import Pair
from modernbert.evaluation.ranking_metrics import mean_over_queries, mrr_at, ndcg_at

__all__ = ["Ranking", "search_functions"]


@dataclass(frozen=True)
class Ranking:
    """The rank of the right function and the first result for each query, and the mean scores."""

    ranks: list[int]
    first: list[int]
    ndcg: float
    mrr: float


def search_functions(pairs: Sequence[Pair], rank: Rank) -> Ranking:
    """Rank all functions for each docstring by a ranking function, such as `rank_by_model(bert)`."""
    ids = [str(number) for number in range(len(pairs))]
    judgments = {name: {name: 1} for name in ids}
    documents = {name: pair.passage for name, pair in zip(ids, pairs, strict=True)}
    queries = {name: pair.query for name, pair in zip(ids, pairs, strict=True)}
    _, numbers, _ = rank(Collection("functions", documents, queries, judgments, 0, 0), len(pairs))
    rankings = {name: [ids[number] for number in row] for name, row in zip(ids, numbers.tolist(), strict=True)}
    return Ranking(
        ranks=[ranking.index(name) + 1 for name, ranking in rankings.items()],
        first=numbers[:, 0].tolist(),
        ndcg=mean_over_queries(ndcg_at, 10, rankings, judgments),
        mrr=mean_over_queries(mrr_at, 10, rankings, judgments),
    )
