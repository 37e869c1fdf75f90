"""Losses: a sum over rows and the number of rows.

In: a model and a batch, or vectors. Out: `(sum, count)`. Nothing here divides: the training loop divides once over all
micro-batches of a step, so that the way a step is cut into micro-batches never changes its gradient.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from modernbert.errors import InputError
from modernbert.ragged import Batch

__all__ = ["contrastive", "masked_lm", "masked_lm_scores"]


def masked_lm(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], int]:
    """Sum the cross entropy of the masked rows, in float32.

    The model decodes the M rows named by `batch.where` alone. A batch without a masked row gives 0 and zero gradients.
    """
    labels = _labels(batch)
    logits: Tensor = model(batch)
    return F.cross_entropy(logits.float(), labels, reduction="sum"), batch.num_labels


@torch.no_grad()
def masked_lm_scores(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, ""], int]:
    """Sum the cross entropy and the correct first guesses of the masked rows: (loss, correct, count).

    The sums stay on the device, so that a held-out pass asks it for numbers once, not once a batch.
    """
    labels = _labels(batch)
    logits: Tensor = model(batch).float()
    num_correct = (logits.argmax(dim=-1) == labels).sum().float()
    return F.cross_entropy(logits, labels, reduction="sum"), num_correct, batch.num_labels


def contrastive(
    vectors: Float[Tensor, "rows D"], num_queries: int, temperature: float
) -> tuple[Float[Tensor, ""], int]:
    """Sum the InfoNCE loss of Q queries against P passages, in float32.

    Rows are Q queries, then P >= Q passages: the positive of query i is passage i, every other passage is a negative.
    Vectors are normalised here.

    Source: van den Oord et al. 2018 (InfoNCE), with in-batch negatives.
    """
    num_passages = vectors.shape[0] - num_queries
    if not 0 < num_queries <= num_passages:
        raise InputError(
            f"contrastive loss: {num_queries} queries, {num_passages} passages, expected one positive each"
        )
    unit = F.normalize(vectors.float(), dim=-1)
    similarities = unit[:num_queries] @ unit[num_queries:].T
    positives = torch.arange(num_queries, device=vectors.device)
    return F.cross_entropy(similarities / temperature, positives, reduction="sum"), num_queries


def _labels(batch: Batch) -> Tensor:
    if batch.where is None or batch.labels is None:
        raise InputError("masked language modelling: the batch names no masked rows, expected where and labels")
    return batch.labels
