"""The inference plan of oneDNN: linear layers whose weights are reordered once instead of at every call."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from modernbert.batch import SequenceLengths
from modernbert.engines.engine import AttentionFn, Engine, Rope, RowKernels, Window

if TYPE_CHECKING:
    from modernbert.model.encoder import Encoder

__all__ = ["PrepackedLinears", "can_prepack"]

# The number of rows that oneDNN reorders for; the order it chooses serves short texts and full batches.
_ROWS = 1_024


def can_prepack(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether this torch, on this processor, multiplies by prepacked weights in a dtype."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


class PrepackedLinears:
    """Compute an encoder layer by layer, with prepacked weights in its linear layers."""

    def __init__(self, encoder: "Encoder") -> None:
        self.engine = _PrepackedEngine(encoder)

    def accepts(self, tokens: Tensor, lengths: SequenceLengths) -> bool:
        """Return True: any batch on a CPU."""
        return tokens.device.type == "cpu"

    def run(self, encoder: "Encoder", tokens: Tensor, lengths: SequenceLengths, rows: Tensor | None) -> Tensor:
        """Return the hidden states of some rows, or of all."""
        return encoder.run_layers(tokens, lengths, rows, self.engine)


class _PrepackedEngine(Engine):
    """An encoder's engine, with GEMMs of prepacked weights."""

    def __init__(self, encoder: "Encoder") -> None:
        self.base = encoder.engine
        self.packed: dict[nn.Module, Tensor] = {
            layer: torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _ROWS)
            for layer in encoder.modules()
            if isinstance(layer, nn.Linear)
        }

    def linear(self, layer: nn.Module, x: Tensor) -> Tensor:
        if layer not in self.packed:  # an int8 layer
            return self.base.linear(layer, x)
        return torch.ops.mkldnn._linear_pointwise(x.detach(), self.packed[layer], layer.bias, "none", [], "")

    def plan_attention(self, lengths: SequenceLengths, window: Window, rope: Rope, dtype: torch.dtype) -> AttentionFn:
        return self.base.plan_attention(lengths, window, rope, dtype)

    def row_kernels(self) -> RowKernels | None:
        return self.base.row_kernels()
