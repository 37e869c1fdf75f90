"""Attention over a ragged stream: five backends behind one call.

In: a `SequenceLengths` and a window, then queries, keys and values [T, 3, H, K] as they leave their projection. Out:
[T, H, K].
`prepare` makes from the layout what all layers of one kind share (masks, groups of documents, angles), and returns the
function that each layer calls.

- `triton`: kernels of this package on CUDA in half precision: rotary positions in place, so what is given is used up;
  local layers block by block of the stream, and global ones of short documents; of longer ones the flash kernels. They
  come with their own norms and GeGLU (`operations`).
- `native`: loops of this package, compiled where they run, on a CPU: rotary positions, scores and mixing in one pass
  over documents as they lie. They come with their own products, norms and GeGLU (`operations`).
- `varlen`: flash kernels, on CUDA in half precision (`flash`).
- `banded`: everywhere. Local layers cut the stream into blocks of queries against their own band of keys, which is
  O(T x window); global layers run fused attention over documents grouped by length. No S x S tensor is ever held.
- `dense`: masked softmax over the whole stream, the reference the others are tested against.

A window (64, 64) lets a token see 64 tokens to each side and itself, 129 keys, never across documents (paper, 2.1.2).
"""

import functools
import importlib.util
import math
import sys
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from modernbert.batch import SequenceLengths
from modernbert.engines import flash_attention as flash
from modernbert.engines.banded_attention import attend_in_bands, cut_bands, cut_blocks
from modernbert.engines.cpu import build, calls
from modernbert.engines.flash_attention import Kernel, Window
from modernbert.errors import InputError
from modernbert.model.config import ModelConfig
from modernbert.model.rope import Rotation, rotate_heads

__all__ = ["BACKENDS", "FUSED", "Attend", "Window", "attend", "choose_backend", "kernels_obstacle", "prepare"]

Attend = Callable[[Tensor], Tensor]
Rotate = Callable[[Tensor, Rotation], tuple[Tensor, Tensor, Tensor]]

BACKENDS = ("triton", "varlen", "native", "banded", "dense")
# Those with which what stands between products (on a CPU they as well), and the optimizer, is this package's own too.
FUSED = ("triton", "native")

# Documents of one group are padded to the longest: at most this share of the group's tokens may be padding.
_GROUP_SLACK = 0.1
_GROUP_TOKENS = 16_384

# Mean length of documents from which on flash kernels are faster than going block by block of the stream.
_FLASH_LENGTH = 400


def prepare(
    backend: str,
    layout: SequenceLengths,
    window: Window,
    rotation: Rotation,
    dtype: torch.dtype,
    rotate: Rotate = rotate_heads,
) -> Attend:
    """Return attention for the layers of one kind: it takes queries, keys and values [T, 3, H, K], not yet rotated.

    A token attends within its document, to all tokens (`window=None`) or to those at most `window` away.
    """
    if backend == "native":
        cosines, sines = (part[:, 0] for part in rotation)
        return lambda qkv: calls.attend(qkv, cosines, sines, layout.cu_seqlens, window)
    if backend == "triton":
        return _triton(layout, window, rotation, dtype)
    kernel = _KERNELS[backend](layout, window, dtype)
    return lambda qkv: kernel(*rotate(qkv, rotation))


def attend(
    q: Float[Tensor, "T H K"],
    k: Float[Tensor, "T H K"],
    v: Float[Tensor, "T H K"],
    layout: SequenceLengths,
    window: Window,
    backend: str = "banded",
) -> Float[Tensor, "T H K"]:
    """Attend within documents without rotary positions: what `prepare` does for a layer, for anybody else."""
    angles = torch.zeros(len(q), 1, q.shape[-1] // 2, device=q.device)
    return prepare(backend, layout, window, (angles.cos(), angles), q.dtype)(torch.stack((q, k, v), dim=1))


def choose_backend(name: str, device: torch.device, dtype: torch.dtype, model: ModelConfig) -> str:
    """Turn `auto` into the fastest backend that runs here; check one that was asked for by name.

    Raises: InputError if the backend is unknown, or cannot run on this device, in this precision, for this model.
    """
    if name not in ("auto", *BACKENDS):
        raise InputError(f"backend: found {name!r}, expected auto, {', '.join(BACKENDS)}")
    obstacles = {
        "triton": lambda: _triton_obstacle(device, dtype, model),
        "varlen": lambda: flash.varlen_obstacle(device, dtype),
        "native": lambda: _native_obstacle(device, dtype, model),
    }
    if name == "auto":
        found = next((each for each, obstacle in obstacles.items() if obstacle() is None), "banded")
        wanted = "native" if device.type == "cpu" else "triton"
        if found != wanted and (found == "banded") == (device.type == "cpu"):
            print(f"attention {found}, since {wanted} {obstacles[wanted]()}", file=sys.stderr)
        return found
    obstacle = obstacles[name]() if name in obstacles else None
    if obstacle:
        raise InputError(f"backend: {name} {obstacle}; banded runs everywhere")
    return name


def _native_obstacle(device: torch.device, dtype: torch.dtype, model: ModelConfig) -> str | None:
    if device.type != "cpu":
        return f"needs a CPU, found {device.type}"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"computes in float32 or bfloat16, found {str(dtype).removeprefix('torch.')}"
    if model.head_width != calls.HEAD_WIDTH:
        return f"needs heads of width {calls.HEAD_WIDTH}, found {model.head_width}"
    if model.intermediate_size % calls.WIDTH_STEP:
        return f"needs an intermediate_size that divides by {calls.WIDTH_STEP}, found {model.intermediate_size}"
    return build.obstacle()


def _triton_obstacle(device: torch.device, dtype: torch.dtype, model: ModelConfig) -> str | None:
    obstacle = flash.varlen_obstacle(device, dtype)
    if obstacle:
        return obstacle
    if model.head_width & (model.head_width - 1) or not 16 <= model.head_width <= 128:
        return f"needs heads of width 16, 32, 64 or 128, found {model.head_width}"
    return kernels_obstacle(device)


@functools.cache
def kernels_obstacle(device: torch.device) -> str | None:
    """Return why no kernel can be made here: Triton comes with torch for CUDA, the C compiler it needs does not."""
    if importlib.util.find_spec("triton") is None:
        return "needs triton, which is not installed"
    try:
        from modernbert.engines.cuda import elementwise_kernels

        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(device):
            elementwise_kernels.geglu(torch.ones(1, 32, dtype=torch.bfloat16, device=device))
        return None
    except Exception as error:  # what a missing compiler, header or folder raises is a long list
        return f"fails here: {' '.join(str(error).split())[:120]}"


def _triton(layout: SequenceLengths, window: Window, rotation: Rotation, dtype: torch.dtype) -> Attend:
    from modernbert.engines.cuda import attention_kernels, rope_kernels

    cosines, sines = (part[:, 0] for part in rotation)
    assert window is None or window[0] == window[1], "the way back reads who sees whom from both sides"
    if window is None and layout.num_tokens >= _FLASH_LENGTH * layout.num_docs:
        kernel = flash.flash_attention(layout, window)
        return lambda qkv: kernel(*rope_kernels.split_rotated_qkv(qkv, cosines, sines))
    seen = attention_kernels.ranges(layout, window)
    return lambda qkv: attention_kernels.attend(qkv, cosines, sines, seen)


def _varlen(layout: SequenceLengths, window: Window, dtype: torch.dtype) -> Kernel:
    return flash.flash_attention(layout, window)


def _dense(layout: SequenceLengths, window: Window, dtype: torch.dtype) -> Kernel:
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


def _banded(layout: SequenceLengths, window: Window, dtype: torch.dtype) -> Kernel:
    return _banded_global(layout, dtype) if window is None else _banded_local(layout, window, dtype)


def _banded_local(layout: SequenceLengths, window: tuple[int, int], dtype: torch.dtype) -> Kernel:
    """Give each block of B queries the B + left + right keys its band can touch."""
    left, right = window
    block = max(left, right)
    band = left + block + right
    num_blocks = -(-layout.num_tokens // block)
    tail = num_blocks * block - layout.num_tokens
    mask = _band_mask(layout, window, block, tail).to(dtype)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries = F.pad(q, (0, 0, 0, 0, 0, tail))
        keys, values = (F.pad(x, (0, 0, 0, 0, left, right + tail)) for x in (k, v))
        if q.device.type == "cpu":
            return attend_in_bands(queries, keys, values, mask)[: q.shape[0]]
        keys, values = cut_bands(keys, band, block), cut_bands(values, band, block)
        mixed = F.scaled_dot_product_attention(cut_blocks(queries, block), keys, values, attn_mask=mask)
        return mixed.transpose(1, 2).flatten(0, 1)[: q.shape[0]]

    return attend


def _band_mask(
    layout: SequenceLengths, window: tuple[int, int], block: int, tail: int
) -> Float[Tensor, "blocks 1 B W"]:
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


def _banded_global(layout: SequenceLengths, dtype: torch.dtype) -> Kernel:
    """Run fused attention per group of documents of like length."""
    device = layout.cu_seqlens.device
    grouped = _groups(layout.lengths)
    order = [document for group in grouped for document in group]
    groups = [_Group([layout.lengths[i] for i in group], dtype, device) for group in grouped]
    sizes = [group.num_tokens for group in groups]
    rows = back = None
    if order != sorted(order):
        spans = torch.arange(layout.num_tokens).split(list(layout.lengths))
        rows = torch.cat([spans[i] for i in order]).to(device)
        back = torch.argsort(rows)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Cut all at once: the gradient of a cut is one concatenation, that of a slice a whole stream of zeros.
        parts = zip(groups, *(_take(x, rows, back).split(sizes) for x in (q, k, v)), strict=True)
        mixed = [group.attend(*part) for group, *part in parts]
        return _take(mixed[0] if len(mixed) == 1 else torch.cat(mixed), back, rows)

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
    """Documents of like length, end to end, attended to in one call."""

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
            # A slot of padding repeats its document's first token; the mask hides it from every query.
            slots = (ends - torch.tensor(lengths))[:, None] + offsets * real
            self.slots = slots.flatten().to(device)
            self.rows = real.flatten().nonzero().flatten().to(device)
            self.real = real.flatten()[:, None, None].to(device)
            self.mask = torch.zeros(real.shape).masked_fill(~real, -math.inf)[:, None, None, :].to(device, dtype)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries, keys, values = self._batch(q), self._batch(k), self._batch(v)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=self.mask)
        return _take(mixed.transpose(1, 2).flatten(0, 1), self.rows, self.slots, self.real)

    def _batch(self, x: Tensor) -> Tensor:
        """[tokens, H, K] -> [documents, H, S, K]."""
        slots = _take(x, self.slots, self.rows)
        return slots.unflatten(0, (self.size, self.longest)).transpose(1, 2)


def _take(x: Tensor, rows: Tensor | None, back: Tensor | None, real: Tensor | None = None) -> Tensor:
    """Return some rows of a tensor, or all of it where `rows` is None."""
    return x if rows is None else cast(Tensor, _Rows.apply(x, rows, back, real))


class _Rows(torch.autograd.Function):
    """Take rows, knowing for each row of the source which taken row returns its gradient.

    Autograd would add gradients up row by row, which costs more on a CPU than the attention between. `real` is zero for
    rows of the source that were not taken.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, back: Tensor, real: Tensor | None) -> Tensor:
        ctx.save_for_backward(back, real)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        back, real = ctx.saved_tensors
        taken = gradients[0].index_select(0, back)
        return (taken if real is None else taken * real), None, None, None


_KERNELS: dict[str, Callable[[SequenceLengths, Window, torch.dtype], Kernel]] = {
    "varlen": _varlen, "banded": _banded, "dense": _dense
}  # fmt: skip
