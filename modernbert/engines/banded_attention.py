"""Local attention with torch: blocks of queries against bands of keys, with a backward pass for overlapping bands.

torch's fused attention computes the forward pass. Its backward pass is slow for bands on a CPU: it recomputes every
block against its band twice, and adds overlapping bands row by row. Batched GEMMs take half the time.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from modernbert.batch import SequenceLengths

__all__ = ["plan_bands"]

# Blocks per GEMM: their scores, 64 queries by 192 keys each, fit a core's cache.
_CHUNK_BLOCKS = 32


def plan_bands(
    lengths: SequenceLengths, window: tuple[int, int], dtype: torch.dtype
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return attention over q, k, v [T, H, K]: B queries attend to the B + left + right keys of their band."""
    left, right = window
    block = max(left, right)
    band = left + block + right
    tail = -lengths.num_tokens % block
    mask = _band_mask(lengths, window, block, tail).to(dtype)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries = F.pad(q, (0, 0, 0, 0, 0, tail))
        keys, values = (F.pad(x, (0, 0, 0, 0, left, right + tail)) for x in (k, v))
        if q.device.type == "cpu":
            attn_out: Tensor = _BandedAttention.apply(queries, keys, values, mask)
        else:
            attn_out = _attend(queries, _cut_bands(keys, band, block), _cut_bands(values, band, block), mask)
        return attn_out[: q.shape[0]]

    return attend


def _band_mask(
    lengths: SequenceLengths, window: tuple[int, int], block: int, tail: int
) -> Float[Tensor, "blocks 1 B W"]:
    """Return 0 where a query of a block attends to a key of its band, minus infinity elsewhere.

    Padding counts as one more document, so that every row has a key: a row of minus infinities would give NaN.
    """
    left, right = window
    doc_ids = lengths.doc_ids()
    queries = F.pad(doc_ids, (0, tail), value=-1).unflatten(0, (-1, block))
    keys = F.pad(doc_ids, (left, right + tail), value=-1).unfold(0, left + block + right, block)
    offset = torch.arange(left + block + right, device=doc_ids.device) - left
    offset = offset[None, :] - torch.arange(block, device=doc_ids.device)[:, None]
    allowed = (queries[:, :, None] == keys[:, None, :]) & (offset >= -left) & (offset <= right)
    return torch.zeros(allowed.shape, device=doc_ids.device).masked_fill(~allowed, -math.inf)[:, None]


def _attend(
    q: Float[Tensor, "queries H K"], keys: Float[Tensor, "N H W K"], values: Float[Tensor, "N H W K"], mask: Tensor
) -> Float[Tensor, "queries H K"]:
    blocks = q.unflatten(0, (len(keys), -1)).transpose(1, 2)
    return F.scaled_dot_product_attention(blocks, keys, values, attn_mask=mask).transpose(1, 2).flatten(0, 1)


def _cut_bands(x: Float[Tensor, "L H K"], band: int, block: int) -> Float[Tensor, "N H W K"]:
    """Return a band of rows for each block: a view in which bands overlap."""
    return x.unfold(0, band, block).transpose(2, 3)


class _BandedAttention(torch.autograd.Function):
    """Save the inputs, and recompute the scores in the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v, mask)
        block, band = mask.shape[-2:]
        return _attend(q, _cut_bands(k, band, block), _cut_bands(v, band, block), mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, mask = ctx.saved_tensors
        num_blocks, _, block, band = mask.shape
        grad_q = torch.empty_like(q)
        # Whole blocks, since bands are added block by block.
        grad_k, grad_v = (x.new_zeros(num_blocks + -(-band // block), block, *x.shape[1:]) for x in (k, v))
        for head in range(q.shape[1]):
            queries, grads = (x[:, head].contiguous().unflatten(0, (-1, block)) for x in (q, grad))
            keys, values = (x[:, head].contiguous().unfold(0, band, block) for x in (k, v))  # [N, K, W]
            for start in range(0, num_blocks, _CHUNK_BLOCKS):
                part = slice(start, start + _CHUNK_BLOCKS)
                weights, grad_scores = _scores_backward(
                    queries[part], keys[part], values[part], grads[part], mask[part, 0]
                )
                rows = slice(start * block, (start + len(weights)) * block)
                grad_q[rows, head] = (grad_scores @ keys[part].transpose(1, 2)).flatten(0, 1)
                _add_bands(grad_k[start:, :, head], grad_scores.transpose(1, 2) @ queries[part])
                _add_bands(grad_v[start:, :, head], weights.transpose(1, 2) @ grads[part])
        return grad_q, grad_k.flatten(0, 1)[: len(k)], grad_v.flatten(0, 1)[: len(v)], None


def _scores_backward(
    queries: Float[Tensor, "n B K"],
    keys: Float[Tensor, "n K W"],
    values: Float[Tensor, "n K W"],
    grads: Float[Tensor, "n B K"],
    mask: Float[Tensor, "n B W"],
) -> tuple[Float[Tensor, "n B W"], Float[Tensor, "n B W"]]:
    """Return the attention weights and the gradient of the scores, computed in float32 or wider."""
    scale = queries.shape[-1] ** -0.5
    wide = torch.promote_types(queries.dtype, torch.float32)
    scores = torch.bmm(queries.to(wide), keys.to(wide)).mul_(scale).add_(mask)
    weights = torch.softmax(scores, dim=-1)
    grad_scores = torch.bmm(grads, values).to(wide)
    grad_scores.sub_((grad_scores * weights).sum(dim=-1, keepdim=True)).mul_(weights).mul_(scale)
    return weights.to(queries.dtype), grad_scores.to(queries.dtype)


def _add_bands(target: Float[Tensor, "blocks B K"], bands: Float[Tensor, "n W K"]) -> None:
    """Add band i to the blocks from block i on."""
    block = target.shape[1]
    for number, piece in enumerate(bands.split(block, dim=1)):
        target[number : number + len(bands), : piece.shape[1]] += piece
