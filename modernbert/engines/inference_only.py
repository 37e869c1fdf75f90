"""What a module with packed weights refuses: gradients, and another dtype or device."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from modernbert.errors import InputError

__all__ = ["inference_only", "refuse_conversion", "refuse_weights"]

_TO_TRAIN = (
    "this model was loaded for inference: its layers are packed for this CPU and cannot be trained. "
    "Fine-tune the model folder (modernbert finetune), or run the encoder under torch.no_grad() to train a head on it."
)


def inference_only(computed: Tensor) -> Tensor:
    """Return `computed`; where gradients are on, as a tensor whose backward pass raises InputError."""
    if not torch.is_grad_enabled():
        return computed
    result: Tensor = _Refused.apply(computed, torch.empty(0, requires_grad=True))
    return result


def refuse_conversion(weight: Tensor, fn: Callable[[Tensor], Tensor]) -> None:
    """Check that a function that `nn.Module._apply` was given changes neither dtype nor device.

    Raises: InputError if it does.
    """
    converted = fn(weight.detach().new_empty(0))
    if (converted.dtype, converted.device) != (weight.dtype, weight.device):
        found, asked = (f"{str(each.dtype).removeprefix('torch.')} on {each.device}" for each in (weight, converted))
        raise InputError(
            f"this model was loaded for inference in {found}: its packed weights cannot be converted to {asked}. "
            "Load the folder again with ModernBert.load(folder, dtype=..., device=...)."
        )


def refuse_weights() -> None:
    """Raises: InputError, always: packed weights are not replaced in place."""
    raise InputError(
        "this model was loaded for inference: load_state_dict cannot replace its packed weights. "
        "Save the new weights as a model folder and load that."
    )


class _Refused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, computed: Tensor, anchor: Tensor) -> Tensor:
        return computed.view_as(computed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        raise InputError(_TO_TRAIN)
