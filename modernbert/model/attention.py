"""Attention over a ragged stream: three backends behind one call.

In: a `Layout` and a window, then queries, keys and values [T, H, K]. Out: [T, H, K]. A backend first makes from the
layout what all layers of one kind share (masks, groups of documents), and returns the function that each layer calls.

- `varlen`: the flash kernels of core torch, on CUDA in half precision.
- `banded`: everywhere. Local layers cut the stream into blocks of queries against their own band of keys, O(T x window);
  global layers run fused attention over documents grouped by length. No S x S tensor is ever held.
- `dense`: masked softmax over the whole stream, the reference the others are tested against.

A window (64, 64) lets a token see 64 tokens to each side and itself, 129 keys, never across documents (paper, 2.1.2).
"""

import inspect
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from modernbert.errors import InputError
from modernbert.ragged import Layout

__all__ = ["BACKENDS", "Attend", "Window", "attend", "choose_backend"]

Window = tuple[int, int] | None
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Backend = Callable[[Layout, Window, torch.dtype], Attend]

# Documents of one group are padded to the longest: at most this share of the group's tokens may be padding.
_GROUP_SLACK = 0.1
_GROUP_TOKENS = 16_384


def attend(
    q: Float[Tensor, "T H K"],
    k: Float[Tensor, "T H K"],
    v: Float[Tensor, "T H K"],
    layout: Layout,
    window: Window,
    backend: str = "banded",
) -> Float[Tensor, "T H K"]:
    """Attend within documents, to all tokens (`window=None`) or to those at most `window` away."""
    return BACKENDS[backend](layout, window, q.dtype)(q, k, v)


def choose_backend(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Turn `auto` into the fastest backend that runs here; check one that was asked for by name.

    Raises: InputError if the backend is unknown, or cannot run on this device and in this precision.
    """
    obstacle = _varlen_obstacle(device, dtype)
    if name == "auto":
        return "banded" if obstacle else "varlen"
    if name not in BACKENDS:
        raise InputError(f"backend: found {name!r}, expected auto, {', '.join(BACKENDS)}")
    if name == "varlen" and obstacle:
        raise InputError(f"backend: varlen {obstacle}; banded runs everywhere")
    return name


def _varlen_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    if "window_size" not in inspect.signature(varlen_attn).parameters:
        return f"needs a torch whose varlen_attn has a window, found torch {torch.__version__}"
    if device.type != "cuda":
        return f"needs a CUDA device, found {device.type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"computes in float16 or bfloat16, found {str(dtype).removeprefix('torch.')}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs compute capability 8.0 or newer"
    return None


def _varlen(layout: Layout, window: Window, dtype: torch.dtype) -> Attend:
    offsets, longest = layout.cu_seqlens, layout.max_seqlen

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # -1 is the kernel's word for an open side.
        return varlen_attn(q, k, v, offsets, offsets, longest, longest, window_size=window or (-1, -1))

    return attend


def _dense(layout: Layout, window: Window, dtype: torch.dtype) -> Attend:
    doc_ids = layout.doc_ids()
    allowed = doc_ids[:, None] == doc_ids[None, :]
    if window is not None:
        positions = layout.positions
        offset = positions[None, :] - positions[:, None]
        allowed &= (offset >= -window[0]) & (offset <= window[1])

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.einsum("qhk,shk->hqs", q, k) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~allowed, -math.inf).softmax(dim=-1)
        return torch.einsum("hqs,shk->qhk", weights, v)

    return attend


def _banded(layout: Layout, window: Window, dtype: torch.dtype) -> Attend:
    return _banded_global(layout, dtype) if window is None else _banded_local(layout, window, dtype)


def _banded_local(layout: Layout, window: tuple[int, int], dtype: torch.dtype) -> Attend:
    """Give each block of B queries the B + left + right keys its band can touch."""
    left, right = window
    block = max(left, right)
    band = left + block + right
    num_blocks = -(-layout.num_tokens // block)
    tail = num_blocks * block - layout.num_tokens
    mask = _band_mask(layout, window, block, tail).to(dtype)

    def bands(x: Tensor) -> Tensor:
        """Cut [T, H, K] into overlapping bands [blocks, H, band, K], a view of one padded copy."""
        return F.pad(x, (0, 0, 0, 0, left, right + tail)).unfold(0, band, block).transpose(2, 3)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries = F.pad(q, (0, 0, 0, 0, 0, tail)).unflatten(0, (num_blocks, block)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(queries, bands(k), bands(v), attn_mask=mask)
        return mixed.transpose(1, 2).flatten(0, 1)[: q.shape[0]]

    return attend


def _band_mask(layout: Layout, window: tuple[int, int], block: int, tail: int) -> Float[Tensor, "blocks 1 B W"]:
    """Return 0 where a query of a block may see a key of its band, minus infinity elsewhere.

    Padding counts as one more document, so that no row is without a key: a row of minus infinities would be NaN.
    """
    left, right = window
    doc_ids = layout.doc_ids()
    queries = F.pad(doc_ids, (0, tail), value=-1).unflatten(0, (-1, block))
    keys = F.pad(doc_ids, (left, right + tail), value=-1).unfold(0, left + block + right, block)
    offset = torch.arange(left + block + right, device=doc_ids.device) - left
    offset = offset[None, :] - torch.arange(block, device=doc_ids.device)[:, None]
    allowed = (queries[:, :, None] == keys[:, None, :]) & (offset >= -left) & (offset <= right)
    return torch.zeros(allowed.shape, device=doc_ids.device).masked_fill(~allowed, -math.inf)[:, None]


def _banded_global(layout: Layout, dtype: torch.dtype) -> Attend:
    """Run fused attention per group of documents of like length."""
    device = layout.cu_seqlens.device
    groups = _groups(layout.lengths)
    starts = [0]
    for length in layout.lengths:
        starts.append(starts[-1] + length)
    plans = [_Group(group, starts, dtype, device) for group in groups]
    order = [document for group in groups for document in group]
    rows = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in order])
    back = None if order == sorted(order) else torch.argsort(rows).to(device)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = [plan.attend(q, k, v) for plan in plans]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts)
        return joined if back is None else joined.index_select(0, back)

    return attend


def _groups(lengths: tuple[int, ...]) -> list[list[int]]:
    """Put documents of like length together; long documents stand alone, in the order of the stream."""
    groups: list[list[int]] = []
    tokens = 0
    for document in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        group = groups[-1] if groups else None
        longest = lengths[group[0]] if group else 0
        tokens += lengths[document]
        padded = (len(group) + 1) * longest if group else 0
        if group and padded <= _GROUP_TOKENS and padded - tokens <= _GROUP_SLACK * padded:
            group.append(document)
        else:
            groups.append([document])
            tokens = lengths[document]
    return sorted((sorted(group) for group in groups), key=lambda group: group[0])


class _Group:
    """Documents of like length, attended to in one call."""

    def __init__(self, documents: list[int], starts: list[int], dtype: torch.dtype, device: torch.device) -> None:
        lengths = [starts[i + 1] - starts[i] for i in documents]
        self.size, self.longest = len(documents), max(lengths)
        first, last = starts[documents[0]], starts[documents[-1] + 1]
        adjacent = documents == list(range(documents[0], documents[-1] + 1))
        equal = min(lengths) == self.longest
        self.span = (first, last) if adjacent and equal else None
        self.mask: Tensor | None = None
        if self.span is None:
            offsets = torch.arange(self.longest)
            real = offsets < torch.tensor(lengths)[:, None]
            # A padding slot repeats the document's first token; the mask hides it from every query.
            rows = torch.tensor([starts[i] for i in documents])[:, None] + offsets * real
            self.gather: Int64[Tensor, " slots"] = rows.flatten().to(device)
            self.keep: Int64[Tensor, " rows"] = real.flatten().nonzero().flatten().to(device)
            if not equal:
                hidden = torch.zeros(real.shape).masked_fill(~real, -math.inf)
                self.mask = hidden[:, None, None, :].to(device, dtype)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(*(self._batch(x) for x in (q, k, v)), attn_mask=self.mask)
        flat = mixed.transpose(1, 2).flatten(0, 1)
        return flat if self.span or self.mask is None else flat.index_select(0, self.keep)

    def _batch(self, x: Tensor) -> Tensor:
        """[T, H, K] -> [documents, H, S, K]."""
        rows = x[self.span[0] : self.span[1]] if self.span else x.index_select(0, self.gather)
        return rows.unflatten(0, (self.size, self.longest)).transpose(1, 2)


BACKENDS: dict[str, Backend] = {"varlen": _varlen, "banded": _banded, "dense": _dense}
