"""The torch engine: runs everywhere, by torch's operations alone."""

from typing import TYPE_CHECKING

import torch

from modernbert.batch import SequenceLengths
from modernbert.engines.banded_attention import plan_bands
from modernbert.engines.compiled_blocks import compile_blocks
from modernbert.engines.cpu.prepacked_linear import PrepackedLinears, can_prepack
from modernbert.engines.engine import AttentionFn, Engine, Rope, RopeAttention, Window
from modernbert.engines.grouped_attention import plan_groups
from modernbert.engines.inference_plan import InferencePlan

if TYPE_CHECKING:
    from modernbert.model.encoder import Encoder

__all__ = ["TorchEngine"]


class TorchEngine(Engine):
    """Compute everything with torch.

    Local layers cut the stream into blocks of queries, each with its own band of keys: O(T x window). Global layers run
    scaled dot-product attention over groups of documents of similar length. No tensor of T x T is allocated.
    """

    name = "torch"
    preference = 1

    def plan_attention(self, lengths: SequenceLengths, window: Window, rope: Rope, dtype: torch.dtype) -> AttentionFn:
        """Return banded attention for local layers, and grouped attention for global layers."""
        return RopeAttention(
            rope, plan_groups(lengths, dtype) if window is None else plan_bands(lengths, window, dtype)
        )

    def compile_blocks(self, encoder: "Encoder", dtype: torch.dtype) -> str | None:
        """Compile the blocks with `torch.compile`, all but attention."""
        return compile_blocks(encoder, dtype)

    def inference_plan(self, encoder: "Encoder", dtype: torch.dtype) -> InferencePlan | None:
        """Return prepacked linear layers on a CPU."""
        return PrepackedLinears(encoder) if can_prepack(encoder.final_norm.weight.device, dtype) else None
