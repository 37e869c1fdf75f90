"""Compile the C++ kernels for this machine on first use, keep the library in the user's cache, and load it."""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from modernbert.errors import InputError
from modernbert.files import write_file

__all__ = ["cache_folder", "find_compiler", "library", "unavailable_reason"]

logger = logging.getLogger("modernbert")

_FLAGS = ["-O3", "-march=native", "-std=c++17", "-pthread", "-fPIC", "-shared", "-fvisibility=hidden", "-w"]
_FOLDER = Path(__file__).parent
_SOURCES = ("attention.cpp", "elementwise.cpp", "encoder.cpp", "linear.cpp", "training.cpp")


def library() -> ctypes.CDLL:
    """Return the loaded library.

    Raises: InputError if it is not available, as for a model that was pickled on another machine.
    """
    loaded = _load()
    if isinstance(loaded, str):
        raise InputError(f"engine: cpu {loaded}; load the model folder on this machine (ModernBert.load)")
    return loaded


def unavailable_reason() -> str | None:
    """Return why the library is not available on this machine, or None.

    The first call compiles it, which takes a few seconds, and caches it for the next process.
    """
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


@functools.cache
def _load() -> ctypes.CDLL | str:
    features = _processor_features()
    if not {"avx2", "fma"} <= features:
        return "needs Linux and an x86-64 processor with AVX2"
    try:
        loaded = _open(_target(features))
        loaded.cross_entropy_float32.restype = loaded.cross_entropy_bfloat16.restype = ctypes.c_double
        loaded.update_moments.restype = ctypes.c_double
    except subprocess.CalledProcessError as error:
        return f"could not be compiled by {error.cmd[0]}: {_first_error(error.stderr)}"
    except (OSError, InputError, AttributeError) as error:
        return str(error)
    return loaded if loaded.init_kernels() else "needs AMX tiles, which the system refused"


def _open(target: Path) -> ctypes.CDLL:
    """Load the cached library, or compile it; if it cannot be cached, only this process uses it.

    Raises: subprocess.CalledProcessError if compilation fails; InputError if there is no compiler; OSError if the
        compiled file is not a library.
    """
    untrusted = _untrusted(target.parent) or _untrusted(target)
    if not untrusted and _is_whole(target):
        return ctypes.CDLL(str(target))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        made = Path(folder) / "kernels.so"
        _compile(made)
        library = made.read_bytes()
        try:
            if untrusted:
                raise InputError(f"{untrusted}, so it is not used")
            _make_private(target.parent)
            write_file(target, library + hashlib.sha256(library).digest())
        except InputError as error:
            logger.warning(
                "%s; the next process compiles the kernels again (XDG_CACHE_HOME names another cache)", error
            )
        return ctypes.CDLL(str(made))


def _untrusted(path: Path) -> str | None:
    """Return why another user may have made or changed a file or folder of the cache, or None."""
    try:
        found = path.lstat(), path.stat()
    except OSError:
        return None  # it does not exist yet
    for each in found:
        if each.st_uid not in (os.getuid(), 0):
            return f"{path}: belongs to user {each.st_uid}, expected {os.getuid()}"
        if not stat.S_ISLNK(each.st_mode) and each.st_mode & stat.S_IWOTH:
            return f"{path}: found mode {stat.filemode(each.st_mode)}, expected no write permission for others"
    return None


def _make_private(folder: Path) -> None:
    """Make the cache folder, readable for this user only.

    Raises: InputError if it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror}") from None


def _processor_features() -> set[str]:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return set()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def _target(features: set[str]) -> Path:
    """Return the path of the cached library: one per source, processor and torch version."""
    digest = hashlib.sha256(" ".join([*_FLAGS, *sorted(features), torch.__version__]).encode())
    for path in sorted((*_FOLDER.glob("*.h"), *_FOLDER.glob("*.cpp"))):
        digest.update(path.read_bytes())
    return cache_folder() / f"kernels-{digest.hexdigest()[:20]}.so"


def cache_folder() -> Path:
    """Return the folder of compiled kernels."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modernbert"
    except RuntimeError:  # a user without a home folder, as in containers
        return Path(tempfile.gettempdir()) / f"modernbert-{os.getuid()}"


def find_compiler() -> str | None:
    """Return the path of the C++ compiler, if there is one."""
    return next((found for name in ("g++", "c++") if (found := shutil.which(name))), None)


def _compile(made: Path) -> None:
    """Raises: subprocess.CalledProcessError if it does not compile; InputError if there is no compiler."""
    compiler = find_compiler()
    if compiler is None:
        raise InputError("needs a C++ compiler, found none (apt install g++)")
    logger.warning("compiling the CPU kernels for this processor, once")

    def run(*arguments: str) -> None:
        subprocess.run([compiler, *_FLAGS, *arguments], capture_output=True, text=True, errors="replace", check=True)

    objects = [str(made.with_name(f"{name}.o")) for name in _SOURCES]
    with ThreadPoolExecutor() as pool:  # one compiler process per source
        list(pool.map(lambda name, made: run("-c", str(_FOLDER / name), "-o", made), _SOURCES, objects))
    run(*objects, "-o", str(made))


def _is_whole(target: Path) -> bool:
    """Return whether a file is complete, by the SHA-256 at its end: loading half a library ends the process."""
    try:
        content = target.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


def _first_error(output: str) -> str:
    lines = [line for line in output.splitlines() if "error" in line]
    return (lines or output.splitlines() or ["no message"])[0][:200]
