"""Functions that make a copy of a good model folder hostile, and the cases that use them."""

import json
import os
import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Canary", "Case", "Make", "add", "all_of", "edited", "linked", "pickled", "pipe", "plain", "stored"]

Make = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """One hostile folder: `make` changes a copy of the good folder `of`.

    `says` is part of the expected error; with None it loads and computes the same as the good folder.
    """

    kind: str
    name: str
    make: Make
    says: str | None
    of: str = "plain"


class Canary:
    """An object that creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {os.environ['CANARY']}",))


def pickled(protocol: int = 2) -> bytes:
    """Return a pickle that creates a file when it is loaded."""
    return pickle.dumps({"model.final_norm.weight": Canary()}, protocol=protocol)


def plain(content: Any) -> bytes:
    """Return the content of a file: bytes unchanged, other values as JSON."""
    return content if isinstance(content, bytes) else json.dumps(content).encode()


def add(name: str, content: Any) -> Make:
    """Write or replace a file."""

    def make(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(plain(content() if callable(content) else content))

    return make


def edited(name: str, change: Mapping[str, Any] | Callable[[dict[str, Any]], object]) -> Make:
    """Change the JSON of a file: some keys, or by a function."""

    def make(folder: Path) -> None:
        found = json.loads((folder / name).read_text())
        if callable(change):
            change(found)
        else:
            found |= change
        add(name, found)(folder)

    return make


def linked(name: str, target: str) -> Make:
    """Replace a file by a link."""

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        os.symlink(target, folder / name)

    return make


def pipe(name: str) -> Make:
    """Replace a file by a pipe; reading it blocks forever."""

    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def all_of(*makes: Make) -> Make:
    """Apply several changes in order."""

    def make(folder: Path) -> None:
        for each in makes:
            each(folder)

    return make


def stored(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file with any header."""
    written = plain(header)
    return struct.pack("<Q", len(written) if length is None else length) + written + data
