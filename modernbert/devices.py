"""Devices and dtypes: the choice of both, threads, and the memory of a process and of a machine."""

import ctypes
import functools
import math
import mmap
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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
    "limit_threads",
    "name_of",
    "peak_memory",
    "release_pages",
    "release_threads_before_fork",
    "restart_peak",
    "serial_torch",
]

# `omp_pause_soft` of omp.h: threads end, settings stay.
_OMP_PAUSE_SOFT = 1
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**30
# Of Linux's madvise.
_MADV_PAGEOUT = 21
_MAX_THREADS = 1_024
# Rows times threads of torch operations that one thread computes; for more, other threads save time.
_MAX_SERIAL = 2**14


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
    pause = _of_torch("omp_pause_resource_all")
    if pause is not None and hasattr(os, "register_at_fork"):
        os.register_at_fork(before=functools.partial(pause, _OMP_PAUSE_SOFT))


@contextmanager
def serial_torch(num_rows: int) -> Iterator[None]:
    """Run torch's operations on a few rows on the calling thread alone.

    OpenMP's threads spin for milliseconds after an operation, and take cores from the threads of the CPU kernels.
    `torch.get_num_threads()` is 1 meanwhile.
    """
    num_threads = torch.get_num_threads()
    # Unlike torch's function, both change the calling thread alone. MKL counts its threads separately, for cos and sin.
    set_threads, set_mkl_threads = _of_torch("omp_set_num_threads"), _of_torch("MKL_Set_Num_Threads_Local")
    if set_threads is None or num_threads == 1 or num_rows * num_threads > _MAX_SERIAL:
        yield
        return
    set_threads(1)
    mkl_threads = set_mkl_threads(1) if set_mkl_threads else 0
    try:
        yield
    finally:
        set_threads(num_threads)
        if set_mkl_threads:
            set_mkl_threads(mkl_threads)


@functools.cache
def _of_torch(name: str) -> Callable[[int], int] | None:
    """Return a function of the OpenMP or MKL that torch loads, or None."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    return getattr(ctypes.CDLL(str(library)), name, None) if library.exists() else None


def limit_threads() -> None:
    """Set torch's number of threads to `MODERNBERT_NUM_THREADS`, or lower its default to the CPU quota of the cgroup.

    A number from `OMP_NUM_THREADS`, `MKL_NUM_THREADS` or `torch.set_num_threads` stays.

    Raises: InputError if `MODERNBERT_NUM_THREADS` is not a number of threads.
    """
    asked = os.environ.get("MODERNBERT_NUM_THREADS")
    if asked is not None:
        if not (asked.isascii() and asked.isdigit() and 1 <= int(asked) <= _MAX_THREADS):
            raise InputError(f"MODERNBERT_NUM_THREADS: found {asked!r}, expected a number from 1 to {_MAX_THREADS:,}")
        torch.set_num_threads(int(asked))
        return
    if any(os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")):
        return
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, found = _cpu_quota(), torch.get_num_threads()
    # torch's default is the number of logical or of physical cores; any other number was set.
    if quota is not None and quota < found and found in (num_cores, num_cores // 2):
        torch.set_num_threads(max(1, math.ceil(quota)))


def _cpu_quota(membership: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the number of cores that Linux grants this process, the least of its control groups, or None."""
    quotas = []
    try:
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            root = groups / "cpu" if controllers else groups
            here = root / path.strip("/")
            # In a container, the path may be of the host; then the root is the container's group.
            for folder in {root, here, *(each for each in here.parents if root in each.parents)}:
                quota = _quota_of(folder)
                quotas += [] if quota is None else [quota]
    except (OSError, ValueError):
        return None
    return min(quotas, default=None)


def _quota_of(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()  # version 2
    except OSError:
        try:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name without the module.

    >>> dtype_name(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")
