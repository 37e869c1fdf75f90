"""Texts from one file, whatever its format.

In: a file. Out: its texts as they stand there, and the rows that hold none. A file of its own because what a format
is made of concerns nobody after it: what becomes of a text, or of a broken row, is decided in `corpus.py`.
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modernbert.errors import InputError
from modernbert.extras import missing, require
from modernbert.text.archive import open_plain
from modernbert.text.faults import BrokenInput
from modernbert.text.remote import RemoteFile

__all__ = [
    "KNOWN",
    "File",
    "RawText",
    "format_of",
    "mark_of",
    "open_parquet",
    "read_texts",
    "require_readers",
    "size_of",
]

PROSE = (".txt", ".md", ".rst")
CODE = tuple(
    ".py .pyi .pyx .ipynb .c .h .cc .cpp .cxx .hh .hpp .cu .cuh .java .kt .scala .js .jsx .mjs .ts .tsx .go .rs .rb"
    " .php .cs .swift .lua .r .jl .pl .hs .ml .ex .exs .erl .clj .sh .bash .ps1 .sql .html .htm .css .scss .xml .yaml"
    " .yml .toml .ini .cfg .cmake .proto .tex .vue".split()
)
KNOWN = (*PROSE, ".jsonl", ".parquet", *CODE)
PARQUET_ROWS = 64
_PAGE_BYTES = 1 << 20
NAMED_FIELDS = 8

File = Path | RemoteFile
Count = Callable[[int], None]
"""Called with the bytes of the stored file that were read since the last call."""


@dataclass(frozen=True)
class RawText:
    """Hold text before it is checked; of a whole file, the line of an error is still to be found."""

    text: str | bytes
    origin: str
    is_whole_file: bool = False


def format_of(file: File) -> str:
    """Return the suffix that tells the format, without that of the packing."""
    name = file.name.lower()
    for packed in (".gz", ".zst"):
        name = name.removesuffix(packed)
    return Path(name).suffix


def require_readers(files: Iterable[File]) -> None:
    """Check that the libraries which read these files are installed.

    Raises: InputError naming the first file that cannot be read without one.
    """
    for file in files:
        if format_of(file) == ".parquet":
            require(str(file), "pyarrow")
        if file.suffix.lower() == ".zst":
            require(str(file), "zstandard")


def size_of(file: File) -> int:
    """Return the bytes of a file as stored."""
    return file.size if isinstance(file, RemoteFile) else file.stat().st_size


def mark_of(file: File) -> str:
    """Return what changes when the content of a file does: the time it was written, or what its store says of it."""
    return file.mark if isinstance(file, RemoteFile) else str(file.stat().st_mtime_ns)


def read_texts(file: File, text_field: str, txt_unit: str, count: Count) -> Iterator[RawText | BrokenInput]:
    """Read the texts of a file in order; of a row that holds none, the error that says why.

    Raises: BrokenInput if the file, or what is left of it, cannot be read; Outage if its store fails.
    """
    suffix = format_of(file)
    if suffix == ".parquet":
        return _read_parquet(file, text_field, count)
    if suffix == ".jsonl":
        return _read_jsonl(file, text_field, count)
    if suffix in PROSE and txt_unit != "file":
        return _read_lines(file, count) if txt_unit == "line" else _read_paragraphs(file, count)
    return _read_whole(file, count)


def _plain_lines(file: File, count: Count) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, line with its line break); the byte order mark of Windows editors is left out."""
    seen = 0
    with open_plain(file) as stream:
        for number, line in enumerate(stream.lines(), 1):
            count(stream.stored_bytes() - seen)
            seen = stream.stored_bytes()
            if number == 1:
                if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise BrokenInput(f"{file}: begins with the mark of UTF-16, expected UTF-8")
                line = line.removeprefix(b"\xef\xbb\xbf")
            yield number, line
        count(stream.stored_bytes() - seen)


def _read_whole(file: File, count: Count) -> Iterator[RawText]:
    yield RawText(b"".join(line for _, line in _plain_lines(file, count)), str(file), is_whole_file=True)


def _read_lines(file: File, count: Count) -> Iterator[RawText]:
    for number, line in _plain_lines(file, count):
        yield RawText(line.rstrip(b"\r\n"), f"{file}:{number}")


def _read_paragraphs(file: File, count: Count) -> Iterator[RawText]:
    paragraph: list[bytes] = []
    first = 1
    for number, line in _plain_lines(file, count):
        if line.strip():
            first = first if paragraph else number
            paragraph.append(line)
        elif paragraph:
            yield RawText(b"".join(paragraph).rstrip(b"\r\n"), f"{file}:{first}")
            paragraph = []
    if paragraph:
        yield RawText(b"".join(paragraph).rstrip(b"\r\n"), f"{file}:{first}")


def _read_jsonl(file: File, text_field: str, count: Count) -> Iterator[RawText | BrokenInput]:
    for number, line in _plain_lines(file, count):
        if line.strip():
            yield _text_of_row(line, f"{file}:{number}", text_field)


def _text_of_row(line: bytes, place: str, text_field: str) -> RawText | BrokenInput:
    try:
        row: Any = json.loads(line.decode("utf-8", "surrogateescape"))
    except RecursionError:
        return BrokenInput(f"{place}: JSON nested too deeply")
    except ValueError as error:
        return BrokenInput(f"{place}: is not JSON ({error})")
    if not isinstance(row, dict):
        return BrokenInput(f"{place}: found a JSON {type(row).__name__}, expected an object with {text_field!r}")
    if text_field not in row:
        return BrokenInput(f"{place}: no field {text_field!r}, found {_named(list(row))}")
    if not isinstance(row[text_field], str):
        return BrokenInput(f"{place}: field {text_field!r} is {type(row[text_field]).__name__}, expected a string")
    return RawText(row[text_field], place)


def _read_parquet(file: File, text_field: str, count: Count) -> Iterator[RawText | BrokenInput]:
    try:
        import pyarrow as pa
    except ImportError:
        raise missing(str(file), "pyarrow") from None
    number = seen = 0
    try:
        size = size_of(file)
        with file.open("rb") as stored, open_parquet(stored) as table:
            schema = table.schema_arrow
            if text_field not in schema.names:
                raise BrokenInput(f"{file}: no column {text_field!r}, found {_named(schema.names)}")
            kind = schema.field(text_field).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
                raise BrokenInput(f"{file}: column {text_field!r} is {kind}, expected strings")
            for rows in table.iter_batches(batch_size=PARQUET_ROWS, columns=[text_field]):
                # As bytes: a column may hold what is not UTF-8, and pyarrow would stop without saying in which row.
                for text in rows.column(0).cast(pa.large_binary()).to_pylist():
                    number += 1
                    place = f"{file}:{number}"
                    if text is None:
                        yield BrokenInput(f"{place}: column {text_field!r} is null, expected a string")
                    else:
                        yield RawText(text, place)
                behind = size * number // table.metadata.num_rows
                count(behind - seen)
                seen = behind
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BrokenInput(f"{file}: is not readable as parquet ({reason})") from None


def open_parquet(stored: io.BufferedReader) -> Any:
    """Open a parquet file so that pages are read as they are wanted: row groups may be of any size."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(stored, buffer_size=_PAGE_BYTES, pre_buffer=False)


def _named(fields: list[str]) -> str:
    more = f" and {len(fields) - NAMED_FIELDS:,} more" if len(fields) > NAMED_FIELDS else ""
    return (", ".join(repr(field)[:80] for field in fields[:NAMED_FIELDS]) or "none") + more
