"""Local attention on a CPU, and a backward pass that is made for bands.

In: queries, keys and values of a stream, padded to whole blocks, and a mask. Out: the mixed values; on the way back the
gradients of all three. torch's fused attention does the way forward. Its way back goes over every pair of block and
band twice in vector arithmetic and then adds overlapping bands up row by row; batched products do the same in half the
time.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["attend_in_bands", "cut_bands", "cut_blocks"]

# Blocks worked on at a time: the scores of so many, 64 queries by 192 keys each, stay in a core's cache.
_BLOCKS_AT_A_TIME = 32


def cut_blocks(x: Float[Tensor, "L H K"], block: int) -> Float[Tensor, "N H B K"]:
    """Cut a stream into blocks; a view."""
    return x.unflatten(0, (-1, block)).transpose(1, 2)


def cut_bands(x: Float[Tensor, "L H K"], band: int, block: int) -> Float[Tensor, "N H W K"]:
    """Cut a stream into bands of W rows, one beginning at every block; a view in which bands overlap."""
    return x.unfold(0, band, block).transpose(2, 3)


def attend_in_bands(
    q: Float[Tensor, "queries H K"],
    k: Float[Tensor, "keys H K"],
    v: Float[Tensor, "keys H K"],
    mask: Float[Tensor, "N 1 B W"],
) -> Float[Tensor, "queries H K"]:
    """Let each of N blocks of B queries attend to the W keys from the same row on; the mask is added to the scores."""
    return cast(Tensor, _InBands.apply(q, k, v, mask))


class _InBands(torch.autograd.Function):
    """Keep what came in, and make the scores a second time on the way back: nothing of their size is held."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v, mask)
        block, band = mask.shape[-2:]
        keys, values = cut_bands(k, band, block), cut_bands(v, band, block)
        mixed = F.scaled_dot_product_attention(cut_blocks(q, block), keys, values, attn_mask=mask)
        return mixed.transpose(1, 2).flatten(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, mask = ctx.saved_tensors
        num_blocks, _, block, band = mask.shape
        grad_q = torch.empty_like(q)
        # Rounded up to whole blocks, for bands are added up block by block.
        grad_k, grad_v = (x.new_zeros(num_blocks + -(-band // block), block, *x.shape[1:]) for x in (k, v))
        for head in range(q.shape[1]):
            queries, grads = (x[:, head].contiguous().unflatten(0, (-1, block)) for x in (q, grad))
            # Each band lies on its side, [K, W].
            keys, values = (x[:, head].contiguous().unfold(0, band, block) for x in (k, v))
            for start in range(0, num_blocks, _BLOCKS_AT_A_TIME):
                part = slice(start, start + _BLOCKS_AT_A_TIME)
                weights, slopes = _scores_backward(queries[part], keys[part], values[part], grads[part], mask[part, 0])
                there = slice(start * block, (start + len(slopes)) * block)
                grad_q[there, head] = (slopes @ keys[part].transpose(1, 2)).flatten(0, 1)
                _add_bands(grad_k[start:, :, head], slopes.transpose(1, 2) @ queries[part])
                _add_bands(grad_v[start:, :, head], weights.transpose(1, 2) @ grads[part])
        return grad_q, grad_k.flatten(0, 1)[: len(k)], grad_v.flatten(0, 1)[: len(v)], None


def _scores_backward(
    queries: Float[Tensor, "n B K"],
    keys: Float[Tensor, "n K W"],
    values: Float[Tensor, "n K W"],
    grads: Float[Tensor, "n B K"],
    mask: Float[Tensor, "n B W"],
) -> tuple[Float[Tensor, "n B W"], Float[Tensor, "n B W"]]:
    """Return the weights, and the gradient of the products of queries and keys; in between in float32 or wider."""
    scale = queries.shape[-1] ** -0.5
    wide = torch.promote_types(queries.dtype, torch.float32)
    scores = torch.bmm(queries.to(wide), keys.to(wide)).mul_(scale).add_(mask)
    weights = torch.softmax(scores, dim=-1)
    slopes = torch.bmm(grads, values).to(wide)
    slopes.sub_((slopes * weights).sum(dim=-1, keepdim=True)).mul_(weights).mul_(scale)
    return weights.to(queries.dtype), slopes.to(queries.dtype)


def _add_bands(target: Float[Tensor, "blocks B K"], bands: Float[Tensor, "n W K"]) -> None:
    """Add bands to a stream cut into blocks, the first to its beginning, each next one a block further on."""
    block = target.shape[1]
    for number, piece in enumerate(bands.split(block, dim=1)):
        target[number : number + len(bands), : piece.shape[1]] += piece
