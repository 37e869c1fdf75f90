"""Weights laid out for the processor once, when a model is loaded for inference on a CPU.

In: a module with `nn.Linear` layers. Out: the same module with layers that compute the same products from weights in
oneDNN's own order. A plain `nn.Linear` has them reordered at every call, which for a short text is most of its time.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from modernbert.engines.inference_only import inference_only, refuse_conversion, refuse_weights
from modernbert.engines.plain_modules import is_plain

__all__ = ["PrepackedLinear", "can_prepack", "prepack_"]

# oneDNN is told how many rows to expect; the order it chooses serves a text of 16 tokens as well as a full batch.
_ROWS = 1_024


def can_prepack(dtype: torch.dtype) -> bool:
    """Say whether this torch, on this processor, has products of prepacked weights in a precision."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


class PrepackedLinear(nn.Module):
    """A linear layer for inference; no gradient goes through it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        # Not a buffer: the tensor is opaque, and what moves or converts buffers would not know it.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
        self.bias = linear.bias
        self.dtype = linear.weight.dtype

    def __reduce__(self) -> tuple[Any, ...]:
        return _prepack_again, (self.unpack(),)

    def __deepcopy__(self, memo: dict[int, Any]) -> "PrepackedLinear":
        return self  # nothing in it ever changes, and the opaque tensor has no storage to copy

    def forward(self, rows: Float[Tensor, "T D_in"]) -> Float[Tensor, "T D_out"]:
        """Return the product with the weights, plus the bias where there is one."""
        return inference_only(torch.ops.mkldnn._linear_pointwise(rows.detach(), self.packed, self.bias, "none", [], ""))

    def unpack(self) -> nn.Linear:
        """Return the plain layer, with the same bits."""
        weight = self.packed.to_dense()
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=self.bias is not None, device="meta")
        linear.weight, linear.bias = nn.Parameter(weight), self.bias
        return linear

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PrepackedLinear":
        refuse_conversion(torch.empty(0, dtype=self.dtype), fn)
        super()._apply(fn, recurse)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.packed.to_dense()

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        refuse_weights()


def _prepack_again(linear: nn.Linear) -> nn.Module:
    """Prepack the layer of a pickle where this process has such products; elsewhere return it as it is."""
    return PrepackedLinear(linear) if can_prepack(linear.weight.dtype) else linear


def prepack_(module: nn.Module) -> None:
    """Put prepacked layers in place of the plain linear ones below a module, one by one: no weight is held twice.

    Layers with hooks, and subclasses such as adapters, stay.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and is_plain(child):
                setattr(parent, name, PrepackedLinear(child))
