"""The linear layer behind an encoder, out of a folder: one, several in turn, or that of ColBERT's own library.

In: a folder. Out: one linear layer without a bias, or none. Linear layers in turn, with or without the way around them,
are one linear layer; whatever is not linear is refused, and so is a pickle.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from modernbert.checkpoints.colbert_format import LINEAR, stanford_settings
from modernbert.checkpoints.safetensors_files import WEIGHTS, check_tensor, read_safetensors
from modernbert.checkpoints.sentence_transformers_modules import Module, listed_modules
from modernbert.errors import InputError
from modernbert.safe_files import check_keys, is_there, read_json

__all__ = ["load_projection"]

_PICKLE, _IDENTITY = "pytorch_model.bin", "torch.nn.modules.linear.Identity"
# Wider than any vector that people compare.
_MOST_WIDE = 2**16
_KEYS = (
    "in_features", "out_features", "bias", "activation_function", "module_input_name", "module_output_name",
    "use_residual",
)  # fmt: skip
_BEFORE_MODULES = Module("Dense", "pylate", "1_Dense")


def load_projection(folder: Path, width: int) -> nn.Linear | None:
    """Read the linear layer behind an encoder of a width, if the folder has one.

    Raises: InputError naming the file, for one that is not linear, not readable safetensors, or does not fit.
    """
    settings = stanford_settings(folder)
    if settings is not None:
        weight = _weight(folder / WEIGHTS, LINEAR, width)
        if settings.get("dim", len(weight)) != len(weight):
            raise InputError(f"{folder}: {LINEAR} has {len(weight)} rows, expected dim = {settings['dim']}")
        return _linear(weight)
    listed = listed_modules(folder)
    modules = [each for each in listed if each.kind == "Dense"]
    _check_inputs(folder, listed)
    if not modules and is_there(folder / "1_Dense" / WEIGHTS):
        modules = [_BEFORE_MODULES]
    weights: list[Tensor] = []
    for module in modules:
        weights.append(_dense(folder / module.path, module.library, weights[-1].shape[0] if weights else width))
    if not weights:
        return None
    if len(weights) == 1:
        return _linear(weights[0])
    # In float64, so that what several layers do in turn is rounded once.
    product = torch.linalg.multi_dot([weight.double() for weight in reversed(weights)])
    return _linear(product.to(weights[0].dtype))


def _check_inputs(folder: Path, listed: list[Module]) -> None:
    """Refuse a linear layer that its library would not apply: one of tokens behind their pooling, and the reverse."""
    kinds = [each.kind for each in listed]
    pooled_at = kinds.index("Pooling") if "Pooling" in kinds else None
    for number, each in enumerate(listed):
        if each.kind != "Dense":
            continue
        place = folder / each.path / "config.json"
        usual = "sentence_embedding" if pooled_at is not None and number > pooled_at else "token_embeddings"
        named = read_json(place, missing_ok=True).get("module_input_name")
        # Of folders without Pooling, older ones name no input, and mean tokens.
        if (usual if named is None and pooled_at is None else named or "sentence_embedding") != usual:
            raise InputError(f"{place}: module_input_name is {str(named)[:60]!r}, expected {usual!r} at its place")


def _dense(place: Path, library: str, width: int) -> Tensor:
    """Return the matrix of one `Dense`."""
    found = read_json(place / "config.json", missing_ok=True)
    check_keys(found, _KEYS, str(place / "config.json"))
    # sentence-transformers has tanh where nothing is said, PyLate nothing.
    activation = found.get("activation_function", _IDENTITY if library == "pylate" else "torch.nn.Tanh")
    if str(activation).rpartition(".")[2] != "Identity":
        raise InputError(f"{place / 'config.json'}: activation_function is {str(activation)[:80]!r}, expected Identity")
    names = [found.get(f"module_{end}_name") for end in ("input", "output")]
    if names[1] not in (None, names[0] or "sentence_embedding"):
        raise InputError(
            f"{place / 'config.json'}: module_output_name is {str(names[1])[:60]!r}, expected module_input_name"
        )
    if not is_there(place / WEIGHTS) and is_there(place / _PICKLE):
        raise InputError(
            f"{place}: has {_PICKLE}, a pickle, which is never loaded; expected {WEIGHTS} "
            f"(modernbert convert {place / _PICKLE} --out {place / WEIGHTS} reads it without running it)"
        )
    weight = _weight(place / WEIGHTS, "linear.weight", width, alone=not found.get("use_residual", False))
    if found.get("bias"):
        raise InputError(f"{place / 'config.json'}: bias is {found['bias']!r}, expected false")
    if not found.get("use_residual", False):
        return weight
    if weight.shape[0] == width:
        return weight + torch.eye(width, dtype=weight.dtype)
    around = _weight(place / WEIGHTS, "residual.weight", width, alone=False)
    if around.shape != weight.shape:
        raise InputError(f"{place / WEIGHTS}: residual.weight is {list(around.shape)}, expected {list(weight.shape)}")
    return weight + around


def _weight(path: Path, name: str, width: int, alone: bool = False) -> Tensor:
    """Read one matrix of a file; `alone` if the file has no other."""
    tensors = read_safetensors(path)
    found = tensors.get(name)
    others = sorted(set(tensors) - {name}) if alone else sorted(set(tensors) & {"linear.bias", "residual.bias"})
    if others:
        raise InputError(f"{path}: has {others[0][:80]!r}, expected {name} without a bias")
    if found is None:
        raise InputError(f"{path}: has no {name}, expected shape [any, {width}]")
    if found.ndim != 2 or not 1 <= len(found) <= _MOST_WIDE or found.shape[1] != width:
        raise InputError(f"{path}: {name} is {list(found.shape)}, expected [any, {width}] for this model")
    check_tensor(path, name, found)
    return found


def _linear(weight: Tensor) -> nn.Linear:
    projection = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    projection.weight = nn.Parameter(weight)
    return projection
