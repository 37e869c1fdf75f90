"""Losses of fine-tuned heads: functions of a model and a batch that return `(sum, count)`.

The trainer divides once per step.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from modernbert.batch import Batch
from modernbert.errors import InputError

__all__ = ["HeadLoss", "bce_loss", "cross_entropy_loss", "labels_of", "mse_loss", "multiple_choice_loss", "span_loss"]

HeadLoss = Callable[[nn.Module, Batch], tuple[Tensor, Any]]


def cross_entropy_loss(weights: Float[Tensor, " labels"] | None = None) -> HeadLoss:
    """Return the loss that sums the cross entropy of the batch's labels, in float32.

    Args:
        weights: Weight of each label. The count is then the sum of the weights, so that the mean is weighted too.
    """

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        labels = labels_of(batch)
        total = F.cross_entropy(model(batch).float(), labels, weight=weights, reduction="sum")
        return total, batch.num_labels if weights is None else float(weights[labels].sum())

    return loss


def mse_loss(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], int]:
    """Sum the squared errors of one score per row, in float32."""
    return F.mse_loss(model(batch).float()[:, 0], labels_of(batch), reduction="sum"), batch.num_labels


def bce_loss(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], int]:
    """Sum the binary cross entropy of one or several scores per row with labels from 0 to 1, in float32.

    Source: the loss of cross-encoders in sentence-transformers, and of several labels in transformers.
    """
    labels = labels_of(batch)
    scores = model(batch).float().reshape(labels.shape)
    return F.binary_cross_entropy_with_logits(scores, labels, reduction="sum"), labels.numel()


def multiple_choice_loss(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], int]:
    """Sum, over questions, the cross entropy of the right choice among its question's choices, in float32.

    Labels are (question, 1 or 0) for each document; the documents of a question are adjacent.
    """
    labels = labels_of(batch)
    scores = model(batch).float()[:, 0]
    _, sizes = labels[:, 0].unique_consecutive(return_counts=True)
    parts = sizes.tolist()
    losses = [
        F.cross_entropy(mine[None], right.argmax()[None], reduction="sum")
        for mine, right in zip(scores.split(parts), labels[:, 1].split(parts), strict=True)
    ]
    return torch.stack(losses).sum(), len(parts)


def span_loss(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], int]:
    """Sum, over documents, half the cross entropy of the right first and last token among the document's tokens.

    Labels are (first, last) for each document. Source: the loss of question answering in transformers, without padding.
    """
    labels = labels_of(batch)
    losses = [
        F.cross_entropy(mine.T, right, reduction="sum")
        for mine, right in zip(model(batch).float().split(list(batch.layout.lengths)), labels, strict=True)
    ]
    return torch.stack(losses).sum() / 2, len(losses)


def labels_of(batch: Batch) -> Tensor:
    """Return the labels of a batch.

    Raises: InputError if it has none.
    """
    if batch.labels is None:
        raise InputError("the batch has no labels, expected one for each row that is scored")
    return batch.labels
