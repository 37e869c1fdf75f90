"""Devices and dtypes: the choice of both, and the memory of a process and of a machine."""

import ctypes
import functools
import mmap
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from modernbert.errors import InputError

__all__ = [
    "autocast",
    "available_memory",
    "choose_device",
    "choose_precision",
    "dtype_name",
    "has_amx",
    "keep_freed_memory",
    "name_of",
    "peak_memory",
    "release_pages",
    "release_threads_before_fork",
    "restart_peak",
]

# `omp_pause_soft` of omp.h: threads end, settings stay.
_OMP_PAUSE_SOFT = 1
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**30
# Of Linux's madvise.
_MADV_PAGEOUT = 21


def choose_device(name: str) -> torch.device:
    """Return the device of a name; `auto` is the first CUDA device if there is one, else the CPU.

    >>> choose_device("cpu")
    device(type='cpu')

    Raises: InputError if this machine does not have the device.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise InputError(f"device: found {name!r}, expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device: found {name!r}, expected auto, cpu, cuda or cuda:N")
    num_devices = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= num_devices:
        raise InputError(f"device: found {name!r}, but torch can use {num_devices} CUDA devices on this machine")
    return device


def choose_precision(name: str, device: torch.device, field: str = "precision", *others: str) -> torch.dtype:
    """Return the dtype of GEMMs; `auto` is bfloat16 if the hardware multiplies it, else float32.

    >>> choose_precision("float32", torch.device("cpu"))
    torch.float32

    Raises: InputError for any other name, with `field` as the name of the option, and `others` it accepts.
    """
    if name == "auto":
        return torch.bfloat16 if _multiplies_bfloat16(device) else torch.float32
    if name == "float32":
        return torch.float32
    if name == "bfloat16":
        return torch.bfloat16
    names = ["auto", "float32", "bfloat16", *others]
    raise InputError(f"{field}: found {name!r}, expected {', '.join(names[:-1])} or {names[-1]}")


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the autocast context for a dtype; for float32 it changes nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def has_amx() -> bool:
    """Return whether the processor multiplies tiles of bfloat16 (AMX)."""
    # torch has no public function for instruction sets, and a version may lack the private one.
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has_avx512_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return has_amx() or bool(has_avx512_bf16())


def name_of(device: torch.device) -> str:
    """Return the name of a GPU, or the type of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process in bytes: a GPU's tensors, else resident memory; 0 if it is unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        with open("/proc/self/status") as file:  # unlike `getrusage`, it can be reset
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def restart_peak(device: torch.device) -> int:
    """Reset the peak memory, and return the present memory in bytes; the peak so far where it cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if trim := getattr(_libc(), "malloc_trim", None):
        trim(0)  # return freed memory to the system, so that it is not counted
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass
    return peak_memory(device)


def available_memory() -> int:
    """Return the available memory of this machine in bytes; 0 if it is unknown."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return 0


def keep_freed_memory() -> None:
    """Let glibc's malloc keep freed memory, unless environment variables configure malloc.

    Every layer allocates and frees the same tens of MiB. Returned to the system each time, they cost page faults: a
    tenth of the time of a forward pass.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is not None:
        for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            mallopt(parameter, _KEPT_BYTES)


def release_pages(tensors: Iterable[Tensor]) -> None:
    """Return the memory pages of tensors to the system, where Linux can read them again from a file or from swap."""
    madvise = getattr(_libc(), "madvise", None)
    if madvise is not None:
        for tensor in tensors:
            first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
            size = tensor.data_ptr() + tensor.nbytes - first
            madvise(ctypes.c_void_p(first), ctypes.c_size_t(max(0, size)), _MADV_PAGEOUT)


@functools.cache
def release_threads_before_fork() -> None:
    """End the OpenMP threads of a thread before it forks; they start again at its next parallel region.

    Otherwise the forked process inherits OpenMP's record of the threads, but no threads, and waits for them forever.
    Source: `omp_pause_resource_all`, OpenMP 5.0, section 3.2.44.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not hasattr(os, "register_at_fork") or not library.exists():
        return
    pause = getattr(ctypes.CDLL(str(library)), "omp_pause_resource_all", None)  # the OpenMP that torch loads
    if pause is not None:
        os.register_at_fork(before=functools.partial(pause, _OMP_PAUSE_SOFT))


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name without the module.

    >>> dtype_name(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")
