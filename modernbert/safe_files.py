"""Files of a model folder, which anybody may have made.

In: a path. Out: its bytes, or the JSON object that it holds. A file of its own because the rooms of text and of models
read the same folders, and must be careful in the same way: a pipe would never end, a device never stop.
"""

import json
import os
import re
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from modernbert.errors import InputError, shown

__all__ = ["check_file", "check_keys", "is_one_line", "is_there", "read_bytes", "read_json", "read_json_list"]

# Published files are smaller than 2 MB, with some thousand objects in them. What they become in memory is bounded too.
_MOST_JSON_BYTES, _MOST_BRACKETS = 2**22, 100_000
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_HALF_A_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")


def check_file(path: Path, most_bytes: int | None = None) -> int:
    """Return the size of a plain file in bytes.

    Links are followed wherever they lead, for the cache of the hub is made of links: what is read is only ever taken
    for JSON or for numbers.

    Raises: InputError if there is none, if it is a folder, a pipe or a device, or if it is too large.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, expected a published model folder") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({_reason(error)})") from None
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise InputError(f"{path}: is {kind}, expected a file")
    if most_bytes is not None and found.st_size > most_bytes:
        raise InputError(f"{path}: has {found.st_size:,} bytes, expected at most {most_bytes:,}")
    return found.st_size


def is_there(path: Path) -> bool:
    """Say whether there is an entry of this name, be it a link to nowhere."""
    try:
        return os.path.lexists(path)
    except ValueError:  # no name of a file has a NUL in it
        return False


def is_one_line(label: str) -> bool:
    """Say whether a label can be printed as it is: it has no control character.

    >>> is_one_line("very good"), is_one_line("very\\ngood")
    (True, False)
    """
    return _CONTROL.search(label) is None


def check_keys(found: Mapping[str, Any], known: Collection[str], place: str) -> None:
    """Refuse an object with keys that are not known: each may change what a model computes. A null says nothing.

    Raises: InputError naming `place`, the first such key and its value, and the keys that are known.
    """
    for key, value in found.items():
        if key not in known and value is not None:
            named, said = shown(str(key), 60), shown(repr(value), 60)
            raise InputError(f"{place}: found the unknown key {named!r} ({said}), expected only {', '.join(known)}")


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """Read a plain file of a bounded size.

    Raises: InputError if there is none, or it is too large.
    """
    size = check_file(path, most_bytes)
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({_reason(error)})") from None


def read_json(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """Read the JSON object of a file; with `missing_ok`, no file is an empty one.

    Raises: InputError naming the file.
    """
    if missing_ok and not is_there(path):
        return {}
    found = _parsed(path)
    if not isinstance(found, dict):
        raise InputError(f"{path}: found {type(found).__name__}, expected an object")
    return found


def read_json_list(path: Path) -> list[Any]:
    """Read the JSON list of a file; no file is an empty one.

    Raises: InputError naming the file.
    """
    if not is_there(path):
        return []
    found = _parsed(path)
    if not isinstance(found, list):
        raise InputError(f"{path}: found {type(found).__name__}, expected a list")
    return found


def _parsed(path: Path) -> Any:
    content = read_bytes(path, _MOST_JSON_BYTES)
    brackets = content.count(b"[") + content.count(b"{")
    if brackets > _MOST_BRACKETS:
        raise InputError(f"{path}: has {brackets:,} brackets, expected at most {_MOST_BRACKETS:,}")
    try:
        found = json.loads(content.decode("utf-8"))
        if _HALF_A_CHARACTER.search(content):
            json.dumps(found, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not readable JSON ({error})") from None
    return found


def _reason(error: OSError | ValueError) -> str:
    return str((isinstance(error, OSError) and error.strerror) or error)
