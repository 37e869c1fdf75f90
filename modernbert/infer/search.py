"""Exact search: which passages score highest, over single vectors and over the vectors of all tokens.

In: vectors of queries and passages, ragged. Out: for each query its best passages and their scores. Passages are gone
through in blocks, so that memory does not grow with their number.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from modernbert.errors import InputError

__all__ = ["max_sim", "search_tokens", "search_vectors"]

_BLOCK_ROWS = 16_384
# Similarities held at a time: 64 MiB.
_BLOCK_CELLS = 2**24

Found = tuple[Float32[np.ndarray, "Q k"], Int64[np.ndarray, "Q k"]]


def search_vectors(
    queries: Float32[np.ndarray, "Q D"], passages: Float32[np.ndarray, "P D"], k: int, block_rows: int = _BLOCK_ROWS
) -> Found:
    """Return the scores and numbers of the `k` passages nearest to each query by dot product, best first.

    Of passages that score the same, the one that comes first is nearer. With fewer passages than `k`, all.

    Raises: InputError if there is no passage, or a vector is not finite.
    """
    sought = torch.from_numpy(_finite("queries", queries))
    blocks = (
        sought @ torch.from_numpy(_finite("passages", passages[start : start + block_rows])).T
        for start in range(0, len(passages), block_rows)
    )
    return _best_of(blocks, k)


def search_tokens(
    queries: Sequence[Float32[np.ndarray, "_ D"]], passages: Sequence[Float32[np.ndarray, "_ D"]], k: int
) -> Found:
    """Return the scores and numbers of the `k` passages nearest to each query by MaxSim, best first; see `max_sim`.

    Raises: InputError if there is no passage, or one without a token.
    """
    return _best_of((_max_sims(queries, block) for block in _blocks(queries, passages)), k)


def max_sim(query: Float[Tensor, "q D"], passages: Float[Tensor, "T D"], lengths: Int64[Tensor, " P"]) -> Tensor:
    """Return the late-interaction score of a query with each of some passages laid end to end.

    Each token of the query counts with its most similar token of the passage. There is no padding to be left out.

    Source: Khattab & Zaharia 2020 (ColBERT).
    """
    best = torch.segment_reduce(passages @ query.T, "max", lengths=lengths, axis=0)
    return best.sum(dim=1)


def _max_sims(queries: Sequence[np.ndarray], block: Sequence[np.ndarray]) -> Tensor:
    passages = torch.from_numpy(np.concatenate(block))
    lengths = torch.tensor([len(each) for each in block])
    return torch.stack([max_sim(torch.from_numpy(query), passages, lengths) for query in queries])


def _blocks(queries: Sequence[np.ndarray], passages: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Cut passages into blocks of so many tokens that the similarities of a query with all of them fit."""
    most_tokens = max(1, _BLOCK_CELLS // max(map(len, queries), default=1))
    block: list[np.ndarray] = []
    num_tokens = 0
    for number, passage in enumerate(passages):
        if not len(passage):
            raise InputError(f"passage {number}: has no token, expected at least one")
        if block and num_tokens + len(passage) > most_tokens:
            yield block
            block, num_tokens = [], 0
        block.append(_finite(f"passage {number}", passage))
        num_tokens += len(passage)
    if block:
        yield block


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
