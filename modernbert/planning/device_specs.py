"""Speed and memory of devices: GPUs by their data sheets, this CPU by measurement."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from modernbert.devices import available_memory
from modernbert.errors import InputError
from modernbert.training.flops import known_peak

__all__ = ["GPUS", "DeviceSpec", "cpu_gemm_flops_per_s", "gpu_spec", "measure_cpu"]


@dataclass(frozen=True)
class DeviceSpec:
    """Speed that a program reaches on a device, and its memory.

    Units: floating-point operations per second, bytes per second, bytes. A CPU has 0 `multiprocessors`.
    """

    name: str
    gemm_flops_per_s: float
    attention_flops_per_s: float
    bandwidth: float
    memory: float
    multiprocessors: int = 0
    supports_dtype: bool = True
    """Whether the GPU multiplies in the requested precision; otherwise the numbers are for float16."""


# Shares of the data sheet's numbers that programs reach with models of this size: GEMMs of 768 to 2,624 columns, flash
# attention with heads of 64, passes over memory, and memory for tensors.
_GEMM, _ATTENTION, _BANDWIDTH, _MEMORY = 0.65, 0.45, 0.85, 0.92

# Name in the driver; bandwidth in GB/s, memory in GB, multiprocessors. Source: the data sheets.
_DATA_SHEETS = {
    "t4": ("Tesla T4", 320, 16, 40),
    "a10": ("NVIDIA A10", 600, 24, 72),
    "l4": ("NVIDIA L4", 300, 24, 58),
    "3090": ("NVIDIA GeForce RTX 3090", 936, 24, 82),
    "4090": ("NVIDIA GeForce RTX 4090", 1008, 24, 128),
    "a100": ("NVIDIA A100-SXM4-80GB", 2039, 80, 108),
    "h100": ("NVIDIA H100 80GB HBM3", 3350, 80, 132),
    "h200": ("NVIDIA H200", 4800, 141, 132),
}
GPUS = tuple(_DATA_SHEETS)
"""The GPUs of appendix B of the paper, and the H200."""


def gpu_spec(name: str, dtype: torch.dtype = torch.bfloat16) -> DeviceSpec:
    """Return the specification of a GPU in a precision; in float16 if it does not support bfloat16.

    >>> gpu_spec("h100").multiprocessors
    132

    Raises:
        InputError: The name is unknown.
    """
    name = name.lower()
    if name not in _DATA_SHEETS:
        raise InputError(f"device: found {name!r}, expected cpu or one of {', '.join(GPUS)}")
    driver_name, bandwidth, memory, multiprocessors = _DATA_SHEETS[name]
    # GPUs before Ampere have float16 only.
    peak_in_dtype = known_peak(driver_name, dtype)
    peak = peak_in_dtype or known_peak(driver_name, torch.float16)
    assert peak is not None, driver_name
    return DeviceSpec(
        name=driver_name.removeprefix("NVIDIA ").removeprefix("GeForce "),
        gemm_flops_per_s=_GEMM * peak,
        attention_flops_per_s=_ATTENTION * peak,
        bandwidth=_BANDWIDTH * bandwidth * 1e9,
        memory=_MEMORY * memory * 1e9,
        multiprocessors=multiprocessors,
        supports_dtype=peak_in_dtype is not None,
    )


def measure_cpu(dtype: torch.dtype, attend: Callable[[Tensor], Tensor], attention_flops: float) -> DeviceSpec:
    """Measure this CPU: a GEMM of the base shape, a copy, and attention.

    Args:
        dtype: Precision.
        attend: Attention over queries, keys and values of the shape [4096, 3, 12, 64].
        attention_flops: Floating-point operations of one call of `attend`.
    """
    source = torch.randn(32 * 2**20)
    target = torch.empty_like(source)
    qkv = torch.randn(4096, 3, 12, 64).to(dtype)
    with torch.inference_mode():
        return DeviceSpec(
            name=f"this CPU, {torch.get_num_threads()} threads",
            gemm_flops_per_s=cpu_gemm_flops_per_s(dtype),
            attention_flops_per_s=attention_flops / _fastest(lambda: attend(qkv)),
            bandwidth=2 * source.numel() * source.element_size() / _fastest(lambda: target.copy_(source)),
            memory=_MEMORY * available_memory(),
        )


def cpu_gemm_flops_per_s(dtype: torch.dtype) -> float:
    """Measure a GEMM of the base shape on this CPU, in floating-point operations per second."""
    rows, inputs, outputs = 4096, 768, 2304
    hidden, weight = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
    return 2 * rows * inputs * outputs / _fastest(lambda: hidden @ weight.T)


def _fastest(work: Callable[[], object], times: int = 5) -> float:
    work()
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
