"""Exact search by dot product or MaxSim, passages block by block, so that memory does not grow with their number."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from modernbert.batch import batch_by_size
from modernbert.errors import InputError
from modernbert.model.embedder import max_sims

__all__ = ["Found", "search_tokens", "search_vectors", "similarities"]

_BLOCK_ROWS = _BLOCK_TOKENS = 16_384
# Token similarities computed at a time: 64 MiB.
_BLOCK_CELLS = 2**24

Found = tuple[Float32[np.ndarray, "Q k"], Int64[np.ndarray, "Q k"]]
"""Scores and passage numbers, best first."""


def search_vectors(
    queries: Float32[np.ndarray, "Q D"],
    passages: Float32[np.ndarray, "P D"] | Iterable[Float32[np.ndarray, "_ D"]],
    k: int,
    block_rows: int = _BLOCK_ROWS,
) -> Found:
    """Return the scores and numbers of the `k` passages nearest to each query by dot product, best first.

    `passages` are one array, or consecutive blocks of them. Passages with equal scores keep their order. With fewer
    passages than `k`, all are returned.

    Raises: InputError if there is no passage, or a vector is not finite.
    """
    rows = torch.from_numpy(_finite("queries", queries))
    parts = [passages] if isinstance(passages, np.ndarray) else passages
    blocks = (
        rows @ torch.from_numpy(_finite("passages", part[start : start + block_rows])).T
        for part in parts
        for start in range(0, len(part), block_rows)
    )
    return _best_of(blocks, k)


def search_tokens(
    queries: Sequence[Float32[np.ndarray, "_ D"]], passages: Iterable[Float32[np.ndarray, "_ D"]], k: int
) -> Found:
    """Return the scores and numbers of the `k` passages nearest to each query by MaxSim, best first; see `max_sims`.

    Raises: InputError if there is no passage, a text without a vector, or a vector that is not finite.
    """
    return _best_of(_token_scores(queries, passages), k)


def similarities(
    queries: np.ndarray | Sequence[np.ndarray], passages: np.ndarray | Sequence[np.ndarray]
) -> Float32[np.ndarray, "Q P"]:
    """Return the score of every query with every passage: dot products of arrays, MaxSim of sequences of arrays.

    >>> similarities(np.eye(2, dtype=np.float32), np.ones((1, 2), np.float32)).tolist()
    [[1.0], [1.0]]

    Raises: InputError for a text without a vector, or a vector that is not finite.
    """
    if not len(queries) or not len(passages):
        return np.zeros((len(queries), len(passages)), np.float32)
    if isinstance(queries, np.ndarray) and isinstance(passages, np.ndarray):
        rows, columns = (torch.from_numpy(_finite("vectors", each)) for each in (queries, passages))
        return (rows @ columns.T).numpy()
    return torch.cat(list(_token_scores(queries, passages)), dim=1).numpy()


def _token_scores(
    queries: Sequence[np.ndarray] | np.ndarray, passages: Iterable[np.ndarray]
) -> Iterator[Float[Tensor, "Q P"]]:
    """Yield the MaxSim of all queries with one block of passages after another."""
    listed = list(_with_vectors("query", queries))
    for block in batch_by_size(_with_vectors("passage", passages), _BLOCK_TOKENS, len):
        yield _block_scores(listed, block)


def _with_vectors(name: str, texts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for number, vectors in enumerate(texts):
        if not len(_finite(f"{name} {number}", vectors)):
            raise InputError(f"{name} {number}: has no vector, expected at least one")
        yield vectors


def _block_scores(queries: Sequence[np.ndarray], block: Sequence[np.ndarray]) -> Float[Tensor, "Q P"]:
    """Score all queries with a block of passages, as many queries at a time as `_BLOCK_CELLS` allows."""
    passages = torch.from_numpy(np.concatenate(block))
    lengths = torch.tensor([len(each) for each in block])
    most_tokens = max(1, _BLOCK_CELLS // len(passages))
    found = []
    for some in batch_by_size(queries, most_tokens, len):
        of_some = torch.tensor([len(each) for each in some])
        found.append(max_sims(torch.from_numpy(np.concatenate(some)), of_some, passages, lengths))
    return torch.cat(found)


def _best_of(blocks: Iterable[Float[Tensor, "Q P"]], k: int) -> Found:
    """Return the best `k` columns of consecutive blocks of scores."""
    if k < 1:
        raise InputError(f"k: found {k}, expected at least 1")
    scores: Tensor | None = None
    numbers: Tensor | None = None
    first = 0
    for block in blocks:
        columns = _top_columns(block, k)
        found = block.gather(1, columns)
        columns += first
        first += block.shape[1]
        if scores is not None and numbers is not None:
            found, columns = torch.cat([scores, found], dim=1), torch.cat([numbers, columns], dim=1)
        # A stable sort of passages in their order: equal scores keep it.
        order = found.sort(dim=1, descending=True, stable=True).indices[:, :k]
        scores, numbers = found.gather(1, order), columns.gather(1, order)
    if scores is None or numbers is None:
        raise InputError("passages: found none, expected at least one")
    return scores.float().numpy(), numbers.numpy()


def _top_columns(scores: Float[Tensor, "Q P"], k: int) -> Int64[Tensor, "Q _"]:
    """Return the columns of the `k` highest scores of each row, in ascending order; of equal scores, the first ones."""
    best = scores.topk(min(k, scores.shape[1]), dim=1)
    columns = best.indices
    # `topk` breaks ties at random: rows with more scores at or above the lowest of the best are sorted instead.
    tied = (scores >= best.values[:, -1:]).sum(dim=1) > columns.shape[1]
    if tied.any():
        order = scores[tied].sort(dim=1, descending=True, stable=True).indices
        columns[tied] = order[:, : columns.shape[1]]
    return columns.sort(dim=1).values


def _finite(name: str, vectors: np.ndarray) -> np.ndarray:
    if not np.isfinite(vectors).all():
        raise InputError(f"{name}: has a vector that is not finite")
    return vectors
