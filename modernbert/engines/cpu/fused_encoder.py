"""The encoder for inference on a CPU: all layers in one call of the package's loops.

In: an `Encoder` and its weights. Out: the same function without gradients, from weights laid out for the processor
once. Layer by layer in Python, a short text would wait for its calls, and a long one for memory between them.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from modernbert.batch import Batch, SequenceLengths
from modernbert.engines.cpu import build, calls
from modernbert.engines.inference_only import inference_only, refuse_conversion, refuse_weights
from modernbert.engines.operations import can_multiply
from modernbert.errors import InputError
from modernbert.model.config import ModelConfig
from modernbert.model.encoder import Encoder
from modernbert.model.interface import Model
from modernbert.model.meta_device import on_meta
from modernbert.model.rope import rotation

__all__ = ["FusedEncoder", "can_fuse"]


def can_fuse(config: ModelConfig, backend: str) -> bool:
    """Say whether the loops compute a whole encoder of this shape faster than layer by layer."""
    return backend == "native" and can_multiply(config.hidden_size, config.intermediate_size)


class FusedEncoder(Model):
    """What `Encoder` computes, in the precision of its weights, with a residual stream in float32.

    The encoder that it is made from gives its weights away, layer by layer, so that none is held twice.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.config = encoder.config
        self.backend = encoder.backend
        self.embeddings = encoder.embeddings
        # Not buffers: their layout holds for one dtype and processor, and module methods would convert them.
        self.final_norm = encoder.final_norm.weight.detach().float()
        self.packed = [_pack(encoder.layers[n]) for n in range(len(encoder.layers))]
        kinds = [self.config.is_global(number) for number in range(len(self.packed))]
        self.layers = calls.PackedLayers(self.packed, kinds)

    def __deepcopy__(self, memo: dict[int, Any]) -> "FusedEncoder":
        return self  # nothing in it ever changes

    def __reduce__(self) -> tuple[Any, ...]:
        # Addresses and the packed layout hold for this process and processor alone: pickle the plain weights.
        return _pack_again, (self.unpack(),)

    def forward(
        self, tokens: Int64[Tensor, " T"], layout: SequenceLengths, where: Int64[Tensor, " M"] | None = None
    ) -> Float[Tensor, "M D"]:
        """Return the hidden states of the rows `where`, or of every token, after the final norm."""
        config = self.config
        angles = [
            rotation(layout.positions, config.head_width, theta)
            for theta in (config.global_rope_theta, config.local_rope_theta)
        ]
        hidden = calls.encode(
            self.embeddings(tokens).detach(), self.layers, self.final_norm, angles, layout.cu_seqlens, config.window,
            num_heads=config.num_attention_heads, feed_width=config.intermediate_size, eps=config.norm_eps,
        )  # fmt: skip
        return inference_only(hidden if where is None else hidden.index_select(0, where))

    def encode(self, batch: Batch, rows: Int64[Tensor, " M"] | None = None) -> Float[Tensor, "M D"]:
        """Return the hidden states of every token of a batch, or of the tokens `rows`."""
        return self(batch.tokens, batch.layout, rows)

    def unpack(self) -> Encoder:
        """Return the plain encoder, with the same bits."""
        dtype = self.embeddings.tok_embeddings.weight.dtype
        with on_meta():
            encoder = Encoder(self.config, self.backend)
        encoder.embeddings = self.embeddings
        encoder.final_norm.weight = nn.Parameter(self.final_norm.to(dtype, copy=True))
        for plain, packed in zip(encoder.layers, self.packed, strict=True):
            _unpack(plain, packed, dtype)
        return encoder.eval()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FusedEncoder":
        refuse_conversion(self.embeddings.tok_embeddings.weight, fn)
        super()._apply(fn, recurse)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, weight in self.unpack().state_dict().items():
            if not name.startswith("embeddings."):
                destination[prefix + name] = weight

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        refuse_weights()


def _pack_again(encoder: Encoder) -> FusedEncoder:
    """Pack the encoder of a pickle for the processor of this process.

    Raises: InputError if the C++ library is not available here.
    """
    if obstacle := build.obstacle():
        raise InputError(
            f"this pickled model runs on backend native, which {obstacle}. "
            "Load the model folder in this process instead (ModernBert.load)."
        )
    return FusedEncoder(encoder)


def _pack(layer: Any) -> list[Tensor]:
    """Return a layer's tensors in the order in which the loops want them, and take its weights away."""
    linears = [layer.attn.Wqkv, layer.attn.Wo, layer.mlp.Wi, layer.mlp.Wo]
    qkv, out, up, down = (calls.pack_weight(linear.weight.detach(), transposed=True) for linear in linears)
    activated, gate = up.chunk(2)
    # The first layer has no norm before its attention; its place is filled with what nobody reads.
    norms = [layer.mlp_norm if isinstance(layer.attn_norm, nn.Identity) else layer.attn_norm, layer.mlp_norm]
    packed = [qkv, out, activated, gate, down, *(norm.weight.detach().float() for norm in norms)]
    layer.to("meta")
    return packed


def _unpack(layer: Any, packed: list[Tensor], dtype: torch.dtype) -> None:
    """Give a layer copies of its packed weights: pickling may move what it is given to shared memory."""
    qkv, out, activated, gate, down, attn_norm, mlp_norm = packed
    linears = [layer.attn.Wqkv, layer.attn.Wo, layer.mlp.Wi, layer.mlp.Wo]
    for linear, strips in zip(linears, (qkv, out, torch.cat((activated, gate)), down), strict=True):
        linear.weight = nn.Parameter(calls.unpack_weight(strips))
    if not isinstance(layer.attn_norm, nn.Identity):
        layer.attn_norm.weight = nn.Parameter(attn_norm.to(dtype, copy=True))
    layer.mlp_norm.weight = nn.Parameter(mlp_norm.to(dtype, copy=True))
