"""Weights of a model folder in safetensors files, memory-mapped; pickles are refused without being opened."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from modernbert.errors import InputError
from modernbert.safe_files import check_file, is_there, read_json

__all__ = [
    "WEIGHTS",
    "check_tensor",
    "is_of_adapter",
    "read_safetensors",
    "read_weights",
    "refuse_adapters",
    "refuse_pickles",
]

WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Enough for 8,000 tensors; a published encoder has 200. The format allows 100 MB, which takes seconds to parse.
_MAX_HEADER_BYTES = 2**20
# Files of PEFT and AdapterHub, and parts of their tensor names.
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "pytorch_adapter.bin")
_OF_ADAPTERS = re.compile(
    r"(^|\.)(lora_\w+|base_layer|base_model|modules_to_save|original_module|adapters?|ia3_l|oft_r|vera_\w+|"
    r"token_adapter|trainable_tokens_\w+|prompt_embeddings)(\.|$)"
)
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Map the tensors of a folder, from one file or from those in the index.

    Raises: InputError naming the file, if there is none, if it is not safetensors, or if the folder also has an
        adapter or a second set of weights.
    """
    refuse_adapters(folder)
    if not is_there(folder / _INDEX):
        if is_there(folder / WEIGHTS):
            return read_safetensors(folder / WEIGHTS)
        refuse_pickles(folder)
        raise InputError(f"{folder}: has no weights, expected {WEIGHTS}")
    named = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise InputError(f"{folder / _INDEX}: weight_map is missing, expected the file of each tensor")
    if is_there(folder / WEIGHTS) and set(named.values()) != {WEIGHTS}:
        raise InputError(f"{folder}: has {WEIGHTS} and {_INDEX}, which names other files; expected one of the two")
    weights: dict[str, Tensor] = {}
    for file in sorted(set(named.values())):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise InputError(f"{folder / _INDEX}: names {file!r}, expected a .safetensors file of the same folder")
        if not is_there(folder / file):
            raise InputError(f"{folder / file}: no such file, though the index names it")
        for name, tensor in read_safetensors(folder / file).items():
            if name in weights:
                raise InputError(f"{folder / file}: has {name}, which another file of the index has too")
            weights[name] = tensor
    return weights


def refuse_adapters(folder: Path) -> None:
    """Refuse a folder with an adapter, since the base weights alone are another model.

    Raises: InputError naming the first file of an adapter, if there is one.
    """
    found = next((name for name in _ADAPTERS if is_there(folder / name)), None)
    if found is None:
        return
    alone = "" if is_there(folder / "config.json") else ", and no model beside it"
    raise InputError(
        f"{folder}: has {found}{alone}: adapters are not supported, expected a whole model "
        "(merge the adapter with peft's merge_and_unload() and save the result)"
    )


def is_of_adapter(name: str) -> bool:
    """Return whether a tensor belongs to an adapter, by its name.

    >>> is_of_adapter("layers.0.attn.Wqkv.lora_A.default.weight"), is_of_adapter("layers.0.attn.Wqkv.weight")
    (True, False)
    """
    return _OF_ADAPTERS.search(name) is not None


def refuse_pickles(folder: Path) -> None:
    """Refuse pickled weights.

    Raises: InputError naming the first pickle, if there is one.
    """
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise InputError(
            f"{folder}: has {pickles[0]}, a pickle, which is never loaded; expected {WEIGHTS} "
            f"(modernbert convert {folder / pickles[0]} --output FOLDER reads it without running it)"
        )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Map the tensors of a file.

    Raises: InputError naming the file, if it is not safetensors, or has the same name twice.
    """
    check_file(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"a header of {length:,} bytes, expected at most {_MAX_HEADER_BYTES:,}")
            header = file.read(length)
        with safe_open(path, framework="pt") as stored:
            # Readers differ in which of two entries with one name they take.
            json.loads(header, object_pairs_hook=_without_repeats)
            return {name: stored.get_tensor(name) for name in stored.keys()}
    except Exception as error:  # the parser, json, torch and the system raise different types
        raise InputError(f"{path}: is not a readable safetensors file ({' '.join(str(error).split())})") from None


def check_tensor(path: Path, name: str, tensor: Tensor, *, int8: bool = False) -> None:
    """Check that a tensor has finite floating-point values, or with `int8` that it has values of int8.

    Raises: InputError naming it.
    """
    if int8:
        if tensor.dtype != torch.int8:
            raise InputError(f"{path}: {name} holds {tensor.dtype}, expected int8 by config.json (quantization_config)")
        return
    if tensor.dtype not in _FLOATS:
        raise InputError(f"{path}: {name} holds {tensor.dtype}, expected floating point numbers of 16, 32 or 64 bits")
    # One pass without a copy: 50 ms for 150 million values, a twentieth of `isfinite().all()`.
    if tensor.numel() and not all(each.isfinite() for each in tensor.aminmax()):
        raise InputError(f"{path}: {name} has values that are not finite")


def _without_repeats(pairs: Iterable[tuple[str, Any]]) -> Mapping[str, Any]:
    listed = list(pairs)
    found = dict(listed)
    if len(found) < len(listed):
        raise ValueError("its header has a name twice")
    return found
