"""Safe reader of `torch.save` files: a zip archive of `data.pkl` and the bytes of each storage.

The pickle is read as data (`pickle_reader`), and each tensor is checked against its storage. Memory is bounded by the
size of the file: compressed or overlapping members are refused, and no tensor is larger than its storage.
"""

import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from modernbert.checkpoints.pickle_reader import MAX_BYTES, Call, Imported, Persistent, read_pickle
from modernbert.errors import InputError

__all__ = ["StoredTensor", "TorchFile", "open_torch_file", "stored_tensor"]

_DTYPES = {
    "torch.FloatStorage": torch.float32, "torch.DoubleStorage": torch.float64, "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
}  # fmt: skip
_REBUILD = "torch._utils._rebuild_tensor_v2"
# Functions whose first argument is the tensor.
_WRAPPERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_TYPED = "torch._tensor._rebuild_from_type_v2"
_MAX_AXES = 8
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"


@dataclass(frozen=True)
class StoredTensor:
    """The position of a tensor in a file: its storage and the storage's size, and offset, shape and strides in it."""

    storage: str
    dtype: torch.dtype
    stored: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the tensor in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class TorchFile:
    """An open file: its `content`, and the bytes of its storages."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path, self._archive = path, archive
        self._members = _members(path, archive)
        if "constants.pkl" in self._members:
            raise InputError(f"{path}: is a program of TorchScript, expected a file of torch.save")
        if "data.pkl" not in self._members:
            raise InputError(f"{path}: has no data.pkl, expected a file of torch.save")
        order = self._read("byteorder") if "byteorder" in self._members else b"little"
        if order != b"little":
            raise InputError(f"{path}: has byte order {order[:20]!r}, expected 'little'")
        size = self._members["data.pkl"].file_size
        if size > MAX_BYTES:
            raise InputError(f"{path}: data.pkl has {size:,} bytes, expected at most {MAX_BYTES:,}")
        try:
            self.content = read_pickle(self._read("data.pkl"))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def tensors(self, described: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
        """Read tensors.

        Raises: InputError naming the tensor whose bytes are missing, damaged, or of another size.
        """
        whole = sum(each.num_bytes for each in described.values())
        # Tied weights have two names; no other tensor occurs twice.
        if whole > 2 * self._path.stat().st_size:
            raise InputError(f"{self._path}: names {whole:,} bytes of tensors, many more than the file has")
        made: dict[str, Tensor] = {}
        by_storage: dict[str, list[str]] = {}
        for name, each in described.items():
            by_storage.setdefault(each.storage, []).append(name)
        for storage, names in by_storage.items():
            for name in names:
                self._check(name, described[name])
            content = bytearray(self._read(f"data/{storage}"))
            for name in names:
                each = described[name]
                numbers = torch.frombuffer(content, dtype=each.dtype)
                made[name] = numbers.as_strided(each.shape, each.strides, each.offset).clone(
                    memory_format=torch.contiguous_format
                )
        return {name: made[name] for name in described}

    def _check(self, name: str, each: StoredTensor) -> None:
        """Check a tensor against the member of its storage."""
        member = self._members.get(f"data/{each.storage}")
        if member is None:
            raise InputError(
                f"{self._path}: {name} is in the storage {each.storage[:40]!r}, which the file does not have"
            )
        expected = each.stored * each.dtype.itemsize
        if member.file_size != expected:
            raise InputError(
                f"{self._path}: data/{each.storage} of {name} has {member.file_size:,} bytes, expected {expected:,}"
            )

    def _read(self, name: str) -> bytes:
        try:
            return self._archive.read(self._members[name])
        except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
            raise InputError(f"{self._path}: {name} is damaged ({' '.join(str(error).split())[:100]})") from None


@contextmanager
def open_torch_file(path: Path) -> Iterator[TorchFile]:
    """Open a file of `torch.save`.

    Raises: InputError if it is another file, damaged, or older than torch 1.6.
    """
    if path.is_dir():
        raise InputError(
            f"{path}: is a folder, expected one file of torch.save (make a sharded checkpoint whole first)"
        )
    try:
        archive = zipfile.ZipFile(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise InputError(f"{path}: {_describe(path, error)}, expected a zip file of torch.save") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    with archive:
        yield TorchFile(path, archive)


def stored_tensor(value: Any, name: str) -> StoredTensor:
    """Return the position of a tensor from the call that would rebuild it.

    Raises: InputError naming the tensor, if it is not one, has an unsupported type, or exceeds its storage.
    """
    for _ in range(3):
        if isinstance(value, Call) and value.name in _WRAPPERS and _is_filled(value.args, 1):
            value = value.args[0]
        elif isinstance(value, Call) and value.name == _TYPED and _is_filled(value.args, 3):
            inner = value.args[0]
            value = Call(inner.name, value.args[2]) if isinstance(inner, Imported) else None
    if not isinstance(value, Call) or value.name != _REBUILD or not _is_filled(value.args, 4):
        found = (
            f"is built by {value.name[:80]!r}" if isinstance(value, Call) else f"is a {type(value).__name__.lower()}"
        )
        raise InputError(f"{name[:120]!r} {found}, expected a tensor")
    storage, dtype, stored = _storage(value.args[0], name)
    offset, shape, strides = value.args[1:4]
    counts = [offset, *_counts(shape, name), *_counts(strides, name)]
    if any(type(count) is not int or not 0 <= count <= stored for count in counts) or len(shape) != len(strides):
        raise InputError(f"{name[:120]!r} has a size, stride or offset that exceeds its storage of {stored:,}")
    if len(value.args) > 6 and value.args[6]:
        raise InputError(f"{name[:120]!r} is a view that changes signs, expected a plain tensor")
    last = offset + sum((count - 1) * stride for count, stride in zip(shape, strides, strict=True))
    if 0 in shape or last >= stored or math.prod(shape) > stored:
        raise InputError(f"{name[:120]!r} of shape {list(shape)} reaches beyond its storage of {stored:,} numbers")
    return StoredTensor(storage, dtype, stored, offset, shape, strides)


def _storage(value: Any, name: str) -> tuple[str, torch.dtype, int]:
    """Return the key of a storage, the type of its numbers, and their count."""
    key = value.key if isinstance(value, Persistent) else None
    if not isinstance(key, tuple) or len(key) != 5 or key[0] != "storage":
        raise InputError(f"{name[:120]!r} refers to no storage of this file")
    _, kind, member, _, stored = key
    if not isinstance(kind, Imported) or not isinstance(member, str) or type(stored) is not int or stored < 1:
        raise InputError(f"{name[:120]!r} refers to no storage of this file")
    if kind.name not in _DTYPES:
        raise InputError(f"{name[:120]!r} holds {kind.name[:80]!r}, expected floating point numbers")
    return member, _DTYPES[kind.name], stored


def _counts(value: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(value, tuple) or len(value) > _MAX_AXES:
        raise InputError(f"{name[:120]!r} has no shape of at most {_MAX_AXES} axes")
    return value


def _is_filled(args: Any, count: int) -> bool:
    return isinstance(args, tuple) and len(args) >= count


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the members by their names in the archive's only folder. Nothing is extracted to disk."""
    members: dict[str, zipfile.ZipInfo] = {}
    folders = set()
    for info in archive.infolist():
        parts = PurePosixPath(info.filename).parts
        if info.filename.startswith("/") or "\\" in info.filename or ".." in parts or len(parts) < 2:
            raise InputError(f"{path}: has a member {info.filename[:80]!r}, which no file of torch.save has")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
            raise InputError(f"{path}: {info.filename[:80]!r} is compressed, which torch.save never does")
        name = "/".join(parts[1:])
        if name in members:
            raise InputError(f"{path}: has {info.filename[:80]!r} twice")
        folders.add(parts[0])
        members[name] = info
    if len(folders) > 1:
        raise InputError(f"{path}: has {len(folders)} folders, expected the one of torch.save")
    if sum(info.file_size for info in members.values()) > path.stat().st_size:
        raise InputError(f"{path}: its members overlap; torch.save never writes such a file")
    return members


def _describe(path: Path, error: Exception) -> str:
    """Describe a file that is not a zip archive."""
    with path.open("rb") as stream:
        start = stream.read(512)
    if _LEGACY in start[:40]:
        return "is in the form that torch.save had before torch 1.6 (save it again with a newer torch)"
    if start[257:262] == b"ustar":
        return "is a tar archive"
    if start[:1] == b"\x80":
        return "is a bare pickle"
    return f"is not readable ({' '.join(str(error).split())[:100]})"
