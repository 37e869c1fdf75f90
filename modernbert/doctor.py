"""`modernbert doctor`: what this machine has, in a form to paste into a bug report."""

import os
import platform
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

__all__ = ["DoctorConfig", "run"]

_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "avx_vnni",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "sve",
    "bf16",
    "i8mm",
)
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "MODERNBERT_NUM_THREADS",
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "RAY_ADDRESS", "XDG_CACHE_HOME",
)  # fmt: skip
# Their values may hold a password.
_SECRET_VARIABLES = ("HF_TOKEN", "HTTPS_PROXY", "HTTP_PROXY", "MODERNBERT_API_KEY", "https_proxy")


@dataclass(frozen=True)
class DoctorConfig:
    """Print versions, processor, engines and why each is or is not available, extras and cache folders.

    Paste the output into a bug report: it has no secrets.
    """


def run(config: DoctorConfig) -> None:
    """Print what this machine has."""
    for title, lines in {
        "versions": _versions(),
        "machine": _machine(),
        "engines": _engines(),
        "extras": _extras(),
        "folders": _folders(),
        "environment": _environment(),
    }.items():
        print(f"{title}:")
        for line in lines:
            print(f"  {line}", flush=True)


def _versions() -> Iterator[str]:
    yield f"modernbert {metadata.version('modernbert')}, Python {platform.python_version()}, {platform.platform()}"
    names = ("torch", "triton", "numpy", "tokenizers", "safetensors", "huggingface_hub", "transformers")
    yield ", ".join(f"{name} {version}" for name in names if (version := _version(name)))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> Iterator[str]:
    import torch

    from modernbert.console import processor_name
    from modernbert.devices import available_memory, limit_threads

    limit_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    yield f"processor: {processor_name() or platform.machine()}, {cores} cores, torch uses {threads} threads"
    yield f"features: {' '.join(_features()) or 'unknown'}"
    yield f"memory: {available_memory() / 2**30:.1f} GiB available"
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        memory = found.total_memory / 2**30
        yield f"GPU {number}: {found.name}, {memory:.0f} GiB, compute capability {found.major}.{found.minor}"
    if not torch.cuda.device_count():
        yield f"GPU: none that torch can use (torch is built for {torch.version.cuda or 'the CPU'})"
    yield f"compiler: {_compiler()}"


def _features() -> list[str]:
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return []
    return [each for each in _FEATURES if each in words]


def _int8() -> str:
    """Return what `--dtype int8` computes with."""
    from modernbert.engines.cpu import build

    if build.unavailable_reason() is not None:
        return "slower than float32: only engine cpu has kernels for it"
    if {"avx512_vnni", "avx_vnni"} & set(_features()):
        return "available, with VNNI"
    return "available, without VNNI: activations have 7 bits"


def _compiler() -> str:
    from modernbert.engines.cpu.build import find_compiler

    path = find_compiler()
    if path is None:
        return "none; install g++ for the CPU kernels"
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path}: {error}"
    return f"{path}: {(done.stdout or done.stderr).splitlines()[0]}"


def _engines() -> Iterator[str]:
    import torch

    from modernbert.devices import choose_device, choose_precision, dtype_name
    from modernbert.engines.registry import engines
    from modernbert.model.config import ModelConfig

    device = choose_device("auto")
    dtype, config = choose_precision("auto", device), ModelConfig()
    for engine in engines():
        at = torch.device("cpu") if engine.device_type == "cpu" else device
        reason = engine.unavailable_reason(at, dtype, config)
        yield f"{engine.name}: {'available' if reason is None else f'not available: {reason}'}"
    yield f"auto computes on {device.type} in {dtype_name(dtype)}"
    yield f"int8 on cpu: {_int8()}"


def _extras() -> Iterator[str]:
    from modernbert.extras import EXTRAS, is_installed

    lacking = defaultdict[str, list[str]](list)
    for library, (package, extra) in EXTRAS.items():
        lacking[extra] += [] if is_installed(library) else [package]
    for extra, packages in sorted(lacking.items()):
        yield f"{extra}: {'not installed: ' + ', '.join(packages) if packages else 'installed'}"


def _folders() -> Iterator[str]:
    from huggingface_hub import constants

    from modernbert.engines.cpu.build import cache_folder

    for name, folder in {"models": Path(constants.HF_HUB_CACHE), "kernels": cache_folder()}.items():
        above = next(path for path in (folder, *folder.parents) if path.exists())
        writable = "writable" if os.access(above, os.W_OK) else "not writable"
        yield f"{name}: {folder} ({writable}, {shutil.disk_usage(above).free / 1e9:.0f} GB free)"


def _environment() -> Iterator[str]:
    found = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    found |= {name: "(set)" for name in _SECRET_VARIABLES if os.environ.get(name)}
    yield from (f"{name}={value}" for name, value in found.items())
