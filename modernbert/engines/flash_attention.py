"""The flash kernels of a GPU: which there are, and the newest that are installed.

In: a device, a precision, a layout. Out: attention over documents of varying length, or why it can't be had. Torch
brings FlashAttention 2 with it. FlashAttention 4 is called by its own package, since torch expects another release of
it than there is; FlashAttention 3 through torch. Source: `torch.nn.attention.varlen`, `flash_attn.cute`.
"""

import functools
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from modernbert.batch import SequenceLengths

__all__ = ["Kernel", "Window", "flash_attention", "flash_version", "varlen_kernel", "varlen_obstacle"]

Window = tuple[int, int] | None
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]

_FA4, _FA4_CAPABILITIES = "flash_attn.cute", (9, 10)
# Mean tokens of a document.
_LONG = 768
_FA3, _FA3_CAPABILITIES = "flash_attn_interface", (9,)


def flash_attention(layout: SequenceLengths, window: Window) -> Kernel:
    """Return attention within documents, q, k, v [T, H, K]: by the newest kernels where they are the faster ones."""
    offsets, longest = layout.cu_seqlens, layout.max_seqlen
    newest = _newest(offsets.device)[1]  # of a tensor, so its device has a number

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Without a way back, documents have to be long for FlashAttention 4 to be the faster one.
        gains = torch.is_grad_enabled() or layout.num_tokens >= _LONG * layout.num_docs
        return (newest if gains else _by_torch)(q, k, v, offsets, longest, window)

    return attend


def varlen_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why the kernels do not run there, or None if they do."""
    if device.type != "cuda":
        return f"needs a CUDA device, found {device.type}"
    if "window_size" not in inspect.signature(varlen_kernel()).parameters:
        return f"needs a torch whose varlen_attn has a window, found torch {torch.__version__}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"computes in float16 or bfloat16, found {str(dtype).removeprefix('torch.')}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs compute capability 8.0 or newer"
    return None


def varlen_kernel() -> Callable[..., Any]:
    """Return torch's kernel, imported when it is wanted: it brings torch's compiler with it, most of a second."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


def _by_torch(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int, window: Window) -> Tensor:
    # -1 is torch's word for an open side.
    return varlen_kernel()(q, k, v, offsets, offsets, longest, longest, window_size=window or (-1, -1))


def _by_fa4(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int, window: Window) -> Tensor:
    from flash_attn.cute import flash_attn_varlen_func

    mixed = flash_attn_varlen_func(
        q, k, v, cu_seqlens_q=offsets, cu_seqlens_k=offsets, max_seqlen_q=longest, max_seqlen_k=longest,
        window_size=window or (None, None),
    )  # fmt: skip
    return cast(Tensor, mixed[0] if isinstance(mixed, tuple) else mixed)


def flash_version(device: torch.device) -> int:
    """Return which FlashAttention is the newest that a GPU has."""
    return _newest(device)[0]


@functools.cache
def _newest(device: torch.device) -> tuple[int, Callable[..., Tensor]]:
    """Choose once, and say what was chosen where it is not what torch brings.

    FlashAttention 3 is switched on for the whole process, since torch knows no other way.
    """
    if device.type != "cuda":
        return 2, _by_torch
    major = torch.cuda.get_device_capability(device)[0]
    try:
        if major in _FA4_CAPABILITIES and _is_installed(_FA4):
            # It warns of an argument of its own at every kernel that it makes.
            warnings.filterwarnings("ignore", message="Argument aux_data", category=UserWarning)
            _try(_by_fa4, device)
            print("long documents go through FlashAttention 4", file=sys.stderr)
            return 4, _by_fa4
        if major in _FA3_CAPABILITIES and _is_installed(_FA3):
            from torch.nn import attention

            attention.activate_flash_attention_impl("FA3")  # type: ignore[attr-defined]
            _try(_by_torch, device)
            print("long documents go through FlashAttention 3, in this whole process", file=sys.stderr)
            return 3, _by_torch
    except Exception as error:  # another release, or a broken one, can raise anything; what torch brings does as well
        print(f"a newer FlashAttention is installed but fails: {' '.join(str(error).split())[:120]}", file=sys.stderr)
    return 2, _by_torch


def _try(kernel: Callable[..., Tensor], device: torch.device) -> None:
    """Attend forth and back once."""
    with torch.inference_mode(False), torch.enable_grad():
        q, k, v = (torch.ones(16, 1, 64, dtype=torch.bfloat16, device=device, requires_grad=True) for _ in range(3))
        offsets = torch.tensor([0, 16], dtype=torch.int32, device=device)
        kernel(q, k, v, offsets, 16, None).sum().backward()


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
