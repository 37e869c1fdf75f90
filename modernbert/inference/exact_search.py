"""Exact search: which passages score highest, over single vectors and over the vectors of all tokens.

In: vectors of queries and passages, ragged. Out: for each query its best passages and their scores. Passages are gone
through in blocks, and may be made as they are asked for, so that memory does not grow with their number.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from modernbert.batch import batch_by_size
from modernbert.errors import InputError
from modernbert.model.embedder import max_sims

__all__ = ["Found", "search_tokens", "search_vectors"]

_BLOCK_ROWS = _BLOCK_TOKENS = 16_384
# Similarities of tokens held at a time: 64 MiB.
_BLOCK_CELLS = 2**24

Found = tuple[Float32[np.ndarray, "Q k"], Int64[np.ndarray, "Q k"]]
"""scores and numbers, best first"""


def search_vectors(
    queries: Float32[np.ndarray, "Q D"],
    passages: Float32[np.ndarray, "P D"] | Iterable[Float32[np.ndarray, "_ D"]],
    k: int,
    block_rows: int = _BLOCK_ROWS,
) -> Found:
    """Return the scores and numbers of the `k` passages nearest to each query by dot product, best first.

    `passages` are one array, or several that follow each other. Of passages that score the same, the one that comes
    first is nearer. With fewer passages than `k`, all.

    Raises: InputError if there is no passage, or a vector is not finite.
    """
    sought = torch.from_numpy(_finite("queries", queries))
    parts = [passages] if isinstance(passages, np.ndarray) else passages
    blocks = (
        sought @ torch.from_numpy(_finite("passages", part[start : start + block_rows])).T
        for part in parts
        for start in range(0, len(part), block_rows)
    )
    return _best_of(blocks, k)


def search_tokens(
    queries: Sequence[Float32[np.ndarray, "_ D"]], passages: Iterable[Float32[np.ndarray, "_ D"]], k: int
) -> Found:
    """Return the scores and numbers of the `k` passages nearest to each query by MaxSim, best first; see `max_sims`.

    Raises: InputError if there is no passage, or a text without a vector, or a vector that is not finite.
    """
    sought = list(_with_vectors("query", queries))
    blocks = batch_by_size(_with_vectors("passage", passages), _BLOCK_TOKENS, len)
    return _best_of((_scores(sought, block) for block in blocks), k)


def _with_vectors(name: str, texts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for number, vectors in enumerate(texts):
        if not len(_finite(f"{name} {number}", vectors)):
            raise InputError(f"{name} {number}: has no vector, expected at least one")
        yield vectors


def _scores(queries: Sequence[np.ndarray], block: Sequence[np.ndarray]) -> Tensor:
    """Score all queries with some passages, so many queries at a time that their similarities fit."""
    passages = torch.from_numpy(np.concatenate(block))
    lengths = torch.tensor([len(each) for each in block])
    most_tokens = max(1, _BLOCK_CELLS // len(passages))
    found = []
    for some in batch_by_size(queries, most_tokens, len):
        of_some = torch.tensor([len(each) for each in some])
        found.append(max_sims(torch.from_numpy(np.concatenate(some)), of_some, passages, lengths))
    return torch.cat(found)


def _best_of(blocks: Iterable[Float[Tensor, "Q P"]], k: int) -> Found:
    """Keep the best of all blocks of scores, whose columns go on from one to the next."""
    if k < 1:
        raise InputError(f"k: found {k}, expected at least 1")
    scores: Tensor | None = None
    numbers: Tensor | None = None
    first = 0
    for block in blocks:
        columns = torch.arange(first, first + block.shape[1]).expand(len(block), -1)
        first += block.shape[1]
        scores = block if scores is None else torch.cat([scores, block], dim=1)
        numbers = columns if numbers is None else torch.cat([numbers, columns], dim=1)
        # Stable, and passages come in their order: of equals the first stays first.
        order = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
        scores, numbers = scores.gather(1, order), numbers.gather(1, order)
    if scores is None or numbers is None:
        raise InputError("passages: found none, expected at least one")
    return scores.float().numpy(), numbers.numpy()


def _finite(name: str, vectors: np.ndarray) -> np.ndarray:
    if not np.isfinite(vectors).all():
        raise InputError(f"{name}: has a vector that is not finite")
    return vectors
