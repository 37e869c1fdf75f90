"""Load a model for inference: weights mapped from a file, and permission for the engine's inference plan."""

import mmap
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO

import torch
from torch import Tensor, nn

from modernbert.checkpoints.folder import ModelFolder
from modernbert.devices import (
    choose_device,
    choose_precision,
    dtype_name,
    keep_freed_memory,
    limit_threads,
    release_pages,
    release_threads_before_fork,
)
from modernbert.engines.engine import Engine
from modernbert.engines.inference_plan import PlanCache
from modernbert.engines.registry import choose_engine
from modernbert.errors import InputError
from modernbert.extras import require
from modernbert.model.encoder import Encoder
from modernbert.model.int8_linear import INT8, Int8Linear, linear_slots
from modernbert.model.interface import Model

__all__ = ["choose_dtype", "load_for_inference", "load_model_for_inference", "permit_plans"]


def load_for_inference(folder: ModelFolder, device: str, dtype: str, engine: str) -> tuple[Model, nn.Linear | None]:
    """Load the model and the projection of a folder; print what `auto` chose to standard error.

    Raises: InputError if the folder is incomplete or invalid, or the device, dtype or engine is not available.
    """
    limit_threads()
    place, is_automatic = choose_device(device), "auto" in (device, dtype, engine)
    if folder.is_int8:
        if dtype not in ("auto", INT8):
            raise InputError(f"dtype: found {dtype}, but {folder.name} has int8 layers; expected auto or int8")
        dtype = INT8
    precision = choose_dtype(dtype, device)
    if dtype == INT8 and not folder.is_modernbert:
        raise InputError(f"dtype: int8 needs a ModernBERT, found a {folder.family}; use float32 or bfloat16")
    if not folder.is_modernbert:
        require(folder.name, "transformers")
    _ = folder.tokenizer  # an invalid tokenizer is an error before the weights are read
    if folder.is_modernbert:
        chosen = choose_engine(engine, place, precision, folder.config)
        model = load_model_for_inference(folder, place, precision, chosen, int8=dtype == INT8)
        computes = f"engine {chosen.name}"
    else:
        model = folder.load_model(dtype=precision).to(place)
        release_threads_before_fork()
        computes = "engine transformers"
    if is_automatic or not folder.is_modernbert:
        print(
            f"{folder.name}: device {place}, dtype {INT8 if dtype == INT8 else dtype_name(precision)}, {computes}",
            file=sys.stderr,
        )
    projection = folder.load_projection(model.hidden_size)
    return model, projection if projection is None else projection.to(place, precision)


def choose_dtype(name: str, device: str) -> torch.dtype:
    """Return the dtype of what is not int8, which is what `auto` takes if the name is `int8`.

    Raises: InputError for an unknown name, a device that is not there, or int8 on another device than a CPU.
    """
    place = choose_device(device)
    if name != INT8:
        return choose_precision(name, place, "dtype", INT8)
    if place.type != "cpu":
        raise InputError(f"dtype: int8 needs a CPU, found {place}; use --device cpu, or bfloat16")
    return choose_precision("auto", place)


def load_model_for_inference(
    folder: ModelFolder, device: torch.device, dtype: torch.dtype, engine: Engine, *, int8: bool = False
) -> Model:
    """Load the model of a folder with an engine and its inference plan. It stays an ordinary module.

    With `int8`, the linear layers of the encoder become `Int8Linear`.

    Raises: InputError if the folder lacks a file or holds a wrong one.
    """
    model = folder.load_model(engine=engine, takes_int8=True)  # mapped, in the dtype of the file
    if int8 and not folder.is_int8:
        _quantize_layers(model.encoder)
    if device.type == "cpu":
        _convert(model.parameters(), dtype)
    else:
        model = model.to(device, dtype)
    return permit_plans(model, mapped=device.type == "cpu")


def permit_plans(model: Model, *, mapped: bool = False) -> Model:
    """Let a model's encoder use its engine's inference plan; return the model.

    Args:
        model: The model; it stays trainable, and its modules may be replaced.
        mapped: Its weights are mapped from a file, so that unused pages may be returned to the system.
    """
    encoder = model.encoder
    assert isinstance(encoder, Encoder)
    if encoder.device.type == "cpu":
        keep_freed_memory()
        release_threads_before_fork()
    encoder.plans = PlanCache(encoder.engine, mapped)
    return model


def _quantize_layers(encoder: Model) -> None:
    """Quantize the linear layers of an encoder, one after the other; the new weights are in a mapped file."""
    slots = list(linear_slots(encoder))

    def quantized() -> Iterator[Tensor]:
        for _, _, linear in slots:
            layer = Int8Linear.quantize(linear.weight)
            release_pages([linear.weight])
            yield from (layer.weight, layer.scale)

    tensors = iter(_mapped(quantized))
    for (parent, name, _), weight, scale in zip(slots, tensors, tensors, strict=True):
        parent.add_module(name, Int8Linear(weight, scale).eval())


def _convert(parameters: Iterable[nn.Parameter], dtype: torch.dtype) -> None:
    """Convert parameters in place; the new ones are in a mapped file."""
    converted = [parameter for parameter in parameters if parameter.dtype != dtype]
    for parameter, data in zip(converted, _mapped(lambda: (p.detach().to(dtype) for p in converted)), strict=True):
        parameter.data = data


@torch.inference_mode(False)
def _mapped(make: Callable[[], Iterable[Tensor]]) -> list[Tensor]:
    """Return tensors in a temporary file that is mapped, or in ordinary memory if the disk is full.

    Ordinary memory would double the memory of a model with packed weights. Pages of a file can be dropped, like pages
    of the model's own file, until the weights are read.
    """
    kinds: list[tuple[int, torch.dtype, torch.Size]] = []
    try:
        with tempfile.TemporaryFile() as file:
            for tensor in make():
                kinds.append((_write_aligned(file, tensor), tensor.dtype, tensor.shape))
            if not kinds:
                return []
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError:
        return list(make())
    return [
        torch.frombuffer(mapped, dtype=dtype, count=shape.numel(), offset=offset).view(shape)
        for offset, dtype, shape in kinds
    ]


def _write_aligned(file: IO[bytes], tensor: Tensor) -> int:
    """Write a tensor at a multiple of 64 bytes, as torch aligns memory, and return where."""
    file.seek(-(-file.tell() // 64) * 64)
    offset = file.tell()
    file.write(tensor.contiguous().view(torch.uint8).numpy().data)
    return offset
