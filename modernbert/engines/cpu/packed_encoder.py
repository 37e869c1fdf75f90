"""The inference plan of the CPU engine: all layers in one C++ call, from weights packed once for the processor."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from modernbert.batch import SequenceLengths
from modernbert.devices import serial_torch
from modernbert.engines.cpu import calls
from modernbert.model.int8_linear import Int8Linear

if TYPE_CHECKING:
    from modernbert.model.encoder import Encoder

__all__ = ["PackedEncoder"]


class PackedEncoder:
    """Compute an encoder in the dtype of its weights, with a residual stream in float32.

    With int8 layers, attention is in the dtype of the norms.
    """

    def __init__(self, encoder: "Encoder") -> None:
        kinds = [encoder.config.is_global(number) for number in range(len(encoder.layers))]
        with torch.no_grad():
            self.layers = calls.PackedLayers([_pack(layer) for layer in encoder.layers], kinds)
            self.final_norm = encoder.final_norm.weight.float()

    def accepts(self, tokens: Tensor, lengths: SequenceLengths) -> bool:
        """Return True: any batch on a CPU."""
        return tokens.device.type == "cpu"

    def run(self, encoder: "Encoder", tokens: Tensor, lengths: SequenceLengths, rows: Tensor | None) -> Tensor:
        """Return the hidden states of some rows, or of all."""
        config = encoder.config
        with serial_torch(len(tokens)):
            embedded = encoder.embeddings(tokens)
            angles = [encoder.rope(lengths, is_global) for is_global in (True, False)]
        hidden = calls.encode(
            embedded, self.layers, self.final_norm, angles, lengths.cu_seqlens, config.window,
            num_heads=config.num_attention_heads, feed_width=config.intermediate_size, eps=config.norm_eps,
        )  # fmt: skip
        if rows is None:
            return hidden
        with serial_torch(len(rows)):
            return hidden.index_select(0, rows)


def _pack(layer: Any) -> list[Tensor]:
    """Return a layer's tensors in the order of `PackedLayers`."""
    linears = [layer.attn.Wqkv, layer.attn.Wo, layer.mlp.Wi, layer.mlp.Wo]
    qkv, out, up, down = map(_pack_linear, linears)
    activated, gate = up.chunk(2)
    # The first layer has no attention norm; C++ does not read this entry.
    norms = [layer.mlp_norm if isinstance(layer.attn_norm, nn.Identity) else layer.attn_norm, layer.mlp_norm]
    return [qkv, out, activated, gate, down, *(norm.weight.float() for norm in norms)]


def _pack_linear(linear: nn.Linear | Int8Linear) -> Tensor:
    if isinstance(linear, Int8Linear):
        return calls.pack_int8(linear.weight, linear.scale)
    return calls.pack_weight(linear.weight, transposed=True)
