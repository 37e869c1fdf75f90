"""Losses: a sum over rows and the number of rows.

In: a model and a batch, or vectors. Out: `(sum, count)`. Nothing here divides: the training loop divides once over all
micro-batches of a step, so that the way a step is cut into micro-batches never changes its gradient.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from modernbert.errors import InputError
from modernbert.ragged import Batch

__all__ = ["contrastive", "masked_lm", "masked_lm_rows"]


# Rows whose logits are in memory at a time: 49 MiB of float32 at 50,368 entries on a CPU, 197 MiB on a GPU.
CHUNK_ROWS = 256
GPU_CHUNK_ROWS = 1024


def masked_lm(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], int]:
    """Sum the cross entropy of the masked rows, in float32 or wider.

    The model decodes the M rows named by `batch.where` alone, some at a time: there is never a tensor [M, V]. A batch
    without a masked row gives 0 and zero gradients.
    """
    labels = _labels(batch)
    features = _features(model, batch)
    decoder: nn.Linear = model.decoder  # type: ignore[assignment]
    total: Tensor = _ChunkedCrossEntropy.apply(features, decoder.weight, decoder.bias, labels)
    return total, batch.num_labels


@torch.no_grad()
def masked_lm_rows(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, " M"], Bool[Tensor, " M"]]:
    """Return the cross entropy of each masked row, and whether its first guess is right; on the device, unsummed."""
    labels = _labels(batch)
    features = _features(model, batch)
    size = _chunk_rows(features.device)
    losses, correct = [], []
    for rows, expected in zip(features.split(size), labels.split(size), strict=True):
        logits = model.decoder(rows).float()  # type: ignore[operator]
        losses.append(F.cross_entropy(logits, expected, reduction="none"))
        correct.append(logits.argmax(dim=-1) == expected)
    return torch.cat(losses), torch.cat(correct)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross entropy of `rows @ weight.T + bias`, a chunk of rows at a time.

    A chunk's gradients are made as soon as its logits are there, so that neither has to be kept or made twice; all that
    backward does is to scale them. Source: the same idea in Cut Cross-Entropy (Wijmans et al. 2024) and Liger Kernel.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        wide = torch.promote_types(rows.dtype, torch.float32)
        needs_gradients = any(ctx.needs_input_grad)
        narrow_weight = weight.to(rows.dtype)
        total = torch.zeros((), dtype=wide, device=rows.device)
        grad_rows, grad_weight, grad_bias = torch.zeros_like(rows), torch.zeros_like(weight), torch.zeros_like(bias)
        # One room for all chunks, worked on in place: on a CPU, new memory of this size costs more than the arithmetic.
        size = min(_chunk_rows(rows.device), len(rows))
        narrow_room = rows.new_empty(size, len(weight))
        room = narrow_room.to(wide)
        for start in range(0, len(rows), max(1, size)):
            chunk, expected = rows[start : start + size], labels[start : start + size]
            narrow, logits = narrow_room[: len(chunk)], room[: len(chunk)]
            torch.mm(chunk, narrow_weight.T, out=narrow)
            logits.copy_(narrow).add_(bias)
            picked = logits.gather(1, expected[:, None])
            peaks = logits.amax(dim=-1, keepdim=True)
            sums = logits.sub_(peaks).exp_().sum(dim=-1, keepdim=True)
            total += (sums.log() + peaks - picked).sum()
            if not needs_gradients:
                continue
            slopes = logits.div_(sums)
            slopes[torch.arange(len(chunk), device=rows.device), expected] -= 1
            grad_bias += slopes.sum(dim=0).to(bias.dtype)
            narrow.copy_(slopes)
            torch.mm(narrow, narrow_weight, out=grad_rows[start : start + size])
            grad_weight += (narrow.T @ chunk).to(weight.dtype)
        ctx.save_for_backward(grad_rows, grad_weight, grad_bias)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grads = (grad * upstream.to(grad.dtype) for grad in ctx.saved_tensors)
        return (*grads, None)


def _chunk_rows(device: torch.device) -> int:
    return CHUNK_ROWS if device.type == "cpu" else GPU_CHUNK_ROWS


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


def _features(model: nn.Module, batch: Batch) -> Float[Tensor, "M D"]:
    """Return what the decoder sees of the masked rows, in the precision it multiplies in."""
    features: Tensor = model.features(batch)  # type: ignore[operator]
    device = features.device.type
    return features.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else features


def _labels(batch: Batch) -> Tensor:
    if batch.where is None or batch.labels is None:
        raise InputError("masked language modelling: the batch names no masked rows, expected where and labels")
    return batch.labels
