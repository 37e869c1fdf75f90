"""Long work on texts, in parts that are cut the same way each time, and a folder where what is done of them waits.

In: a stream of texts. Out: numbered parts, and their vectors in order. A file of its own because work may stop anywhere
and go on elsewhere: whoever goes on must find the same parts, and only those that are whole.
"""

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modernbert.errors import InputError
from modernbert.infer.texts import Located
from modernbert.ragged import within
from modernbert.storage import write_file

__all__ = ["PART_CHARACTERS", "Part", "PartsFolder", "parts_of", "placed"]

Part = tuple[int, list[Located]]
"""which part it is, and its texts"""

# What is held at a time, and what is computed again, at most, after a stop.
PART_CHARACTERS = 2_000_000
# A text counts for so many at least: a vector is not free either.
_LEAST = 500


def parts_of(texts: Iterable[Located], characters: int = PART_CHARACTERS) -> Iterator[Part]:
    """Cut texts into parts of so many characters at most; a text that is longer makes a part of its own.

    >>> [(number, len(part)) for number, part in parts_of([("a:1", "x"), ("a:2", "y" * 700), ("a:3", "z")], 1_300)]
    [(0, 2), (1, 1)]
    """
    return enumerate(within(texts, characters, lambda each: max(len(each[1]), _LEAST)))


def placed(error: InputError, part: Sequence[tuple[str, Any]]) -> InputError:
    """Return the error of a text that is known by its number in a part as whoever reads it knows the text."""
    found = re.match(r"text (\d+):", str(error))
    return error if found is None else InputError(f"{part[int(found[1])][0]}{str(error)[found.end() - 1 :]}")


class PartsFolder:
    """A folder with the vectors of parts that are done, each part a file that is whole or not there."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Open a folder that was begun before, or begin one; `about` says of what the parts are, as JSON has it.

        Raises: InputError naming what is other, if it has parts of something else.
        """
        self.folder = folder
        path = folder / "about.json"
        if path.exists() and self.done:
            begun = json.loads(path.read_text())
            for key, value in about.items():
                if begun.get(key) != value:
                    raise InputError(
                        f"{folder}: was begun with {key}={begun.get(key)!r}, found {value!r}; remove it to begin anew"
                    )
        write_file(path, json.dumps(about, indent=1) + "\n")

    @property
    def done(self) -> set[int]:
        """The numbers of the parts that are there."""
        return {int(path.stem) for path in self.folder.glob("*.npy")}

    def save(self, number: int, vectors: np.ndarray) -> None:
        """Keep the vectors of a part.

        Raises: InputError if the disk is full or not writable; the parts before stay.
        """
        buffer = io.BytesIO()
        np.save(buffer, vectors)
        write_file(self._path(number), buffer.getvalue())

    def load(self) -> Iterator[np.ndarray]:
        """Yield the vectors of all parts, in order."""
        return (np.load(self._path(number)) for number in sorted(self.done))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.npy"
