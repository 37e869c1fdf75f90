"""Chunks of texts, identified by the digest of their texts, and a folder with the vectors of finished chunks."""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modernbert.errors import InputError
from modernbert.files import write_file
from modernbert.inference.text_rows import TextRow

__all__ = ["PART_CHARACTERS", "TextChunk", "ChunkFolder", "ChunkVectors", "chunks_of", "relocate_error"]

# Characters of a chunk: held in memory at a time, and computed again after a stop.
PART_CHARACTERS = 2_000_000
# A text counts as at least so many characters, because its vector has a cost, too.
_MIN_CHARACTERS = 500
# Chunks have a quarter of the maximum on average, and at least a sixteenth.
_MEAN_SHARE, _LEAST_SHARE = 4, 16


@dataclass(frozen=True)
class TextChunk:
    """Consecutive rows and the digest of their texts. Rows without a text do not change the digest."""

    digest: str
    rows: Sequence[TextRow]

    @property
    def texts(self) -> list[tuple[str, str]]:
        """The origin of each text, and the text."""
        return [(row.origin, row.text) for row in self.rows if row.text is not None]


@dataclass(frozen=True)
class ChunkVectors:
    """The vectors of a chunk's texts [N, D] except those in `lost`, which maps their numbers to the reasons."""

    values: np.ndarray
    lost: Mapping[int, str]


def chunks_of(rows: Iterable[TextRow], characters: int = PART_CHARACTERS) -> Iterator[TextChunk]:
    """Yield chunks of at most so many characters; a longer text is alone in its chunk.

    Content-defined chunking: the hash of a text decides whether a chunk ends after it. So a row that is removed, added
    or changed affects one or two chunks, and all others keep their digests.

    >>> rows = [TextRow(f"a:{n}", str(n)) for n in range(1_000)]
    >>> whole, fewer = ({part.digest for part in chunks_of(some, 50_000)} for some in (rows, rows[:7] + rows[8:]))
    >>> len(whole) > 30, len(whole - fewer) < 3
    (True, True)
    """
    part: list[TextRow] = []
    digest = hashlib.sha256()
    filled = 0
    for row in rows:
        if row.text is None:
            part.append(row)
            continue
        size = max(len(row.text), _MIN_CHARACTERS)
        if filled and filled + size > characters:
            yield TextChunk(digest.hexdigest(), part)
            part, digest, filled = [], hashlib.sha256(), 0
        of_text = hashlib.sha256(row.text.encode()).digest()
        part.append(row)
        digest.update(of_text)
        filled += size
        ends = int.from_bytes(of_text[:8]) * characters < _MEAN_SHARE * size << 64
        if ends and filled * _LEAST_SHARE >= characters:
            yield TextChunk(digest.hexdigest(), part)
            part, digest, filled = [], hashlib.sha256(), 0
    if part:
        yield TextChunk(digest.hexdigest(), part)


def relocate_error(error: InputError, part: Sequence[tuple[str, Any]]) -> InputError:
    """Return an error that names the origin of a text in place of its number in a chunk."""
    found = re.match(r"text (\d+):", str(error))
    return error if found is None else InputError(f"{part[int(found[1])][0]}{str(error)[found.end() - 1 :]}")


class ChunkFolder:
    """A folder with the vectors of finished chunks. The file of a chunk is complete, or absent."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Open a folder, or make one; `about` is the model and the settings, as JSON.

        Raises: InputError naming the difference, if its chunks were made with another model or other settings, or by
            an earlier version.
        """
        self.folder = folder
        path = folder / "about.json"
        if any(re.fullmatch(r"\d{8}", each.stem) for each in folder.glob("*.npy")):
            raise InputError(f"{folder}: was started by an earlier version; remove it to start again")
        if path.exists() and self.done:
            started = json.loads(path.read_text())
            for key, value in about.items():
                if started.get(key) != value:
                    raise InputError(
                        f"{folder}: was started with {key}={started.get(key)!r}, found {value!r}; remove it to start "
                        "again"
                    )
        write_file(path, json.dumps(about, indent=1) + "\n")

    @property
    def done(self) -> set[str]:
        """The digests of the finished chunks."""
        return {path.stem for path in self.folder.glob("*.npy")}

    def save(self, digest: str, vectors: ChunkVectors) -> None:
        """Write the vectors of a chunk.

        Raises: InputError if the disk is full or not writable; earlier chunks stay.
        """
        beside = self._path(digest, ".json")
        if vectors.lost:
            write_file(beside, json.dumps(dict(vectors.lost)))
        elif beside.exists():
            beside.unlink()
        buffer = io.BytesIO()
        np.save(buffer, vectors.values)
        write_file(self._path(digest, ".npy"), buffer.getvalue())

    def load(self, digest: str) -> ChunkVectors | None:
        """Return the vectors of a chunk, or None if it is not finished."""
        path, beside = self._path(digest, ".npy"), self._path(digest, ".json")
        if not path.exists():
            return None
        lost = json.loads(beside.read_text()) if beside.exists() else {}
        return ChunkVectors(np.load(path), {int(number): reason for number, reason in lost.items()})

    def _path(self, digest: str, suffix: str) -> Path:
        return self.folder / f"{digest}{suffix}"
