"""Blocks of an encoder compiled by `torch.compile`, for engines that compute all but attention with torch."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modernbert.batch import SequenceLengths
from modernbert.engines.engine import RopeAttention

if TYPE_CHECKING:
    from modernbert.model.encoder import Encoder

__all__ = ["compile_blocks"]


def compile_blocks(encoder: "Encoder", dtype: torch.dtype) -> str | None:
    """Compile RoPE and the operations around attention, for any number of tokens; return the reason if that fails.

    All blocks share their compiled functions. Attention stays as it is, since its kernels are compiled. Two forward and
    backward passes over a few tokens test the compiler.

    Source: paper, section 2.1.2 (compilation without attention, 10 % of throughput).
    """
    run_eagerly = torch.compiler.disable(lambda kernel, *qkv: kernel(*qkv))  # here: it imports the compiler

    class EagerKernel(RopeAttention):
        def __call__(self, qkv: Tensor) -> Tensor:
            return run_eagerly(self.kernel, *self.rotate(qkv))

    compiled = torch.compile(type(encoder.layers[0]).forward, dynamic=True)

    def forward(block: Any, residual: Tensor, x: Any, attend: RopeAttention, *rest: Any) -> Any:
        return compiled(block, residual, x, EagerKernel(attend.rope, attend.kernel), *rest)

    for block in encoder.layers:
        block.forward = forward.__get__(block)
    try:
        _check(encoder, dtype)
        return None
    except Exception as error:  # a missing or broken compiler raises many types
        for block in encoder.layers:
            del block.forward
        return " ".join(str(error).split())[:200]
    finally:
        encoder.zero_grad(set_to_none=True)


def _check(encoder: "Encoder", dtype: torch.dtype) -> None:
    device = encoder.final_norm.weight.device
    lengths = SequenceLengths.from_lengths([9]).to(device)
    tokens = torch.zeros(9, dtype=torch.int64, device=device)
    # Twice: the compiler makes one version for a step's first micro-batch, another for when there are gradients.
    for _ in range(2):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            encoder(tokens, lengths).sum().backward()
