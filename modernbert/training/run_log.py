"""The log of a run: one JSON object per line, in two files.

`log.jsonl` has only values that follow from data and seed; `timing.jsonl` has the rest. A resumed run truncates both to
their length at the checkpoint, so that its log equals, byte for byte, that of a run that was never stopped.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from modernbert.errors import InputError

__all__ = ["RunLog", "number", "read_log"]


class RunLog:
    """Append rows to the two files of a run folder; `sizes` returns their lengths."""

    def __init__(
        self, folder: Path, sizes: Mapping[str, int], watch: Callable[[Mapping[str, Any]], None] | None = None
    ) -> None:
        """Open both files and truncate them to `sizes`, or to 0; `watch` is called with each row.

        Raises: InputError if a file is missing or shorter than it was at the checkpoint, or cannot be written.
        """
        self._files = {name: _open(folder / f"{name}.jsonl", sizes.get(name, 0)) for name in ("log", "timing")}
        self._watch = watch

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files.values():
            file.close()

    def log(self, **row: Any) -> None:
        """Write values that are the same in every run of this config."""
        self._write("log", row)

    def time(self, **row: Any) -> None:
        """Write values that depend on the machine."""
        self._write("timing", row)

    def sizes(self) -> dict[str, int]:
        """Sync both files to the disk, and return their lengths in bytes.

        Raises: InputError naming the file if it cannot be written.
        """
        for file in self._files.values():
            try:
                os.fsync(file.fileno())
            except OSError as error:
                raise InputError(f"{file.name}: cannot be written ({error.strerror})") from None
        return {name: file.tell() for name, file in self._files.items()}

    def _write(self, name: str, row: Mapping[str, Any]) -> None:
        file = self._files[name]
        try:
            # Flushed line by line, since users follow these files.
            file.write((json.dumps(row) + "\n").encode())
            file.flush()
        except OSError as error:
            raise InputError(f"{file.name}: cannot be written ({error.strerror})") from None
        if self._watch is not None:
            self._watch(row)


def number(value: float, digits: int = 6) -> float | None:
    """Round for the log; None for a number that is not finite, which JSON does not have."""
    return round(value, digits) if math.isfinite(value) else None


def read_log(folder: Path, name: str = "log") -> list[dict[str, Any]]:
    """Read the rows of `log.jsonl` or `timing.jsonl` of a run; a last line without its end is left out.

    Raises: InputError if the file cannot be read, or another line is not a JSON object.
    """
    path = folder / f"{name}.jsonl"
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    rows = []
    for line_number, line in enumerate(lines[:-1], 1):
        try:
            # Logs of earlier versions have NaN, which is not JSON, instead of null.
            rows.append(dict(json.loads(line, parse_constant=lambda _: None)))
        except (ValueError, TypeError):
            raise InputError(f"{path}:{line_number}: expected a JSON object") from None
    return rows


def _open(path: Path, size: int) -> BinaryIO:
    try:
        # A file that is missing is not created: a run that is refused leaves nothing behind.
        file = path.open("r+b" if size else "a+b")
        found = file.seek(0, os.SEEK_END)
        if found >= size:
            file.truncate(size)
            file.seek(0, os.SEEK_END)
            return file
        file.close()
    except FileNotFoundError:
        raise InputError(f"{path}: is missing, expected the {size:,} bytes it had at the checkpoint") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    raise InputError(f"{path}: found {found:,} bytes, expected at least the {size:,} it had at the checkpoint")
