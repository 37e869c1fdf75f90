"""The modules of sentence-transformers and PyLate in `modules.json`: pooling, the projection, normalization, masks.

Consecutive `Dense` layers, with or without residual connections, are multiplied into one projection. Biases,
activations and pickled weights are refused.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modernbert.checkpoints.colbert_format import LINEAR, stanford_settings
from modernbert.checkpoints.json_values import strings_of
from modernbert.checkpoints.safetensors_files import WEIGHTS, check_tensor, read_safetensors
from modernbert.errors import InputError, shown
from modernbert.safe_files import FolderFiles, check_keys, is_there

__all__ = [
    "OURS_LISTED",
    "POOLINGS",
    "SENTENCE",
    "TOKENS",
    "Module",
    "listed_modules",
    "load_projection",
    "normalizes",
    "pooling_of",
    "skipped_tokens",
]

# In a folder whose modules.json names our own module for sentence-transformers: the modules that it replaces.
OURS_LISTED = "modernbert_modules.json"
_OURS = "modernbert.inference.sentence_transformers_module.UnpaddedEncoder"
_KINDS = ("Transformer", "Pooling", "Normalize", "Dense", "Dropout", "MultiVectorMask")
# A class of the same name in another package, such as code in the folder, can compute anything.
_LIBRARIES = ("sentence_transformers", "pylate")
# The names of pooled vectors and of token vectors.
SENTENCE, TOKENS = "sentence_embedding", "token_embeddings"
POOLINGS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}
_POOLING_KEYS = (
    "word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt", *POOLINGS.values(),
    "pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens",
    "pooling_mode_lasttoken",
)  # fmt: skip
_DENSE_KEYS = (
    "in_features", "out_features", "bias", "activation_function", "module_input_name", "module_output_name",
    "use_residual",
)  # fmt: skip
_PICKLE, _IDENTITY = "pytorch_model.bin", "torch.nn.modules.linear.Identity"
_MAX_OUTPUTS = 2**16


@dataclass(frozen=True)
class Module:
    """One module: the name of its class, the library of the class, and its path in the folder."""

    kind: str
    library: str
    path: str

    @property
    def config(self) -> str:
        """The name of its config in the folder."""
        return f"{self.path}/config.json" if self.path else "config.json"


def listed_modules(folder: FolderFiles) -> list[Module]:
    """Return the modules that `modules.json` lists; none if there is no such file.

    Raises: InputError for an unsupported module, or a file that is not a list of modules.
    """
    place = folder / "modules.json"
    found = _listed(folder, "modules.json")
    if any(each.get("type") == _OURS for each in found):
        others = [each for each in found if each.get("type") != _OURS]
        found = _listed(folder, OURS_LISTED) + others
    modules = []
    for each in found:
        named, path = str(each.get("type", "")), str(each.get("path", ""))
        module = Module(named.rpartition(".")[2], named.partition(".")[0], path)
        if module.kind not in _KINDS or module.library not in _LIBRARIES:
            raise InputError(
                f"{place}: lists {named[:80]!r}, expected only {', '.join(_KINDS)} of {' or '.join(_LIBRARIES)}"
            )
        check_keys(each, ("idx", "name", "path", "type", "kwargs"), f"{place}: the entry of {module.kind}")
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise InputError(f"{place}: {path[:80]!r} is outside the folder")
        if module.kind == "Transformer" and Path(path) != Path():
            raise InputError(f"{place}: the path of Transformer is {path[:80]!r}, expected '': the folder itself")
        modules.append(module)
    kinds = [module.kind for module in modules]
    first = kinds.index("Normalize") if "Normalize" in kinds else len(kinds)
    if behind := [kind for kind in kinds[first:] if kind in ("Pooling", "Dense")]:
        raise InputError(f"{place}: lists Normalize before {behind[0]}, expected it last")
    return modules


def pooling_of(folder: FolderFiles) -> str:
    """Return the pooling of a folder of sentence-transformers, `mean` if it does not say.

    Raises: InputError for an unsupported pooling.
    """
    if not (folder / "modules.json").exists():
        return "mean"
    names = [each.config for each in listed_modules(folder) if each.kind == "Pooling"]
    if not names:
        return "mean"
    if len(names) > 1:
        raise InputError(f"{folder / 'modules.json'}: lists {len(names)} of Pooling, expected one")
    place = folder / names[0]
    found = folder.read_json(names[0], missing_ok=True)
    mode = found.get("pooling_mode")
    modes = [mode] if isinstance(mode, str) else [name for name, key in POOLINGS.items() if found.get(key)]
    others = [key for key in found if key.startswith("pooling_mode_") and key not in POOLINGS.values() and found[key]]
    if isinstance(mode, list) or others or len(modes) > 1 or not set(modes) <= set(POOLINGS):
        raise InputError(f"{place}: pools by {str(mode or others or modes)[:60]}, expected mean or cls")
    check_keys(found, _POOLING_KEYS, str(place))
    if not found.get("include_prompt", True):
        raise InputError(f"{place}: include_prompt is false, expected true")
    return modes[0] if modes else "mean"


def normalizes(folder: FolderFiles, name: str) -> bool:
    """Return whether a `Normalize` scales the vectors of this name to length 1.

    Raises: InputError for one that writes to another name than it reads.
    """
    names = []
    for each in listed_modules(folder):
        if each.kind == "Normalize":
            place, found = folder / each.config, folder.read_json(each.config, missing_ok=True)
            check_keys(found, ("module_input_name", "module_output_name"), str(place))
            names.append(found.get("module_input_name") or SENTENCE)
            if found.get("module_output_name") not in (None, names[-1]):
                written = shown(repr(found["module_output_name"]), 60)
                raise InputError(f"{place}: module_output_name is {written}, expected module_input_name")
    return name in names


def skipped_tokens(folder: FolderFiles) -> list[str]:
    """Return the tokens of documents that a `MultiVectorMask` gives no vector.

    Raises: InputError for a mask of other texts, or one of the tokens to keep.
    """
    skipped: list[str] = []
    for module in listed_modules(folder):
        if module.kind == "MultiVectorMask":
            place, mask = folder / module.config, folder.read_json(module.config, missing_ok=True)
            check_keys(mask, ("skiplist_words", "skiplist_tasks", "keep_only_token_ids"), str(place))
            if mask.get("keep_only_token_ids") or mask.get("skiplist_tasks", ["document"]) != ["document"]:
                raise InputError(f"{place}: skips tokens in texts other than documents, or keeps only some tokens")
            skipped = strings_of("skiplist_words", mask, place)
    return skipped


def load_projection(folder: FolderFiles, width: int) -> nn.Linear | None:
    """Read the linear layer behind an encoder with hidden states of `width`, if the folder has one.

    Raises: InputError naming the file, if the layer is not linear, not readable, or of another width.
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
        modules = [Module("Dense", "pylate", "1_Dense")]  # PyLate's first versions wrote no modules.json
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
        name = each.config
        usual = SENTENCE if pooled_at is not None and number > pooled_at else TOKENS
        named = folder.read_json(name, missing_ok=True).get("module_input_name")
        # Older folders without Pooling name no input: the layer is for token vectors.
        if (usual if named is None and pooled_at is None else named or SENTENCE) != usual:
            raise InputError(
                f"{folder / name}: module_input_name is {str(named)[:60]!r}, expected {usual!r} at its place"
            )


def _dense(folder: FolderFiles, module: Module, width: int) -> Tensor:
    """Return the matrix of one `Dense`."""
    place, config = folder / module.path, folder / module.config
    found = folder.read_json(module.config, missing_ok=True)
    check_keys(found, _DENSE_KEYS, str(config))
    # The default of sentence-transformers is tanh, that of PyLate none.
    activation = found.get("activation_function", _IDENTITY if module.library == "pylate" else "torch.nn.Tanh")
    if str(activation).rpartition(".")[2] != "Identity":
        raise InputError(f"{config}: activation_function is {str(activation)[:80]!r}, expected Identity")
    names = [found.get(f"module_{end}_name") for end in ("input", "output")]
    if names[1] not in (None, names[0] or SENTENCE):
        raise InputError(f"{config}: module_output_name is {str(names[1])[:60]!r}, expected module_input_name")
    if not is_there(place / WEIGHTS) and is_there(place / _PICKLE):
        raise InputError(
            f"{place}: has {_PICKLE}, a pickle, which is never loaded; expected {WEIGHTS} "
            f"(modernbert convert {place / _PICKLE} --output {place / WEIGHTS} reads it without running it)"
        )
    weight = _weight(place / WEIGHTS, "linear.weight", width, alone=not found.get("use_residual", False))
    if found.get("bias"):
        raise InputError(f"{config}: bias is {found['bias']!r}, expected false")
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


def _listed(folder: FolderFiles, name: str) -> list[dict[str, Any]]:
    found = folder.read_json_list(name)
    for each in found:
        if not isinstance(each, dict):
            raise InputError(f"{folder / name}: lists {str(each)[:80]!r}, expected modules")
    return found
