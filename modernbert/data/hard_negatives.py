"""Hard-negative mining: the passages that a ranking function places highest for a query and that do not answer it."""

from collections.abc import Sequence

from modernbert.data.beir import Collection, Rank

__all__ = ["hard_negatives"]


def hard_negatives(
    queries: Sequence[str], answers: Sequence[frozenset[str]], passages: Sequence[str], number: int, rank: Rank
) -> list[list[str]]:
    """Return the hard negatives of each query, best ranked first.

    Args:
        queries: The queries; the answers of equal queries are merged.
        answers: The passages that answer each query.
        passages: The passages to choose from.
        number: How many negatives a query gets at most.
        rank: The ranking function, such as BM25 or a model.

    Raises:
        InputError: The ranking function needs a library that is not installed.
    """
    if number == 0:
        return [[] for _ in queries]
    known: dict[str, frozenset[str]] = {}
    for query, relevant in zip(queries, answers, strict=True):
        known[query] = known.get(query, frozenset()) | relevant
    numbered = {str(place): text for place, text in enumerate(passages)}
    depth = min(number + max(map(len, known.values())), len(passages))
    _, ranked, _ = rank(Collection("", numbered, {query: query for query in known}, {}, 0, 0), depth)
    found = {
        query: [passages[n] for n in best if passages[n] not in known[query]][:number]
        for query, best in zip(known, ranked.tolist(), strict=True)
    }
    return [found[query] for query in queries]
