"""Losses: a sum over rows and the number of rows.

In: a model and a batch, or vectors. Out: `(sum, count)`. Nothing here divides: the training loop divides once over all
micro-batches of a step, so that the way a step is cut into micro-batches never changes its gradient.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from modernbert.errors import InputError
from modernbert.native import calls
from modernbert.ragged import Batch

__all__ = [
    "binary_error",
    "choice_error",
    "contrastive",
    "extract_error",
    "label_error",
    "masked_lm",
    "masked_lm_rows",
    "squared_error",
    "tell_apart",
]


ToSlopes = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor], Tensor | float]

# Rows whose logits are in memory at a time, in the precision of the product: 98 MiB of bfloat16 at 50,368 entries on a
# CPU, 787 on a GPU, where adding up the gradients of that many entries costs more than it does there.
CHUNK_ROWS = 1024
GPU_CHUNK_ROWS = 8192
# Of those, rows that are in float32 at a time: few where that is a cache's size, many where a kernel wants work.
WIDE_ROWS = 64
GPU_WIDE_ROWS = 1024
_EVAL_ROWS = 256


def masked_lm(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], int]:
    """Sum the cross entropy of the masked rows, in float32 or wider.

    The model decodes the M rows named by `batch.where` alone, some at a time: there is never a tensor [M, V]. A batch
    without a masked row gives 0 and zero gradients.
    """
    labels = _masked(batch)
    features = _features(model, batch)
    decoder: nn.Linear = model.decoder  # type: ignore[assignment]
    total: Tensor = _ChunkedCrossEntropy.apply(features, decoder.weight, decoder.bias, labels, _to_slopes_of(model))
    return total, batch.num_labels


@torch.no_grad()
def masked_lm_rows(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, " M"], Bool[Tensor, " M"]]:
    """Return the cross entropy of each masked row, and whether its first guess is right; on the device, unsummed."""
    labels = _masked(batch)
    features = _features(model, batch)
    losses, correct = [], []
    for rows, expected in zip(features.split(_EVAL_ROWS), labels.split(_EVAL_ROWS), strict=True):
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
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, to_slopes: ToSlopes) -> Tensor:
        wide = torch.promote_types(rows.dtype, torch.float32)
        needs_gradients = any(ctx.needs_input_grad)
        narrow_weight = weight.to(rows.dtype)
        total = torch.zeros((), dtype=wide, device=rows.device)
        grad_rows, grad_weight, grad_bias = torch.zeros_like(rows), torch.zeros_like(weight), torch.zeros_like(bias)
        # One room for all chunks, worked on in place: on a CPU, new memory of this size costs more than the arithmetic.
        on_cpu = rows.device.type == "cpu"
        size = min(CHUNK_ROWS if on_cpu else GPU_CHUNK_ROWS, len(rows))
        wide_size = min(WIDE_ROWS if on_cpu else GPU_WIDE_ROWS, size)
        room = rows.new_empty(size, len(weight))
        wide_room = torch.empty(wide_size, len(weight), dtype=wide, device=rows.device)
        product = rows.new_empty(weight.shape)
        for start in range(0, len(rows), max(1, size)):
            chunk, expected = rows[start : start + size], labels[start : start + size]
            logits = torch.mm(chunk, narrow_weight.T, out=room[: len(chunk)])
            total += to_slopes(logits, bias, expected, grad_bias if needs_gradients else None, wide_room)
            if needs_gradients:
                torch.mm(logits, narrow_weight, out=grad_rows[start : start + size])
                _add_in_pieces(grad_weight, torch.mm(logits.T, chunk, out=product), wide_room)
        ctx.save_for_backward(grad_rows, grad_weight, grad_bias)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grads = ctx.saved_tensors
        # On a CPU it costs nothing to ask whether the loss is what is differentiated, which it mostly is.
        if upstream.device.type != "cpu" or upstream != 1:
            grads = tuple(grad * upstream.to(grad.dtype) for grad in grads)
        return (*grads, None, None)


def _to_slopes(
    logits: Float[Tensor, "rows V"], bias: Tensor, labels: Tensor, grad_bias: Tensor | None, wide_room: Tensor
) -> Tensor:
    """Return the summed cross entropy; with `grad_bias`, put its gradient into the logits, and add the bias's up."""
    total = torch.zeros((), dtype=wide_room.dtype, device=logits.device)
    for part, answers in zip(logits.split(len(wide_room)), labels.split(len(wide_room)), strict=True):
        slopes = wide_room[: len(part)].copy_(part).add_(bias)
        total += _loss_and_slopes(slopes, answers)
        if grad_bias is not None:
            grad_bias += slopes.sum(dim=0).to(bias.dtype)
            part.copy_(slopes)
    return total


def _to_slopes_of(model: nn.Module) -> ToSlopes:
    """Return how this model's logits become slopes: in loops or kernels of this package, or call by call."""
    ways: dict[str, ToSlopes] = {"native": _to_slopes_in_loops, "triton": _to_slopes_in_kernels}
    return ways.get(getattr(model, "backend", ""), _to_slopes)


def _to_slopes_in_loops(
    logits: Float[Tensor, "rows V"], bias: Tensor, labels: Tensor, grad_bias: Tensor | None, wide_room: Tensor
) -> float:
    return calls.cross_entropy_(logits, bias, labels, grad_bias)


def _to_slopes_in_kernels(
    logits: Float[Tensor, "rows V"], bias: Tensor, labels: Tensor, grad_bias: Tensor | None, wide_room: Tensor
) -> Tensor:
    from modernbert.kernels.cross_entropy import cross_entropy_

    with torch.cuda.device_of(logits):
        total = cross_entropy_(logits, bias, labels, slopes=grad_bias is not None)
    if grad_bias is not None:
        grad_bias += logits.sum(dim=0, dtype=grad_bias.dtype)
    return total


def _loss_and_slopes(logits: Float[Tensor, "rows V"], labels: Int64[Tensor, " rows"]) -> Float[Tensor, ""]:
    """Return the summed cross entropy, and turn the logits into its gradient where they are."""
    picked = logits.gather(1, labels[:, None])
    peaks = logits.amax(dim=-1, keepdim=True)
    sums = logits.sub_(peaks).exp_().sum(dim=-1, keepdim=True)
    logits.div_(sums)
    logits[torch.arange(len(logits), device=logits.device), labels] -= 1
    return (sums.log() + peaks - picked).sum()


def _add_in_pieces(total: Float[Tensor, "V D"], part: Float[Tensor, "V D"], room: Tensor) -> None:
    """Add a tensor of another dtype, widened a piece at a time: on a CPU torch's own mixed sum is many times slower."""
    if part.dtype == total.dtype:
        total += part
        return
    flat = room.flatten()
    size = max(1, flat.numel() // total.shape[1])
    for target, piece in zip(total.split(size), part.split(size), strict=True):
        target += flat[: piece.numel()].view_as(piece).copy_(piece)


def label_error(weights: Float[Tensor, " labels"] | None = None) -> Callable[[nn.Module, Batch], tuple[Tensor, Any]]:
    """Return the loss that sums the cross entropy of the batch's labels, in float32, each row by its label's weight.

    With weights the count is their sum, so that the mean is weighted too.
    """

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        labels = _labels(batch)
        total = F.cross_entropy(model(batch).float(), labels, weight=weights, reduction="sum")
        return total, batch.num_labels if weights is None else float(weights[labels].sum())

    return loss


def squared_error(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], int]:
    """Sum the squared errors of one score a row, in float32."""
    return F.mse_loss(model(batch).float()[:, 0], _labels(batch), reduction="sum"), batch.num_labels


def binary_error(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], int]:
    """Sum the binary cross entropy of each score against a label from 0 to 1, in float32; one or several a row.

    Source: the loss of cross-encoders in sentence-transformers, and of several labels in transformers.
    """
    labels = _labels(batch)
    scores = model(batch).float().reshape(labels.shape)
    return F.binary_cross_entropy_with_logits(scores, labels, reduction="sum"), labels.numel()


def choice_error(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], int]:
    """Sum, over questions, the cross entropy of the right choice among a question's own, in float32.

    Labels are (question, 1 or 0) for each document; those of one question stand together.
    """
    labels = _labels(batch)
    scores = model(batch).float()[:, 0]
    _, sizes = labels[:, 0].unique_consecutive(return_counts=True)
    parts = sizes.tolist()
    losses = [
        F.cross_entropy(mine[None], right.argmax()[None], reduction="sum")
        for mine, right in zip(scores.split(parts), labels[:, 1].split(parts), strict=True)
    ]
    return torch.stack(losses).sum(), len(parts)


def extract_error(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], int]:
    """Sum, over documents, the cross entropy of the right first and last token among all of the document's, halved.

    Labels are (first, last) for each document. Source: the loss of question answering in transformers, without padding.
    """
    labels = _labels(batch)
    losses = [
        F.cross_entropy(mine.T, right, reduction="sum")
        for mine, right in zip(model(batch).float().split(list(batch.layout.lengths)), labels, strict=True)
    ]
    return torch.stack(losses).sum() / 2, len(losses)


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
    return tell_apart(unit[:num_queries] @ unit[num_queries:].T / temperature)


def tell_apart(scores: Float[Tensor, "Q P"], known: Bool[Tensor, "Q P"] | None = None) -> tuple[Float[Tensor, ""], int]:
    """Sum the cross entropy of each query's own passage, number i of query i, among all that are not known to fit."""
    own = torch.arange(len(scores), device=scores.device)
    if known is not None:
        others = known.clone()
        others[own, own] = False
        scores = scores.masked_fill(others, float("-inf"))
    return F.cross_entropy(scores, own, reduction="sum"), len(scores)


def _features(model: nn.Module, batch: Batch) -> Float[Tensor, "M D"]:
    """Return what the decoder sees of the masked rows, in the precision it multiplies in."""
    features: Tensor = model.features(batch)  # type: ignore[operator]
    device = features.device.type
    return features.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else features


def _masked(batch: Batch) -> Tensor:
    if batch.where is None or batch.labels is None:
        raise InputError("masked language modelling: the batch names no masked rows, expected where and labels")
    return batch.labels


def _labels(batch: Batch) -> Tensor:
    if batch.labels is None:
        raise InputError("the batch has no labels, expected one for each row that is scored")
    return batch.labels
