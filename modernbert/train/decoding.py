"""From what the decoder sees to the loss, and back: the widest product of a model, a chunk of rows at a time.

In: rows [M, D], the decoder's weights [V, D], labels. Out: the summed cross entropy, with gradients. A file of its own
because the products and the softmax over the vocabulary are torch's, or loops or kernels of this package.
"""

from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from modernbert.model.operations import can_multiply
from modernbert.native import calls

__all__ = ["CHUNK_ROWS", "GPU_CHUNK_ROWS", "decoded_loss"]

# Rows whose logits are in memory at a time, in the precision of the product: 98 MiB of bfloat16 at 50,368 entries on a
# CPU, 787 on a GPU, where adding up the gradients of that many entries costs more than it does there.
CHUNK_ROWS = 1024
GPU_CHUNK_ROWS = 8192
# Of those, rows that are in float32 at a time: few where that is a cache's size, many where a kernel wants work.
WIDE_ROWS = 64
GPU_WIDE_ROWS = 1024


def decoded_loss(
    rows: Float[Tensor, "M D"], weight: Float[Tensor, "V D"], bias: Float[Tensor, " V"], labels: Int64[Tensor, " M"],
    backend: str,
) -> Float[Tensor, ""]:  # fmt: skip
    """Return the summed cross entropy of `rows @ weight.T + bias`, in float32 or wider.

    A chunk's gradients are made as soon as its logits are there, so that neither has to be kept or made twice; all that
    backward does is to scale them. Source: the same idea in Cut Cross-Entropy (Wijmans et al. 2024) and Liger Kernel.
    """
    total: Tensor = _DecodedLoss.apply(rows, weight, bias, labels.long(), backend, torch.is_grad_enabled())
    return total


class _DecodedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, backend: str, with_gradients: bool
    ) -> Tensor:
        wide = torch.promote_types(rows.dtype, torch.float32)
        needs_gradients = with_gradients and any(ctx.needs_input_grad)
        total = torch.zeros((), dtype=wide, device=rows.device)
        grad_rows, grad_weight, grad_bias = (
            x.new_zeros(x.shape if needs_gradients else 0) for x in (rows, weight, bias)
        )
        # One room for all chunks, worked on in place: on a CPU, new memory of this size costs more than the arithmetic.
        on_cpu = rows.device.type == "cpu"
        size = min(CHUNK_ROWS if on_cpu else GPU_CHUNK_ROWS, len(rows))
        wide_size = min(WIDE_ROWS if on_cpu else GPU_WIDE_ROWS, size)
        room = rows.new_empty(size, len(weight))
        wide_room = torch.empty(wide_size, len(weight), dtype=wide, device=rows.device)
        decoder = _decoder_of(backend, weight)(weight, rows.dtype, wide_room)
        for start in range(0, len(rows), max(1, size)):
            chunk, expected = rows[start : start + size], labels[start : start + size]
            logits = decoder.logits_(room[: len(chunk)], chunk)
            total += decoder.to_slopes_(logits, bias, expected, grad_bias if needs_gradients else None)
            if needs_gradients:
                decoder.grad_rows_(grad_rows[start : start + size], logits)
                decoder.add_grad_weight_(grad_weight, logits, chunk)
        ctx.save_for_backward(grad_rows, grad_weight, grad_bias)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grads = ctx.saved_tensors
        # On a CPU it costs nothing to ask whether the loss is what is differentiated, which it mostly is.
        if upstream.device.type != "cpu" or upstream != 1:
            grads = tuple(grad * upstream.to(grad.dtype) for grad in grads)
        return (*grads, None, None, None)


class _Decoder:
    """What is computed of a chunk, call by call of torch. "Slopes" are the gradient of the logits."""

    def __init__(self, weight: Float[Tensor, "V D"], dtype: torch.dtype, wide_room: Float[Tensor, "rows V"]) -> None:
        self.weight = weight
        self.dtype = dtype
        self.wide_room = wide_room

    def logits_(self, out: Float[Tensor, "rows V"], rows: Float[Tensor, "rows D"]) -> Tensor:
        """Fill in the logits, still without bias."""
        return torch.mm(rows, self._narrow.T, out=out)

    def to_slopes_(
        self, logits: Float[Tensor, "rows V"], bias: Tensor, labels: Tensor, grad_bias: Tensor | None
    ) -> Tensor | float:
        """Return the summed cross entropy; with `grad_bias`, turn the logits into slopes, and add the bias's up."""
        wide_room = self.wide_room
        total = torch.zeros((), dtype=wide_room.dtype, device=logits.device)
        for part, answers in zip(logits.split(len(wide_room)), labels.split(len(wide_room)), strict=True):
            slopes = wide_room[: len(part)].copy_(part).add_(bias)
            total += _loss_and_slopes(slopes, answers)
            if grad_bias is not None:
                grad_bias += slopes.sum(dim=0).to(bias.dtype)
                part.copy_(slopes)
        return total

    def grad_rows_(self, out: Float[Tensor, "rows D"], slopes: Float[Tensor, "rows V"]) -> None:
        """Fill in the gradient of the rows."""
        torch.mm(slopes, self._narrow, out=out)

    def add_grad_weight_(self, total: Tensor, slopes: Float[Tensor, "rows V"], rows: Float[Tensor, "rows D"]) -> None:
        """Add the gradient of the weights to those of other chunks."""
        _add_in_pieces(total, torch.mm(slopes.T, rows, out=self._product), self.wide_room)

    @cached_property
    def _narrow(self) -> Float[Tensor, "V D"]:
        return self.weight.to(self.dtype)

    @cached_property
    def _product(self) -> Float[Tensor, "V D"]:
        return torch.empty_like(self._narrow)


class _DecoderInKernels(_Decoder):
    def to_slopes_(self, logits: Tensor, bias: Tensor, labels: Tensor, grad_bias: Tensor | None) -> Tensor:
        from modernbert.kernels.cross_entropy import cross_entropy_

        with torch.cuda.device_of(logits):
            total = cross_entropy_(logits, bias, labels, slopes=grad_bias is not None)
        if grad_bias is not None:
            grad_bias += logits.sum(dim=0, dtype=grad_bias.dtype)
        return total


class _DecoderInLoops(_Decoder):
    def to_slopes_(self, logits: Tensor, bias: Tensor, labels: Tensor, grad_bias: Tensor | None) -> float:
        return calls.cross_entropy_(logits, bias, labels, grad_bias)


class _DecoderInStrips(_DecoderInLoops):
    """The products in loops, too: of widths that they take."""

    def logits_(self, out: Tensor, rows: Tensor) -> Tensor:
        return calls.multiply_(out, rows, self._outputs)

    def grad_rows_(self, out: Tensor, slopes: Tensor) -> None:
        calls.multiply_(out, slopes, self._inputs)

    def add_grad_weight_(self, total: Tensor, slopes: Tensor, rows: Tensor) -> None:
        calls.multiply_(total, slopes, calls.pack_weight(rows), transposed=True, add=True)

    @cached_property
    def _outputs(self) -> Tensor:
        return calls.pack_weight(self.weight, self.dtype, transposed=True)

    @cached_property
    def _inputs(self) -> Tensor:
        return calls.pack_weight(self.weight, self.dtype)


def _decoder_of(backend: str, weight: Float[Tensor, "V D"]) -> type[_Decoder]:
    """Return how the logits of a model with an attention backend are computed."""
    if backend == "native":
        return _DecoderInStrips if can_multiply(*weight.shape) else _DecoderInLoops
    return _DecoderInKernels if backend == "triton" else _Decoder


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
