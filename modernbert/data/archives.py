"""Plain bytes from files as they are stored: bare, gzip or Zstandard.

In: a file. Out: its lines, uncompressed, with one error for everything that can be wrong with the file. A file of its
own because the readers of formats should not know how a file is packed, and because a cut archive must never pass for
a short one.
"""

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from modernbert.data.input_errors import BrokenInput
from modernbert.data.remote_files import RemoteFile
from modernbert.extras import missing

__all__ = ["CountingReader", "open_plain"]

CHUNK_BYTES = 1 << 16


class CountingReader:
    """Read the plain lines of one file and tell how much of the stored file is behind."""

    def __init__(self, path: Path | RemoteFile) -> None:
        self._path = path
        try:
            self._stored: BinaryIO = path.open("rb")
        except OSError as error:
            raise BrokenInput(f"{path}: cannot be read ({error.strerror})") from None

    def lines(self) -> Iterator[bytes]:
        """Yield lines with their line breaks; only `\\n` ends a line.

        Raises: BrokenInput if the file is damaged or ends before its last frame does.
        """
        return self._plain(lambda plain: plain, _split)

    def chunks(self) -> Iterator[bytes]:
        """Yield the plain bytes in chunks of bounded size.

        Raises: BrokenInput if the file is damaged or ends before its last frame does.
        """
        return self._plain(lambda plain: iter(partial(plain.read, CHUNK_BYTES), b""), lambda chunks: chunks)

    def _plain(
        self, read: Callable[[Any], Iterable[bytes]], join: Callable[[Iterator[bytes]], Iterable[bytes]]
    ) -> Iterator[bytes]:
        """Yield what `read` takes from a plain file, or `join` makes of the chunks of a Zstandard file."""
        suffix = self._path.suffix.lower()
        try:
            if suffix == ".gz":
                with gzip.open(self._stored) as plain:
                    yield from read(plain)
            elif suffix == ".zst":
                yield from join(self._zstd_chunks())
            else:
                yield from read(self._stored)
        except EOFError:
            raise BrokenInput(f"{self._path}: ends too early, the archive is not complete") from None
        except (OSError, zlib.error) as error:
            raise BrokenInput(f"{self._path}: cannot be read ({error})") from None

    def stored_bytes(self) -> int:
        """Return how many bytes of the file on disk have been read."""
        return 0 if self._stored.closed else self._stored.tell()

    def close(self) -> None:
        """Close the file."""
        self._stored.close()

    def _zstd_chunks(self) -> Iterator[bytes]:
        try:
            import zstandard
        except ImportError:
            raise missing(str(self._path), "zstandard") from None
        # Frame by frame, because the library's own stream reader takes a cut file for a complete one.
        frame = zstandard.ZstdDecompressor().decompressobj()
        started = False
        try:
            while chunk := self._stored.read(CHUNK_BYTES):
                while chunk:
                    if frame.eof:
                        frame, started = zstandard.ZstdDecompressor().decompressobj(), False
                    yield frame.decompress(chunk)
                    started, chunk = True, frame.unused_data if frame.eof else b""
        except zstandard.ZstdError as error:
            raise BrokenInput(f"{self._path}: is not readable as Zstandard ({error})") from None
        if started and not frame.eof:
            raise EOFError


def open_plain(path: Path | RemoteFile) -> AbstractContextManager[CountingReader]:
    """Open a file for reading; close it at the end of the `with` block."""
    return closing(CountingReader(path))


def _split(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest: list[bytes] = []
    for chunk in chunks:
        *whole, last = chunk.split(b"\n")
        for line in whole:
            yield b"".join((*rest, line, b"\n"))
            rest = []
        rest.append(last)
    if any(rest):
        yield b"".join(rest)
