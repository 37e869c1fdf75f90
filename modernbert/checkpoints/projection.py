"""The projection of a folder: `Dense` modules of sentence-transformers or PyLate, or the layer of Stanford's ColBERT.

Consecutive linear layers, with or without residual connections, are multiplied into one. Biases, activations and
pickled weights are refused.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from modernbert.checkpoints.colbert_format import LINEAR, stanford_settings
from modernbert.checkpoints.safetensors_files import WEIGHTS, check_tensor, read_safetensors
from modernbert.checkpoints.sentence_transformers_modules import Module, listed_modules
from modernbert.errors import InputError
from modernbert.safe_files import FolderFiles, check_keys, is_there

__all__ = ["load_projection"]

_PICKLE, _IDENTITY = "pytorch_model.bin", "torch.nn.modules.linear.Identity"
_MAX_OUTPUTS = 2**16
_KEYS = (
    "in_features", "out_features", "bias", "activation_function", "module_input_name", "module_output_name",
    "use_residual",
)  # fmt: skip
# PyLate's first versions wrote no modules.json.
_UNLISTED = Module("Dense", "pylate", "1_Dense")


def load_projection(folder: Path | FolderFiles, width: int) -> nn.Linear | None:
    """Read the linear layer behind an encoder with hidden states of `width`, if the folder has one.

    Raises: InputError naming the file, if the layer is not linear, not readable, or of another width.
    """
    folder = FolderFiles.of(folder)
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
        modules = [_UNLISTED]
    weights: list[Tensor] = []
    for module in modules:
        weights.append(_dense(folder, module, weights[-1].shape[0] if weights else width))
    if not weights:
        return None
    if len(weights) == 1:
        return _linear(weights[0])
    # In float64, so the product is rounded once.
    product = torch.linalg.multi_dot([weight.double() for weight in reversed(weights)])
    return _linear(product.to(weights[0].dtype))


def _check_inputs(folder: FolderFiles, listed: list[Module]) -> None:
    """Refuse a layer that its library would not apply: for token vectors behind Pooling, for pooled ones before it."""
    kinds = [each.kind for each in listed]
    pooled_at = kinds.index("Pooling") if "Pooling" in kinds else None
    for number, each in enumerate(listed):
        if each.kind != "Dense":
            continue
        name = _config_name(each)
        usual = "sentence_embedding" if pooled_at is not None and number > pooled_at else "token_embeddings"
        named = folder.read_json(name, missing_ok=True).get("module_input_name")
        # Older folders without Pooling name no input: the layer is for token vectors.
        if (usual if named is None and pooled_at is None else named or "sentence_embedding") != usual:
            raise InputError(
                f"{folder / name}: module_input_name is {str(named)[:60]!r}, expected {usual!r} at its place"
            )


def _config_name(module: Module) -> str:
    return f"{module.path}/config.json" if module.path else "config.json"


def _dense(folder: FolderFiles, module: Module, width: int) -> Tensor:
    """Return the matrix of one `Dense`."""
    place = folder / module.path
    found = folder.read_json(_config_name(module), missing_ok=True)
    check_keys(found, _KEYS, str(place / "config.json"))
    # The default of sentence-transformers is tanh, that of PyLate none.
    activation = found.get("activation_function", _IDENTITY if module.library == "pylate" else "torch.nn.Tanh")
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
            f"(modernbert convert {place / _PICKLE} --output {place / WEIGHTS} reads it without running it)"
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
    """Read one matrix of a file; with `alone`, the file must have no other tensor."""
    tensors = read_safetensors(path)
    found = tensors.get(name)
    others = sorted(set(tensors) - {name}) if alone else sorted(set(tensors) & {"linear.bias", "residual.bias"})
    if others:
        raise InputError(f"{path}: has {others[0][:80]!r}, expected {name} without a bias")
    if found is None:
        raise InputError(f"{path}: has no {name}, expected shape [any, {width}]")
    if found.ndim != 2 or not 1 <= len(found) <= _MAX_OUTPUTS or found.shape[1] != width:
        raise InputError(f"{path}: {name} is {list(found.shape)}, expected [any, {width}] for this model")
    check_tensor(path, name, found)
    return found


def _linear(weight: Tensor) -> nn.Linear:
    projection = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    projection.weight = nn.Parameter(weight)
    return projection
