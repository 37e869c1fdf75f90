"""Linear layers of int8 weights and int8 inputs, for inference.

Each output of the weight has a scale, and each row of the input, so that a text's vector does not depend on its batch.
Both are first rotated by Hadamard matrices, which spread an outlier over a block of inputs.
Source: Ashkboos et al. 2024 (QuaRot).
"""

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8
from torch import Tensor, nn

from modernbert.errors import InputError

__all__ = ["INT8", "Int8Linear", "int8_layers", "is_int8", "linear_slots"]

INT8 = "int8"
_MOST = 127


class Int8Linear(nn.Module):
    """A linear layer without bias whose weights and inputs are int8.

    Sums of products are exact. The formula below runs on every device; the CPU engine has kernels for it.

    Args:
        weight: The rotated weight, divided by the scales.
        scale: The scale of each output; the factor of the two rotations is in it.
    """

    weight: Int8[Tensor, "D_out D_in"]
    scale: Float[Tensor, " D_out"]

    def __init__(self, weight: Int8[Tensor, "D_out D_in"], scale: Float[Tensor, " D_out"]) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    @staticmethod
    def quantize(weight: Float[Tensor, "D_out D_in"]) -> "Int8Linear":
        """Return the layer of a weight.

        Raises: InputError unless the number of inputs divides by 64.
        """
        if weight.shape[1] % 64:
            raise InputError(f"dtype: int8 needs widths that divide by 64, found a linear layer of {weight.shape[1]}")
        with torch.no_grad():
            rotated = _rotate(weight.float())
            scale = _scale(rotated)
            values = (rotated / scale[:, None]).round().to(torch.int8)
            return Int8Linear(values, scale / _block(weight.shape[1]))

    def forward(self, x: Float[Tensor, "T D_in"]) -> Float[Tensor, "T D_out"]:
        """Multiply rows by the weight, in the dtype of the rows."""
        rotated = _rotate(x.float())
        scale = _scale(rotated)[..., None]
        # Whole numbers below 2^24, which float32 sums exactly, unless nearly all are as large as they can be.
        sums = F.linear((rotated / scale).round(), self.weight.float())
        return (sums * (scale * self.scale)).to(x.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Int8Linear":
        """Move the layer, and keep the scales in float32: `model.to(torch.bfloat16)` would round them."""
        scale = self.scale
        super()._apply(fn, recurse)
        self.scale = scale.to(self.weight.device)
        return self

    def extra_repr(self) -> str:
        """Return the widths."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def linear_slots(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Yield each linear layer of a module, and the module and the name that it is an attribute of."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                yield parent, name, child


def int8_layers(module: nn.Module) -> Iterator[tuple[str, "Int8Linear"]]:
    """Yield the int8 layers of a module by name."""
    return ((name, each) for name, each in module.named_modules() if isinstance(each, Int8Linear))


def is_int8(module: nn.Module) -> bool:
    """Return whether a module has int8 layers."""
    return next(int8_layers(module), None) is not None


def _block(width: int) -> int:
    """Return how many inputs are rotated together."""
    return 64 if width % 128 else 128


def _rotate(x: Float[Tensor, "rows D"]) -> Float[Tensor, "rows D"]:
    """Rotate blocks of a row, without the factor that keeps lengths."""
    block = _block(x.shape[-1])
    return (x.unflatten(-1, (-1, block)) @ _hadamard(block, x.device)).flatten(-2)


@functools.cache
@torch.inference_mode(False)
def _hadamard(size: int, device: torch.device) -> Tensor:
    matrix = torch.ones(1, 1, device=device)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix


def _scale(rows: Float[Tensor, "rows D"]) -> Float[Tensor, " rows"]:
    """Return the scale that makes the largest number of each row 127; a row of zeros has any."""
    return rows.abs().amax(-1).clamp_min(1e-30) / _MOST
