"""Checked calls of C++ functions: C++ reads raw addresses, so dtype, device, shape and contiguity are checked first."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modernbert.devices import dtype_name
from modernbert.engines.cpu.build import library

__all__ = ["call", "expect", "expect_angles", "expect_offsets", "expect_whole_vectors", "rows_per_block"]

HEAD_WIDTH = 64
# Rows are processed in whole vectors; the widest has this many lanes.
WIDTH_STEP = 16
FLOATS = (torch.float32, torch.bfloat16)
FLOAT32, INT32, INT64 = (torch.float32,), (torch.int32,), (torch.int64,)


def expect(
    name: str, tensor: Tensor, dtypes: Sequence[torch.dtype], *shape: int | None, contiguous: bool = True
) -> None:
    """Check a tensor before C++ reads its memory; None accepts any size.

    Raises: ValueError naming the found and the expected dtype, shape, strides and device.
    """
    if (
        tensor.dtype in dtypes
        and tensor.is_cpu
        and len(shape) == tensor.ndim
        and all(size is None or size == found for size, found in zip(shape, tensor.shape, strict=True))
        and (not contiguous or tensor.is_contiguous())
    ):
        return
    types = " or ".join(map(dtype_name, dtypes))
    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    raise ValueError(
        f"{name}: found {dtype_name(tensor.dtype)} {list(tensor.shape)} of strides "
        f"{list(tensor.stride())} on {tensor.device}, "
        f"expected{' contiguous' if contiguous else ''} {types} [{sizes}] on cpu"
    )


def expect_angles(num_tokens: int, cosines: Tensor, sines: Tensor) -> None:
    """Check the cosines and sines of RoPE."""
    for name, angles in (("cosines", cosines), ("sines", sines)):
        expect(name, angles, FLOAT32, num_tokens, HEAD_WIDTH // 2)


def expect_offsets(offsets: Tensor, num_tokens: int) -> None:
    """Check where documents begin and end: C++ reads rows up to the last offset."""
    expect("offsets", offsets, INT32, None)
    if not len(offsets) or int(offsets[-1]) != num_tokens:
        raise ValueError(f"offsets: found the end {offsets[-1:].tolist()}, expected the {num_tokens} tokens")


def expect_whole_vectors(width: int | float) -> None:
    """Check that whole vectors cover a row: C++ would read past its end."""
    if width % WIDTH_STEP:
        raise ValueError(f"width {width:g}: expected a multiple of {WIDTH_STEP}")


def rows_per_block() -> int:
    """Return the number of rows whose gradients C++ sums before it writes a partial sum."""
    return int(library().rows_per_block())


def call(name: str, dtypes: Sequence[torch.dtype], *arguments: Tensor | int | float | None) -> Any:
    """Call the C++ function of a name for some dtypes, such as `geglu_float32`."""
    function = getattr(library(), "_".join((name, *map(dtype_name, dtypes))))
    return function(*_as_c(arguments), ctypes.c_int64(torch.get_num_threads()))


def _as_c(arguments: Sequence[Tensor | int | float | None]) -> list[Any]:
    """Convert arguments to ctypes, in one comprehension: small models make many calls of a few microseconds."""
    return [
        ctypes.c_void_p(argument.data_ptr())
        if isinstance(argument, Tensor)
        else ctypes.c_void_p(None)
        if argument is None
        else ctypes.c_float(argument)
        if isinstance(argument, float)
        else ctypes.c_int64(argument)
        for argument in arguments
    ]
