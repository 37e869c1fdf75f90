"""The C++ kernels as another processor runs them; instructions that this one does not have are emulated."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from modernbert.engines.cpu import build


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the caches of compiled libraries, which all test processes share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@contextmanager
def compiled(cache: Path, flags: list[str]) -> Iterator[None]:
    """Use the library that these flags compile, with less optimization, which would triple the time."""
    flags = ["-O1" if flag == "-O3" else flag for flag in flags]
    cache.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_FLAGS", flags)
        patch.setenv("XDG_CACHE_HOME", str(cache))
        build._load.cache_clear()
        with FileLock(cache / "lock"):
            assert build.unavailable_reason() is None
        yield
    build._load.cache_clear()


@pytest.fixture
def tiles(caches: Path) -> Iterator[None]:
    """AMX."""
    flags = build._FLAGS
    if "amx_int8" not in build._processor_features():
        header = str(Path(__file__).parent / "emulated_tiles.h")
        flags = [*flags, "-include", header, "-D__AMX_BF16__", "-D__AMX_INT8__"]
    with compiled(caches / "tiles", flags):
        yield


@pytest.fixture
def avx2(caches: Path) -> Iterator[None]:
    """AVX2 without bfloat16 and int8 instructions, as in an older laptop."""
    with compiled(caches / "avx2", [*(flag for flag in build._FLAGS if flag != "-march=native"), "-march=haswell"]):
        yield


@pytest.fixture
def avx_vnni(caches: Path) -> Iterator[None]:
    """AVX2 with int8 instructions of 256 bits, as in a newer laptop."""
    flags = [*(flag for flag in build._FLAGS if flag != "-march=native"), "-march=haswell"]
    header = str(Path(__file__).parent / "emulated_vnni.h")
    with compiled(caches / "avx_vnni", [*flags, "-include", header, "-D__AVXVNNI__"]):
        yield
