"""The flash engine: FlashAttention over documents of varying length, on CUDA in half precision; the rest with torch.

torch includes FlashAttention 2. FlashAttention 3 is called through torch, FlashAttention 4 through its own package
(torch expects another release of it). Source: `torch.nn.attention.varlen`, `flash_attn.cute`.
"""

import functools
import importlib.util
import inspect
import logging
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from modernbert.batch import SequenceLengths
from modernbert.devices import dtype_name
from modernbert.engines.compiled_blocks import compile_blocks
from modernbert.engines.engine import AttentionFn, AttentionKernel, Engine, Rope, RopeAttention, Window
from modernbert.model.config import ModelConfig

if TYPE_CHECKING:
    from modernbert.engines.inference_plan import InferencePlan
    from modernbert.model.encoder import Encoder

__all__ = ["FlashEngine", "flash_attention", "flash_unavailable_reason", "flash_version", "varlen_kernel"]

logger = logging.getLogger("modernbert")

_FA4, _FA4_CAPABILITIES = "flash_attn.cute", (9, 10)
_FA3, _FA3_CAPABILITIES = "flash_attn_interface", (9,)
# Mean tokens per document from which the forward pass of FlashAttention 4 is faster than that of torch.
_LONG = 768


class FlashEngine(Engine):
    """Attend with FlashAttention, and compute the rest with torch."""

    name = "flash"
    device_type = "cuda"
    preference = 3

    def unavailable_reason(self, device: torch.device, dtype: torch.dtype, config: ModelConfig) -> str | None:
        """Return why FlashAttention does not run there."""
        return flash_unavailable_reason(device, dtype)

    def plan_attention(self, lengths: SequenceLengths, window: Window, rope: Rope, dtype: torch.dtype) -> AttentionFn:
        """Return RoPE with torch, then FlashAttention."""
        return RopeAttention(rope, flash_attention(lengths, window))

    def compile_blocks(self, encoder: "Encoder", dtype: torch.dtype) -> str | None:
        """Compile the blocks with `torch.compile`, all but attention."""
        return compile_blocks(encoder, dtype)

    def inference_plan(self, encoder: "Encoder", dtype: torch.dtype) -> "InferencePlan | None":
        """Return CUDA graphs of short batches."""
        from modernbert.engines.cuda.cuda_graphs import CudaGraphs

        return CudaGraphs()


def flash_attention(lengths: SequenceLengths, window: Window) -> AttentionKernel:
    """Return attention within documents by the newest kernels that are installed and faster."""
    offsets, longest = lengths.cu_seqlens, lengths.max_seqlen
    newest = _newest(offsets.device)[1]  # a tensor's device has an index

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        gains = torch.is_grad_enabled() or lengths.num_tokens >= _LONG * lengths.num_docs
        return (newest if gains else _by_torch)(q, k, v, offsets, longest, window)

    return attend


def flash_unavailable_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why FlashAttention does not run there, or None if it does."""
    if device.type != "cuda":
        return f"needs a CUDA device, found {device.type}"
    if "window_size" not in inspect.signature(varlen_kernel()).parameters:
        return f"needs a torch whose varlen_attn has a window, found torch {torch.__version__}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"computes in float16 or bfloat16, found {dtype_name(dtype)}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs compute capability 8.0 or newer"
    return None


def varlen_kernel() -> Callable[..., Any]:
    """Return torch's kernel. The import is late: it imports torch's compiler, which takes most of a second."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


def flash_version(device: torch.device) -> int:
    """Return the newest FlashAttention that runs on a device."""
    return _newest(device)[0]


def _by_torch(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int, window: Window) -> Tensor:
    # -1: unlimited.
    return varlen_kernel()(q, k, v, offsets, offsets, longest, longest, window_size=window or (-1, -1))


def _by_fa4(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int, window: Window) -> Tensor:
    from flash_attn.cute import flash_attn_varlen_func

    attn_out = flash_attn_varlen_func(
        q, k, v, cu_seqlens_q=offsets, cu_seqlens_k=offsets, max_seqlen_q=longest, max_seqlen_k=longest,
        window_size=window or (None, None),
    )  # fmt: skip
    return cast(Tensor, attn_out[0] if isinstance(attn_out, tuple) else attn_out)


@functools.cache
def _newest(device: torch.device) -> tuple[int, Callable[..., Tensor]]:
    """Choose once, and log a choice other than torch's own kernels.

    FlashAttention 3 is enabled for the whole process: torch has no narrower switch.
    """
    if device.type != "cuda":
        return 2, _by_torch
    major = torch.cuda.get_device_capability(device)[0]
    try:
        if major in _FA4_CAPABILITIES and _is_installed(_FA4):
            # It warns about its own argument for every kernel that it compiles.
            warnings.filterwarnings("ignore", message="Argument aux_data", category=UserWarning)
            _try(_by_fa4, device)
            logger.warning("long documents use FlashAttention 4")
            return 4, _by_fa4
        if major in _FA3_CAPABILITIES and _is_installed(_FA3):
            from torch.nn import attention

            attention.activate_flash_attention_impl("FA3")  # type: ignore[attr-defined]
            _try(_by_torch, device)
            logger.warning("long documents use FlashAttention 3, in the whole process")
            return 3, _by_torch
    except Exception as error:  # another release, or a broken one, can raise anything
        logger.warning(
            "a newer FlashAttention is installed but fails, torch's is used: %s", " ".join(str(error).split())[:120]
        )
    return 2, _by_torch


def _try(kernel: Callable[..., Tensor], device: torch.device) -> None:
    """Run one forward and backward pass."""
    with torch.inference_mode(False), torch.enable_grad():
        q, k, v = (torch.ones(16, 1, 64, dtype=torch.bfloat16, device=device, requires_grad=True) for _ in range(3))
        offsets = torch.tensor([0, 16], dtype=torch.int32, device=device)
        kernel(q, k, v, offsets, 16, None).sum().backward()


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
