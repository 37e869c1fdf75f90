"""What a folder is made hostile with.

In: a good folder. Out: small functions that change a copy of it, and cases that name them. A file of its own because
every kind of case is made of the same few changes.
"""

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
    """One hostile folder: how it is made of the good folder `of`, and what is said of it.

    `says` is part of the reason for which it is refused; None: it loads, and computes what the good folder does.
    """

    kind: str
    name: str
    make: Make
    says: str | None
    of: str = "plain"


class Canary:
    """What a pickle makes of itself: a file that tells that the pickle was opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {os.environ['CANARY']}",))


def pickled(protocol: int = 2) -> bytes:
    """Return a pickle that leaves a trace when it is opened."""
    return pickle.dumps({"model.final_norm.weight": Canary()}, protocol=protocol)


def plain(content: Any) -> bytes:
    """Return what a file holds: bytes as they are, all else as JSON."""
    return content if isinstance(content, bytes) else json.dumps(content).encode()


def add(name: str, content: Any) -> Make:
    """Write a file, over what was there."""

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
    """Put a link in the place of a file."""

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        os.symlink(target, folder / name)

    return make


def pipe(name: str) -> Make:
    """Put a pipe in the place of a file: whoever opens it waits for ever."""

    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def all_of(*makes: Make) -> Make:
    """Do one after another."""

    def make(folder: Path) -> None:
        for each in makes:
            each(folder)

    return make


def stored(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file, whatever its header says."""
    written = plain(header)
    return struct.pack("<Q", len(written) if length is None else length) + written + data
