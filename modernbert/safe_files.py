"""Safe reads of files from an untrusted folder: regular files only, of a bounded size, as bytes or JSON."""

import json
import os
import re
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from modernbert.errors import InputError, shown

__all__ = [
    "FolderFiles",
    "check_file",
    "check_keys",
    "is_one_line",
    "is_there",
    "read_bytes",
    "read_json",
    "read_json_list",
]

Json = TypeVar("Json")

# Published files are smaller than 2 MB and have some thousand objects. The bound on brackets limits the memory of the
# parsed objects.
_MAX_JSON_BYTES, _MAX_BRACKETS = 2**22, 100_000
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LONE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class FolderFiles:
    """The JSON files of a folder; each is read and checked once. `folder / name` is a path, `str(folder)` the folder's.

    The objects are shared by all readers: do not change them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._objects: dict[str, dict[str, Any]] = {}
        self._lists: dict[str, list[Any]] = {}

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __str__(self) -> str:
        return str(self.path)

    def read_json(self, name: str, *, missing_ok: bool = False) -> dict[str, Any]:
        """Read a file with a JSON object, see `read_json`."""
        if name not in self._objects:
            found = read_json(self / name, missing_ok=missing_ok)
            if not found and missing_ok:
                return found
            self._objects[name] = found
        return self._objects[name]

    def read_json_list(self, name: str) -> list[Any]:
        """Read a file with a JSON list, see `read_json_list`."""
        if name not in self._lists:
            self._lists[name] = read_json_list(self / name)
        return self._lists[name]


def check_file(path: Path, most_bytes: int | None = None) -> int:
    """Return the size of a regular file in bytes.

    Links are followed, since the hub's cache consists of links; the content is only ever read as JSON or numbers.

    Raises: InputError if it does not exist, is a folder, a pipe or a device, or is too large.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, expected a model folder") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({_reason(error)})") from None
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise InputError(f"{path}: is {kind}, expected a file")
    if most_bytes is not None and found.st_size > most_bytes:
        raise InputError(f"{path}: has {found.st_size:,} bytes, expected at most {most_bytes:,}")
    return found.st_size


def is_there(path: Path) -> bool:
    """Return whether there is an entry of this name; a broken link counts."""
    try:
        return os.path.lexists(path)
    except ValueError:  # a NUL in the name
        return False


def is_one_line(label: str) -> bool:
    """Return whether a label has no control character, so it can be printed unescaped.

    >>> is_one_line("very good"), is_one_line("very\\ngood")
    (True, False)
    """
    return _CONTROL.search(label) is None


def check_keys(found: Mapping[str, Any], known: Collection[str], place: str) -> None:
    """Refuse unknown keys, since any of them could change the outputs of a model. Null values are ignored.

    Raises: InputError naming `place`, the first unknown key and its value, and the known keys.
    """
    for key, value in found.items():
        if key not in known and value is not None:
            named, said = shown(str(key), 60), shown(repr(value), 60)
            raise InputError(f"{place}: found the unknown key {named!r} ({said}), expected only {', '.join(known)}")


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """Read a regular file of a bounded size.

    Raises: InputError if it does not exist or is too large.
    """
    size = check_file(path, most_bytes)
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({_reason(error)})") from None


def read_json(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """Read a file with a JSON object; with `missing_ok`, a missing file is an empty object.

    Raises: InputError naming the file.
    """
    return _read_as(path, dict, "an object", missing_ok)


def read_json_list(path: Path) -> list[Any]:
    """Read a file with a JSON list; a missing file is an empty list.

    Raises: InputError naming the file.
    """
    return _read_as(path, list, "a list", missing_ok=True)


def _read_as(path: Path, kind: type[Json], expected: str, missing_ok: bool) -> Json:
    if missing_ok and not is_there(path):
        return kind()
    found = _parsed(path)
    if not isinstance(found, kind):
        raise InputError(f"{path}: found {type(found).__name__}, expected {expected}")
    return found


def _parsed(path: Path) -> Any:
    content = read_bytes(path, _MAX_JSON_BYTES)
    brackets = content.count(b"[") + content.count(b"{")
    if brackets > _MAX_BRACKETS:
        raise InputError(f"{path}: has {brackets:,} brackets, expected at most {_MAX_BRACKETS:,}")
    try:
        found = json.loads(content.decode("utf-8"))
        if _LONE_SURROGATE.search(content):
            json.dumps(found, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not readable JSON ({error})") from None
    return found


def _reason(error: OSError | ValueError) -> str:
    return str((isinstance(error, OSError) and error.strerror) or error)
