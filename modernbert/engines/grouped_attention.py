"""Global attention with torch: fused attention over groups of documents of similar length."""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from modernbert.batch import SequenceLengths

__all__ = ["plan_groups"]

# Documents of one group are padded to the longest: at most this share of the group's tokens may be padding.
_MAX_PADDING = 0.1
_MAX_GROUP_TOKENS = 16_384


def plan_groups(lengths: SequenceLengths, dtype: torch.dtype) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return attention over q, k, v [T, H, K] within whole documents."""
    device = lengths.cu_seqlens.device
    grouped = _group_documents(lengths.lengths)
    order = [document for group in grouped for document in group]
    groups = [_Group([lengths.lengths[i] for i in group], dtype, device) for group in grouped]
    sizes = [group.num_tokens for group in groups]
    rows = inverse = None
    if order != sorted(order):
        spans = torch.arange(lengths.num_tokens).split(list(lengths.lengths))
        rows = torch.cat([spans[i] for i in order]).to(device)
        inverse = torch.argsort(rows)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Use split, not slices: its backward pass is one concatenation, that of a slice a tensor of zeros.
        parts = zip(groups, *(_gather(x, rows, inverse).split(sizes) for x in (q, k, v)), strict=True)
        attn_out = [group.attend(*part) for group, *part in parts]
        return _gather(attn_out[0] if len(attn_out) == 1 else torch.cat(attn_out), inverse, rows)

    return attend


def _group_documents(lengths: tuple[int, ...]) -> list[list[int]]:
    """Group documents of similar length; groups and their documents are in the order of the stream."""
    groups: list[list[int]] = []
    tokens = 0
    for document in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        group = groups[-1] if groups else None
        longest = lengths[group[0]] if group else 0
        tokens += lengths[document]
        padded = (len(group) + 1) * longest if group else 0
        if group and padded <= _MAX_GROUP_TOKENS and padded - tokens <= _MAX_PADDING * padded:
            group.append(document)
        else:
            groups.append([document])
            tokens = lengths[document]
    return sorted((sorted(group) for group in groups), key=lambda group: group[0])


class _Group:
    """Documents of similar length, end to end, that attend in one call."""

    def __init__(self, lengths: list[int], dtype: torch.dtype, device: torch.device) -> None:
        self.size, self.longest, self.num_tokens = len(lengths), max(lengths), sum(lengths)
        self.slots: Tensor | None = None
        self.rows: Tensor | None = None
        self.real: Tensor | None = None
        self.mask: Tensor | None = None
        if min(lengths) < self.longest:
            offsets = torch.arange(self.longest)
            ends = torch.tensor(lengths).cumsum(0)
            real = offsets < torch.tensor(lengths)[:, None]
            # A padding slot repeats its document's first token; the mask hides it from every query.
            slots = (ends - torch.tensor(lengths))[:, None] + offsets * real
            self.slots = slots.flatten().to(device)
            self.rows = real.flatten().nonzero().flatten().to(device)
            self.real = real.flatten()[:, None, None].to(device)
            self.mask = torch.zeros(real.shape).masked_fill(~real, -torch.inf)[:, None, None, :].to(device, dtype)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries, keys, values = self._pad(q), self._pad(k), self._pad(v)
        attn_out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=self.mask)
        return _gather(attn_out.transpose(1, 2).flatten(0, 1), self.rows, self.slots, self.real)

    def _pad(self, x: Tensor) -> Tensor:
        """[tokens, H, K] -> [documents, H, S, K]."""
        slots = _gather(x, self.slots, self.rows)
        return slots.unflatten(0, (self.size, self.longest)).transpose(1, 2)


def _gather(x: Tensor, rows: Tensor | None, inverse: Tensor | None, real: Tensor | None = None) -> Tensor:
    """Return rows of a tensor, or all of it where `rows` is None."""
    return x if rows is None else cast(Tensor, _GatherRows.apply(x, rows, inverse, real))


class _GatherRows(torch.autograd.Function):
    """Gather rows, given for each row of the source the gathered row that returns its gradient.

    Autograd would scatter gradients row by row, which costs more on a CPU than the attention between. `real` is zero
    for rows of the source that were not gathered.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, inverse: Tensor, real: Tensor | None) -> Tensor:
        ctx.save_for_backward(inverse, real)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        inverse, real = ctx.saved_tensors
        grad = gradients[0].index_select(0, inverse)
        return (grad if real is None else grad * real), None, None, None
