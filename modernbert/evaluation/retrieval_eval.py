"""How well the documents of a collection are ranked for its queries.

In: a collection, and a model or words to rank by. Out: nDCG@10, MRR@10, recall@100. Search is exact.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path

import numpy as np

from modernbert.batch import batch_by_size
from modernbert.data.collections import Collection
from modernbert.evaluation.bm25 import bm25_best
from modernbert.evaluation.ranking_metrics import mean_over_queries, mrr_at, ndcg_at, rank_ids, recall_at
from modernbert.inference.exact_search import search_tokens, search_vectors
from modernbert.inference.modernbert import ModernBert, TextVectors
from modernbert.search.embedding_table import EmbeddingTable

__all__ = ["Rank", "Retrieval", "hard_negatives", "rank_by_index", "rank_by_model", "rank_by_words", "score_collection"]

_DEPTH = 100
# Documents are embedded so many characters at a time, and their vectors let go once they are scored.
_BLOCK_CHARACTERS = 2**22
# Settings that leave the vectors of documents as they are.
_OF_QUERIES = ("query_prompt", "query_length", "expand_queries")


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

        def vectors() -> Iterator[np.ndarray | list[np.ndarray]]:
            nonlocal num_cut
            for block in _blocks(bert, collection.documents.values()):
                num_cut += block.num_cut
                yield block.vectors

        if bert.is_late:
            found = search_tokens(queries.vectors, chain.from_iterable(vectors()), k)  # type: ignore[arg-type]
        else:
            found = search_vectors(queries.vectors, vectors(), k)  # type: ignore[arg-type]
        return *found, num_cut

    return rank


def rank_by_index(bert: ModernBert, model: str, folder: Path) -> Rank:
    """Rank as `rank_by_model` does, and keep the vectors of each collection in a folder of its name.

    Vectors that are there are not made again. `model` tells it from others, so that theirs are refused.
    """

    def rank(collection: Collection, k: int) -> tuple[np.ndarray, np.ndarray, int]:
        queries = bert.embed_queries(list(collection.queries.values()))
        texts = sha256("\0".join(chain.from_iterable(collection.documents.items())).encode()).hexdigest()
        settings = {key: value for key, value in asdict(bert.vectors).items() if key not in _OF_QUERIES}
        dtype = str(next(bert.model.parameters()).dtype).removeprefix("torch.")
        about = {"documents": texts, "model": model, "settings": settings, "dtype": dtype}
        index = EmbeddingTable(folder / collection.name, about, bert.vector_width, bert.is_late)
        for block in _blocks(bert, islice(collection.documents.values(), len(index), None)):
            index.add(block.vectors, block.num_cut)
        return *index.search(queries.vectors, k), queries.num_cut + index.num_cut

    return rank


def _blocks(bert: ModernBert, texts: Iterable[str]) -> Iterator[TextVectors]:
    """Yield documents as vectors, a block at a time."""
    return (bert.embed_documents(some) for some in batch_by_size(texts, _BLOCK_CHARACTERS, len))


def rank_by_words(collection: Collection, k: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Rank by BM25."""
    return *bm25_best(list(collection.queries.values()), list(collection.documents.values()), k), 0


def hard_negatives(
    queries: Sequence[str], answers: Sequence[frozenset[str]], passages: Sequence[str], number: int, rank: Rank
) -> list[list[str]]:
    """Return for each query the passages that rank highest for it and do not answer it.

    Raises: InputError if bm25s is not installed, where words rank.
    """
    if number == 0:
        return [[] for _ in queries]
    fitting: dict[str, frozenset[str]] = {}
    for query, known in zip(queries, answers, strict=True):
        fitting[query] = fitting.get(query, frozenset()) | known
    numbered = {str(place): text for place, text in enumerate(passages)}
    depth = min(number + max(map(len, fitting.values())), len(passages))
    _, ranked, _ = rank(Collection("", numbered, {query: query for query in fitting}, {}, 0, 0), depth)
    found = {
        query: [passages[n] for n in best if passages[n] not in fitting[query]][:number]
        for query, best in zip(fitting, ranked.tolist(), strict=True)
    }
    return [found[query] for query in queries]
