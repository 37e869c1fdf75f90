"""Retrieval evaluation: ranks the documents of a collection by a model or by BM25, and scores the rankings.

Search is exact. Scores are nDCG@10, MRR@10 and recall@100.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path

import numpy as np

from modernbert.batch import batch_by_size
from modernbert.data.beir import Collection, Rank
from modernbert.devices import dtype_name
from modernbert.evaluation.bm25 import bm25_best
from modernbert.evaluation.ranking_metrics import mean_over_queries, mrr_at, ndcg_at, rank_ids, recall_at
from modernbert.inference.exact_search import search_tokens, search_vectors
from modernbert.inference.modernbert import ModernBert
from modernbert.inference.results import TextVectors
from modernbert.search.embedding_table import EmbeddingTable

__all__ = ["Retrieval", "rank_by_index", "rank_by_model", "rank_by_words", "score_collection"]

_DEPTH = 100
# Bounds the memory of the document vectors: a block is dropped once it is scored.
_BLOCK_CHARACTERS = 2**22
# Settings that do not change document vectors.
_QUERY_SETTINGS = ("query_prompt", "query_length", "expand_queries")


@dataclass(frozen=True)
class Retrieval:
    """Scores of one system on one collection, the number of truncated texts, and the seconds it took."""

    ndcg_10: float
    mrr_10: float
    recall_100: float
    num_truncated: int
    seconds: float


def score_collection(collection: Collection, rank: Rank) -> Retrieval:
    """Score a ranking function on a collection: means over the queries that have a relevant document."""
    started = time.perf_counter()
    documents = list(collection.documents)
    scores, numbers, num_truncated = rank(collection, _DEPTH)
    rankings = {
        query: rank_ids({documents[n]: float(score) for n, score in zip(row, found, strict=True)})
        for query, row, found in zip(collection.queries, numbers.tolist(), scores.tolist(), strict=True)
    }
    seconds = time.perf_counter() - started
    judgments = collection.judgments
    return Retrieval(
        mean_over_queries(ndcg_at, 10, rankings, judgments), mean_over_queries(mrr_at, 10, rankings, judgments),
        mean_over_queries(recall_at, _DEPTH, rankings, judgments), num_truncated, seconds,
    )  # fmt: skip


def rank_by_model(bert: ModernBert) -> Rank:
    """Return a ranking function that embeds queries and documents with a model, documents in blocks.

    Late-interaction models rank by MaxSim, others by the similarity of one vector per text.
    """

    def rank(collection: Collection, k: int) -> tuple[np.ndarray, np.ndarray, int]:
        queries = bert.embed_queries(list(collection.queries.values()))
        num_truncated = queries.num_truncated

        def vectors() -> Iterator[np.ndarray | list[np.ndarray]]:
            nonlocal num_truncated
            for block in _blocks(bert, collection.documents.values()):
                num_truncated += block.num_truncated
                yield block.vectors

        if bert.is_late:
            found = search_tokens(queries.vectors, chain.from_iterable(vectors()), k)  # type: ignore[arg-type]
        else:
            found = search_vectors(queries.vectors, vectors(), k)  # type: ignore[arg-type]
        return *found, num_truncated

    return rank


def rank_by_index(bert: ModernBert, model: str, folder: Path) -> Rank:
    """Return a ranking function like `rank_by_model` that stores document vectors on disk and reuses them.

    Args:
        bert: The model.
        model: An identifier of the model's files; stored vectors of another model are refused.
        folder: The folder with one table per collection.
    """

    def rank(collection: Collection, k: int) -> tuple[np.ndarray, np.ndarray, int]:
        queries = bert.embed_queries(list(collection.queries.values()))
        texts = sha256("\0".join(chain.from_iterable(collection.documents.items())).encode()).hexdigest()
        settings = {key: value for key, value in asdict(bert.vectors).items() if key not in _QUERY_SETTINGS}
        dtype = dtype_name(next(bert.model.parameters()).dtype)
        about = {"documents": texts, "model": model, "settings": settings, "dtype": dtype}
        index = EmbeddingTable(folder / collection.name, about, bert.vector_width, bert.is_late)
        for block in _blocks(bert, islice(collection.documents.values(), len(index), None)):
            index.add(block.vectors, block.num_truncated)
        return *index.search(queries.vectors, k), queries.num_truncated + index.num_truncated

    return rank


def _blocks(bert: ModernBert, texts: Iterable[str]) -> Iterator[TextVectors]:
    """Embed documents block by block."""
    return (bert.embed_documents(some) for some in batch_by_size(texts, _BLOCK_CHARACTERS, len))


def rank_by_words(collection: Collection, k: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Rank the documents of a collection by BM25."""
    return *bm25_best(list(collection.queries.values()), list(collection.documents.values()), k), 0
