"""Plain bytes of stored files: uncompressed, gzip or Zstandard. A cut archive is an error, never a short file."""

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

__all__ = ["PlainReader", "open_plain"]

CHUNK_BYTES = 1 << 16


class PlainReader:
    """Reads the plain bytes of one file, and counts the bytes of the stored file that it has read."""

    def __init__(self, path: Path | RemoteFile, count: Callable[[int], None]) -> None:
        self._path, self._count, self._counted = path, count, 0
        try:
            self._stored: BinaryIO = path.open("rb")
        except OSError as error:
            raise BrokenInput(path, f"cannot be read ({error.strerror})") from None

    def lines(self) -> Iterator[bytes]:
        """Yield lines with their line breaks; only `\\n` ends a line.

        Raises:
            BrokenInput: The file is damaged or ends too early.
        """
        return self._plain(lambda plain: plain, _split_lines)

    def chunks(self) -> Iterator[bytes]:
        """Yield the plain bytes in chunks of bounded size.

        Raises:
            BrokenInput: The file is damaged or ends too early.
        """
        return self._plain(lambda plain: iter(partial(plain.read, CHUNK_BYTES), b""), lambda chunks: chunks)

    def close(self) -> None:
        """Close the file."""
        self._stored.close()

    def _plain(
        self, read: Callable[[Any], Iterable[bytes]], join: Callable[[Iterator[bytes]], Iterable[bytes]]
    ) -> Iterator[bytes]:
        """Yield `read(file)` of a plain file, or `join(chunks)` of a Zstandard file."""
        suffix = self._path.suffix.lower()
        try:
            if suffix == ".gz":
                with gzip.open(self._stored) as plain:
                    yield from self._counted_reads(read(plain))
            elif suffix == ".zst":
                yield from self._counted_reads(join(self._zstd_chunks()))
            else:
                yield from self._counted_reads(read(self._stored))
        except EOFError:
            raise BrokenInput(self._path, "ends too early, the archive is not complete") from None
        except (OSError, zlib.error) as error:
            raise BrokenInput(self._path, f"cannot be read ({error})") from None

    def _counted_reads(self, reads: Iterable[bytes]) -> Iterator[bytes]:
        for read in reads:
            self._count_new_bytes()
            yield read
        self._count_new_bytes()

    def _count_new_bytes(self) -> None:
        position = self._stored.tell()
        self._count(position - self._counted)
        self._counted = position

    def _zstd_chunks(self) -> Iterator[bytes]:
        try:
            import zstandard
        except ImportError:
            raise missing(str(self._path), "zstandard") from None
        # Frame by frame: the library's own stream reader takes a cut file for a complete one.
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
            raise BrokenInput(self._path, f"is not readable as Zstandard ({error})") from None
        if started and not frame.eof:
            raise EOFError


def open_plain(
    path: Path | RemoteFile, count: Callable[[int], None] = lambda num_bytes: None
) -> AbstractContextManager[PlainReader]:
    """Open a file for a `with` block; `count` is called with the number of stored bytes read since the last call."""
    return closing(PlainReader(path, count))


def _split_lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest: list[bytes] = []
    for chunk in chunks:
        *whole, last = chunk.split(b"\n")
        for line in whole:
            yield b"".join((*rest, line, b"\n"))
            rest = []
        rest.append(last)
    if any(rest):
        yield b"".join(rest)
