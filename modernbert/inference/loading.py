"""Load a model for inference: weights mapped from a file, and permission for the engine's inference plan."""

import mmap
import sys
import tempfile
from collections.abc import Iterable
from typing import IO

import torch
from torch import Tensor, nn

from modernbert.checkpoints.folder import ModelFolder
from modernbert.devices import (
    choose_device,
    choose_precision,
    dtype_name,
    keep_freed_memory,
    release_threads_before_fork,
)
from modernbert.engines.engine import Engine
from modernbert.engines.inference_plan import PlanCache
from modernbert.engines.registry import choose_engine
from modernbert.extras import require
from modernbert.model.encoder import Encoder
from modernbert.model.interface import Model

__all__ = ["load_for_inference", "load_model_for_inference", "permit_plans"]


def load_for_inference(folder: ModelFolder, device: str, dtype: str, engine: str) -> tuple[Model, nn.Linear | None]:
    """Load the model and the projection of a folder; print what `auto` chose to standard error.

    Raises: InputError if the folder is incomplete or invalid, or the device, dtype or engine is not available.
    """
    place = choose_device(device)
    precision = choose_precision(dtype, place, "dtype")
    if not folder.is_modernbert:
        require(folder.name, "transformers")
    _ = folder.tokenizer  # an invalid tokenizer is an error before the weights are read
    if folder.is_modernbert:
        chosen = choose_engine(engine, place, precision, folder.config)
        model = load_model_for_inference(folder, place, precision, chosen)
        computes = f"engine {chosen.name}"
    else:
        model = folder.load_model(dtype=precision).to(place)
        release_threads_before_fork()
        computes = "engine transformers"
    if "auto" in (device, dtype, engine) or not folder.is_modernbert:
        print(f"{folder.name}: device {place}, dtype {dtype_name(precision)}, {computes}", file=sys.stderr)
    projection = folder.load_projection(model.hidden_size)
    return model, projection if projection is None else projection.to(place, precision)


def load_model_for_inference(folder: ModelFolder, device: torch.device, dtype: torch.dtype, engine: Engine) -> Model:
    """Load the model of a folder with an engine and its inference plan. It stays an ordinary module.

    Raises: InputError if the folder lacks a file or holds a wrong one.
    """
    model = folder.load_model(engine=engine)  # mapped, in the dtype of the file
    if device.type == "cpu":
        _convert_mapped(model.parameters(), dtype)
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


@torch.inference_mode(False)
def _convert_mapped(parameters: Iterable[nn.Parameter], dtype: torch.dtype) -> None:
    """Convert parameters in place, by way of a temporary file that is mapped.

    Converted copies in ordinary memory would double the memory of a model with packed weights. Pages of a file can be
    dropped, like pages of the model's own file, until the parameters are read.
    """
    converted = [parameter for parameter in parameters if parameter.dtype != dtype]
    if not converted:
        return
    try:
        with tempfile.TemporaryFile() as file:
            offsets = [_write_aligned(file, parameter.detach().to(dtype)) for parameter in converted]
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError:  # the disk is full
        for parameter in converted:
            parameter.data = parameter.data.to(dtype)
        return
    for parameter, offset in zip(converted, offsets, strict=True):
        data = torch.frombuffer(mapped, dtype=dtype, count=parameter.numel(), offset=offset)
        parameter.data = data.view(parameter.shape)


def _write_aligned(file: IO[bytes], tensor: Tensor) -> int:
    """Write a tensor at a multiple of 64 bytes, as torch aligns memory, and return where."""
    file.seek(-(-file.tell() // 64) * 64)
    offset = file.tell()
    file.write(tensor.contiguous().view(torch.uint8).numpy().data)
    return offset
