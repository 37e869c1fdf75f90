"""What a device can do: GPUs by their data sheets, and the machine at hand by measuring it.

In: a name. Out: rates, memory and multiprocessors. A file of its own because these are the only numbers of a forecast
that do not follow from the model.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from modernbert.devices import available_memory
from modernbert.errors import InputError
from modernbert.training.flops import known_peak

__all__ = ["BASKET", "Machine", "machine_of", "measure_cpu", "product_rate"]


@dataclass(frozen=True)
class Machine:
    """Rates that a program can reach, not those of an ideal one.

    Units: operations per second of matrix products and of attention, bytes per second, bytes. `multiprocessors` is 0
    for a CPU.
    """

    name: str
    products: float
    attention: float
    bandwidth: float
    memory: float
    multiprocessors: int = 0
    multiplies_as_asked: bool = True


# Shares of the data sheet's figures that well-kept programs reach at this size of model: products of a width of 768 to
# 2,624, flash attention at a head width of 64, passes over memory, and memory that is left for tensors.
_PRODUCTS, _ATTENTION, _BANDWIDTH, _MEMORY = 0.65, 0.45, 0.85, 0.92

# Name, as the driver tells it; bandwidth in GB/s, memory in GB, multiprocessors. Source: the data sheets.
_SHEETS = {
    "t4": ("Tesla T4", 320, 16, 40),
    "a10": ("NVIDIA A10", 600, 24, 72),
    "l4": ("NVIDIA L4", 300, 24, 58),
    "3090": ("NVIDIA GeForce RTX 3090", 936, 24, 82),
    "4090": ("NVIDIA GeForce RTX 4090", 1008, 24, 128),
    "a100": ("NVIDIA A100-SXM4-80GB", 2039, 80, 108),
    "h100": ("NVIDIA H100 80GB HBM3", 3350, 80, 132),
    "h200": ("NVIDIA H200", 4800, 141, 132),
}
BASKET = tuple(_SHEETS)
"""The GPUs of the paper's appendix B, and the newest of their line."""


def machine_of(name: str, dtype: torch.dtype = torch.bfloat16) -> Machine:
    """Return what a GPU of the basket can do in a precision, or in float16 where it has no bfloat16.

    >>> machine_of("h100").multiprocessors
    132

    Raises: InputError for a name that is not in the basket.
    """
    name = name.lower()
    if name not in _SHEETS:
        raise InputError(f"device: found {name!r}, expected cpu or one of {', '.join(BASKET)}")
    driver_name, bandwidth, memory, multiprocessors = _SHEETS[name]
    # Before Ampere only float16.
    asked = known_peak(driver_name, dtype)
    peak = asked or known_peak(driver_name, torch.float16)
    assert peak is not None, driver_name
    return Machine(
        name=driver_name.removeprefix("NVIDIA ").removeprefix("GeForce "),
        products=_PRODUCTS * peak,
        attention=_ATTENTION * peak,
        bandwidth=_BANDWIDTH * bandwidth * 1e9,
        memory=_MEMORY * memory * 1e9,
        multiprocessors=multiprocessors,
        multiplies_as_asked=asked is not None,
    )


def measure_cpu(dtype: torch.dtype, attend: Callable[[Tensor], Tensor], attention_flops: float) -> Machine:
    """Measure the processor at hand: a product of the base shape, a copy, and attention as the model runs it.

    `attend` takes queries, keys and values [T, 3, 12, 64] of `attention_flops` operations.
    """
    source = torch.randn(32 * 2**20)
    target = torch.empty_like(source)
    qkv = torch.randn(4096, 3, 12, 64).to(dtype)
    with torch.inference_mode():
        return Machine(
            name=f"this CPU, {torch.get_num_threads()} threads",
            products=product_rate(dtype),
            attention=attention_flops / _fastest(lambda: attend(qkv)),
            bandwidth=2 * source.numel() * source.element_size() / _fastest(lambda: target.copy_(source)),
            memory=_MEMORY * available_memory(),
        )


def product_rate(dtype: torch.dtype) -> float:
    """Measure a product of the base shape on this processor, in operations per second."""
    rows, inputs, outputs = 4096, 768, 2304
    hidden, weight = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
    return 2 * rows * inputs * outputs / _fastest(lambda: hidden @ weight.T)


def _fastest(work: Callable[[], object], times: int = 5) -> float:
    work()
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)
