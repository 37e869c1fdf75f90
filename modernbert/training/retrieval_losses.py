"""Retrieval losses over the queries and passages of a whole step, however many micro-batches and processes it has.

GradCache: embed all micro-batches without autograd, differentiate the loss with respect to the embeddings, then
backpropagate micro-batch by micro-batch.

Source: Gao et al. 2021 (gradient cache); van den Oord et al. 2018 (InfoNCE); PyLate (distillation of MaxSim scores).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from modernbert.batch import Batch
from modernbert.devices import autocast
from modernbert.errors import InputError
from modernbert.model.embedder import max_sims
from modernbert.training.distributed import SINGLE_PROCESS, World, reshard
from modernbert.training.losses import info_nce
from modernbert.training.training_loop import derive_seed

__all__ = ["Comparison", "RetrievalLoss", "kl_distillation"]


@dataclass(frozen=True)
class Comparison:
    """The comparison in a step: Q queries with P passages, of which passage i is the answer to query i.

    `lengths` are the rows of each text, queries first. `known` marks further pairs that match, and are no negatives.
    With `teacher`, a query has scores for its own passages `candidates`, instead of one answer.
    """

    num_queries: int
    lengths: Sequence[int]
    known: Bool[Tensor, "Q P"] | None = None
    candidates: Sequence[Sequence[int]] | None = None
    teacher: Sequence[np.ndarray] | None = None


class RetrievalLoss:
    """The loss of a step, one part for each micro-batch.

    `micro_batches` yields the parts of one step; the loop calls the loss on each of them before it asks for the parts
    of the next step. A step of one part needs no GradCache.
    """

    def __init__(self, temperature: float, normalize: bool = True) -> None:
        self.temperature, self.normalize = temperature, normalize
        self._comparison: Comparison | None = None
        self._value: tuple[float, int] = (0.0, 0)

    def micro_batches(
        self, objective: nn.Module, parts: Sequence[Batch], comparison: Comparison, *, step_seed: int,
        device: torch.device, dtype: torch.dtype, world: World = SINGLE_PROCESS,
    ) -> Iterator[Batch | None]:  # fmt: skip
        """Yield the parts of a step, None for one of another process; the labels are the gradients of its vectors."""
        self._comparison = comparison
        if len(parts) == 1 and world.size == 1:
            yield parts[0]
            return
        objective.train()
        vectors: list[Tensor] = []
        # All processes run the model equally often.
        for first in range(0, len(parts), world.size):
            number = first + world.rank
            torch.manual_seed(derive_seed(step_seed, number))  # the same dropout as in the second forward pass
            with torch.no_grad(), autocast(device, dtype):
                embedded, _ = objective(parts[min(number, len(parts) - 1)].to(device), _embed)
            vectors += _gathered(embedded, min(world.size, len(parts) - first), world)
        reshard(objective)
        whole = torch.cat(vectors).requires_grad_()
        total, count = self.compare(whole, comparison)
        (gradients,) = torch.autograd.grad(total, whole)
        self._value = (float(total.detach()), count) if world.is_main else (0.0, 0)
        for number, (part, wanted) in enumerate(
            zip(parts, gradients.split([len(each) for each in vectors]), strict=True)
        ):
            mine = number % world.size == world.rank
            yield Batch(part.tokens, part.layout, part.label_positions, wanted) if mine else None

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        """Return the loss of a step of one part; for one of several parts, a scalar with the gradient of its vectors.

        The first of several parts has the value of the whole step, the others have 0.
        """
        vectors = model(batch)
        assert self._comparison is not None, "micro_batches comes first"
        if batch.labels is None:
            if vectors.shape[0] != sum(self._comparison.lengths):  # the batch of a process without a part
                return vectors.sum(), 0
            return self.compare(vectors, self._comparison)
        wanted = (vectors * batch.labels).sum()
        (value, count), self._value = self._value, (0.0, 0)
        return wanted - wanted.detach() + value, count

    def compare(self, vectors: Float[Tensor, "rows E"], comparison: Comparison) -> tuple[Float[Tensor, ""], int]:
        """Return the summed loss of all queries, in float32 or wider, and their number."""
        with torch.autocast(vectors.device.type, enabled=False):
            scores = _scores(vectors, comparison)
            if comparison.teacher is None:
                return info_nce(scores / self.temperature, comparison.known)
            assert comparison.candidates is not None
            return kl_distillation(scores / self.temperature, comparison.candidates, comparison.teacher, self.normalize)


def _embed(model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
    return model(batch), 0


def _gathered(embedded: Tensor, num_parts: int, world: World) -> list[Tensor]:
    """Return the vectors of one part of each of the first `num_parts` processes."""
    if world.size == 1:
        return [embedded]
    rows = torch.zeros(world.size, dtype=torch.int64, device=embedded.device)
    rows[world.rank] = len(embedded)
    rows = world.sum(rows)
    # A sum with zeros is exact, and needs no equal shapes.
    whole = embedded.new_zeros(int(rows.sum()), embedded.shape[1])
    start = int(rows[: world.rank].sum())
    whole[start : start + len(embedded)] = embedded
    return list(world.sum(whole).split(rows.tolist()))[:num_parts]


def kl_distillation(
    scores: Float[Tensor, "Q P"], candidates: Sequence[Sequence[int]], teacher: Sequence[np.ndarray], normalize: bool
) -> tuple[Float[Tensor, ""], int]:
    """Sum, over queries, the KL divergence of the teacher's distribution over the candidates from the model's.

    With `normalize`, the scores of a query are first scaled to the range from 0 to 1.

    Source: JaColBERTv2.5 (Clavie 2024), as PyLate computes it.
    """
    total = scores.new_zeros(())
    for row, numbers, wanted in zip(scores, candidates, teacher, strict=True):
        own = row[torch.as_tensor(numbers, device=row.device)]
        if normalize:
            own = (own - own.min()) / (own.max() - own.min() + 1e-8)
        target = torch.as_tensor(wanted, dtype=own.dtype, device=own.device)
        total = total + F.kl_div(own.log_softmax(-1), target.log_softmax(-1), reduction="sum", log_target=True)
    return total, len(scores)


def _scores(vectors: Tensor, comparison: Comparison) -> Float[Tensor, "Q P"]:
    number, lengths = comparison.num_queries, torch.tensor(comparison.lengths)
    if not 0 < number <= len(lengths) - number:
        raise InputError(f"a step has {number} queries and {len(lengths) - number} passages, expected one each")
    rows = int(lengths[:number].sum())
    queries, passages = vectors[:rows], vectors[rows:]
    if int(lengths.max()) == 1 and len(vectors) == len(lengths):
        return queries @ passages.T
    lengths = lengths.to(vectors.device)
    return max_sims(queries, lengths[:number], passages, lengths[number:])
