"""Losses of retrieval, over the vectors of a whole step: queries told from passages that are not theirs.

In: queries and their passages laid out, a model. Out: micro-batches for the loop, and their loss. A step's queries are
compared with all passages of the step, however many micro-batches it takes to compute them: vectors come first, without
a graph; what the loss asks of each vector is then taken to the weights, one micro-batch at a time.

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
from modernbert.model.embedder import Embedder, max_sims
from modernbert.training.losses import info_nce
from modernbert.training.training_loop import derive_seed

__all__ = ["Comparison", "RetrievalLoss", "kl_distillation"]


@dataclass(frozen=True)
class Comparison:
    """Say what a step compares: Q queries with P passages, of which the first Q are the queries' own.

    `lengths` are the rows of each text, queries first. `known` marks pairs that fit besides, and are no negatives.
    With `teacher`, each query has scores for passages of its own, `candidates`, instead of one right passage.
    """

    num_queries: int
    lengths: Sequence[int]
    known: Bool[Tensor, "Q P"] | None = None
    candidates: Sequence[Sequence[int]] | None = None
    teacher: Sequence[np.ndarray] | None = None


class RetrievalLoss:
    """The loss of a step, in as many parts as it has micro-batches.

    `micro_batches` yields the parts of one step; the loop calls the loss on each of them before it asks for the next
    step's. A step of one part is differentiated as it is.
    """

    def __init__(self, temperature: float, normalize: bool = True) -> None:
        self.temperature, self.normalize = temperature, normalize
        self._comparison: Comparison | None = None
        self._value: tuple[float, int] = (0.0, 0)

    def micro_batches(
        self, model: Embedder, parts: Sequence[Batch], comparison: Comparison, *, step_seed: int,
        device: torch.device, dtype: torch.dtype,
    ) -> Iterator[Batch]:  # fmt: skip
        """Yield the parts of a step; where there are several, with the gradient of each of their vectors as labels."""
        self._comparison = comparison
        if len(parts) == 1:
            yield parts[0]
            return
        vectors: list[Tensor] = []
        model.train()
        for number, part in enumerate(parts):
            torch.manual_seed(derive_seed(step_seed, number))  # the same dropout as when it comes again
            with torch.no_grad(), autocast(device, dtype):
                vectors.append(model(part.to(device)))
        whole = torch.cat(vectors).requires_grad_()
        total, count = self.compare(whole, comparison)
        (gradients,) = torch.autograd.grad(total, whole)
        self._value = float(total.detach()), count
        for part, asked in zip(parts, gradients.split([len(each) for each in vectors]), strict=True):
            yield Batch(part.tokens, part.layout, part.label_positions, asked)

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        """Return the loss of a step of one part; of a part of several, what has the gradient asked for.

        The first of several parts carries the value of the whole step, the others nothing.
        """
        vectors = model(batch)
        assert self._comparison is not None, "micro_batches comes first"
        if batch.labels is None:
            return self.compare(vectors, self._comparison)
        asked = (vectors * batch.labels).sum()
        (value, count), self._value = self._value, (0.0, 0)
        return asked - asked.detach() + value, count

    def compare(self, vectors: Float[Tensor, "rows E"], comparison: Comparison) -> tuple[Float[Tensor, ""], int]:
        """Return the summed loss of all queries, in float32 or wider, and their number."""
        with torch.autocast(vectors.device.type, enabled=False):
            scores = _scores(vectors, comparison)
            if comparison.teacher is None:
                return info_nce(scores / self.temperature, comparison.known)
            assert comparison.candidates is not None
            return kl_distillation(scores / self.temperature, comparison.candidates, comparison.teacher, self.normalize)


def kl_distillation(
    scores: Float[Tensor, "Q P"], candidates: Sequence[Sequence[int]], teacher: Sequence[np.ndarray], normalize: bool
) -> tuple[Float[Tensor, ""], int]:
    """Sum, over queries, the divergence of the model's distribution over a query's candidates from the teacher's.

    With `normalize` a query's scores are first stretched to reach from 0 to 1.

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
