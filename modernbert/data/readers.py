"""Texts from one file, whatever its format.

In: a file. Out: its texts as they stand there, and the rows that hold none. A file of its own because what a format
is made of concerns nobody after it: what becomes of a text, or of a broken row, is decided in `corpus.py`.
"""

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modernbert.data.archives import open_plain
from modernbert.data.input_errors import BrokenInput
from modernbert.data.json_array import read_array
from modernbert.data.remote_files import RemoteFile
from modernbert.data.suffixes import PROSE, ROWS, format_of
from modernbert.errors import InputError
from modernbert.extras import missing, require

__all__ = [
    "File",
    "RawRow",
    "RawText",
    "check_not_utf16",
    "json_pieces",
    "mark_of",
    "not_utf8",
    "open_parquet",
    "read_fields",
    "read_lines",
    "read_texts",
    "require_readers",
    "size_of",
    "starts_array",
    "starts_with_field",
]

PARQUET_ROWS = 64
_PAGE_BYTES = 1 << 20
NAMED_FIELDS = 8
_MARK = b"\xef\xbb\xbf"

File = Path | RemoteFile
Count = Callable[[int], None]
"""Called with the bytes of the stored file that were read since the last call."""


@dataclass(frozen=True)
class RawText:
    """Hold text before it is checked; of a whole file, the line of an error is still to be found."""

    text: str | bytes
    origin: str
    is_whole_file: bool = False


@dataclass(frozen=True)
class RawRow:
    """Hold the fields that were asked for of one row, before they are checked."""

    values: Sequence[str | bytes]
    origin: str


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
    if suffix in ROWS:
        found = read_fields(file, [text_field], count)
        return (RawText(row.values[0], row.origin) if isinstance(row, RawRow) else row for row in found)
    if suffix in PROSE and txt_unit != "file":
        return read_lines(file, count) if txt_unit == "line" else _read_paragraphs(file, count)
    return _read_whole(file, count)


def read_fields(file: File, fields: Sequence[str], count: Count) -> Iterator[RawRow | BrokenInput]:
    """Read some text fields of each row of a file with one of the suffixes `ROWS`; or the error that says why not.

    Raises: BrokenInput if the file, or what is left of it, cannot be read; Outage if its store fails.
    """
    suffix = format_of(file)
    if suffix == ".parquet":
        return _read_parquet(file, fields, count)
    if suffix == ".jsonl":
        return _read_jsonl(file, fields, count)
    if suffix == ".json":
        return _read_array(file, fields, count)
    return _read_table(file, fields, count)


def starts_with_field(file: File, field: str) -> bool:
    """Say whether a .csv, .tsv or .json file begins with a row that has a field; of a damaged file, that it does."""
    if format_of(file) == ".json" and not starts_array(file):
        return False
    try:
        if format_of(file) == ".json":
            with open_plain(file) as stream:
                _, first = next(read_array(json_pieces(stream.chunks(), str(file)), str(file)), ("", None))
            return isinstance(first, dict) and field in first
        lines = (line for _, line in _text_lines(file, lambda _: None))
        return field in next(csv.reader(lines, **_form(file)), [])
    except (BrokenInput, csv.Error):
        return True


def starts_array(file: File) -> bool:
    """Say whether a .json file begins as an array; of one that cannot be read, that it does."""
    try:
        with open_plain(file) as stream:
            return next(stream.chunks(), b"[").removeprefix(_MARK).lstrip()[:1] in (b"[", b"\xff", b"\xfe")
    except BrokenInput:
        return True


def check_not_utf16(first: bytes, origin: str) -> None:
    """Check that the first bytes of a file are not the mark of UTF-16.

    Raises: BrokenInput naming the file.
    """
    if first.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BrokenInput(f"{origin}: begins with the mark of UTF-16, expected UTF-8")


def not_utf8(error: UnicodeError) -> str:
    """Say what is not UTF-8, with the byte or the character that was found."""
    if isinstance(error, UnicodeDecodeError):
        return f"found byte 0x{error.object[error.start]:02x}, expected UTF-8"
    if isinstance(error, UnicodeEncodeError):
        code = ord(error.object[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            return f"found byte 0x{code - 0xDC00:02x}, expected UTF-8"
        return f"found the lone surrogate U+{code:04X}, expected UTF-8"
    return f"found {error}, expected UTF-8"


def json_pieces(chunks: Iterator[bytes], origin: str, *, strict: bool = False) -> Iterator[str]:
    """Decode the chunks of a file for `read_array`. Bytes that are not UTF-8 become lone surrogates unless `strict`.

    Raises: BrokenInput for UTF-16, or if `strict`, naming the line, for bytes that are not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("strict" if strict else "surrogateescape")
    line = 1
    is_first = True
    try:
        for chunk in chunks:
            if is_first:
                check_not_utf16(chunk, origin)
                chunk, is_first = chunk.removeprefix(_MARK), False
            yield decoder.decode(chunk)
            line += chunk.count(b"\n")
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        line += error.object[: error.start].count(b"\n")
        raise BrokenInput(f"{origin}:{line}: {not_utf8(error)}") from None


def _plain_lines(file: File, count: Count) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, line with its line break); the byte order mark of Windows editors is left out."""
    seen = 0
    with open_plain(file) as stream:
        for number, line in enumerate(stream.lines(), 1):
            count(stream.stored_bytes() - seen)
            seen = stream.stored_bytes()
            if number == 1:
                check_not_utf16(line, str(file))
                line = line.removeprefix(_MARK)
            yield number, line
        count(stream.stored_bytes() - seen)


def _text_lines(file: File, count: Count) -> Iterator[tuple[int, str]]:
    """Yield (number, line); bytes that are not UTF-8 become lone surrogates."""
    for number, line in _plain_lines(file, count):
        yield number, line.decode("utf-8", "surrogateescape")


def _read_whole(file: File, count: Count) -> Iterator[RawText]:
    yield RawText(b"".join(line for _, line in _plain_lines(file, count)), str(file), is_whole_file=True)


def read_lines(file: File, count: Count) -> Iterator[RawText]:
    """Read each line of a file as a text.

    Raises: BrokenInput if the file, or what is left of it, cannot be read; Outage if its store fails.
    """
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


def _read_jsonl(file: File, fields: Sequence[str], count: Count) -> Iterator[RawRow | BrokenInput]:
    for number, line in _text_lines(file, count):
        if line.strip():
            yield _row_of_line(line, f"{file}:{number}", fields)


def _row_of_line(line: str, place: str, fields: Sequence[str]) -> RawRow | BrokenInput:
    try:
        row: Any = json.loads(line)
    except RecursionError:
        return BrokenInput(f"{place}: JSON nested too deeply")
    except ValueError as error:
        return BrokenInput(f"{place}: is not JSON ({error})")
    return _row_of_json(row, place, fields)


def _row_of_json(row: Any, place: str, fields: Sequence[str]) -> RawRow | BrokenInput:
    if not isinstance(row, dict):
        return BrokenInput(f"{place}: found a JSON {type(row).__name__}, expected an object with {_named(fields)}")
    for field in fields:
        if field not in row:
            return BrokenInput(f"{place}: no field {field!r}, found {_named(list(row))}")
        if not isinstance(row[field], str):
            return BrokenInput(f"{place}: field {field!r} is {_json_type(row[field])}, expected a string")
    return RawRow([row[field] for field in fields], place)


def _read_array(file: File, fields: Sequence[str], count: Count) -> Iterator[RawRow | BrokenInput]:
    seen = 0
    with open_plain(file) as stream:
        for place, value in read_array(json_pieces(stream.chunks(), str(file)), str(file)):
            count(stream.stored_bytes() - seen)
            seen = stream.stored_bytes()
            # An array of strings has one text an element, whatever the field is called.
            yield (
                RawRow([value], place)
                if isinstance(value, str) and len(fields) == 1
                else _row_of_json(value, place, fields)
            )
        count(stream.stored_bytes() - seen)


def _form(file: File) -> dict[str, Any]:
    csv.field_size_limit(2**31 - 1)
    return {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if format_of(file) == ".tsv" else {"strict": True}


def _read_table(file: File, fields: Sequence[str], count: Count) -> Iterator[RawRow | BrokenInput]:
    cells = csv.reader((line for _, line in _text_lines(file, count)), **_form(file))
    try:
        names = next(cells, None)
        if names is None:
            return
        for field in fields:
            if names.count(field) != 1:
                what = "no column" if field not in names else "more than one column"
                raise BrokenInput(f"{file}: {what} {field!r}, found {_named(names)}")
        columns = [names.index(field) for field in fields]
        for row in cells:
            place = f"{file}:{cells.line_num}"
            if len(row) == len(names):
                yield RawRow([row[column] for column in columns], place)
            elif row:
                yield BrokenInput(f"{place}: found {len(row)} columns, expected {len(names)} ({_named(names)})")
    except csv.Error as error:
        place = f"{file}:{cells.line_num}"
        raise BrokenInput(f"{place}: is not readable as {format_of(file)[1:]} ({error})") from None


def _read_parquet(file: File, fields: Sequence[str], count: Count) -> Iterator[RawRow | BrokenInput]:
    try:
        import pyarrow as pa
    except ImportError:
        raise missing(str(file), "pyarrow") from None
    number = seen = 0
    try:
        size = size_of(file)
        with file.open("rb") as stored, open_parquet(stored) as table:
            schema = table.schema_arrow
            for field in fields:
                if field not in schema.names:
                    raise BrokenInput(f"{file}: no column {field!r}, found {_named(schema.names)}")
                kind = schema.field(field).type
                kind = kind.value_type if pa.types.is_dictionary(kind) else kind
                if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
                    raise BrokenInput(f"{file}: column {field!r} is {kind}, expected strings")
            for rows in table.iter_batches(batch_size=PARQUET_ROWS, columns=list(fields)):
                for texts in zip(*(_column_bytes(pa, rows.column(field)) for field in fields), strict=True):
                    number += 1
                    place = f"{file}:{number}"
                    if None in texts:
                        field = fields[texts.index(None)]
                        yield BrokenInput(f"{place}: column {field!r} is null, expected a string")
                    else:
                        yield RawRow(texts, place)
                behind = size * number // table.metadata.num_rows
                count(behind - seen)
                seen = behind
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BrokenInput(f"{file}: is not readable as parquet ({reason})") from None


def _column_bytes(pa: Any, column: Any) -> list[Any]:
    """Return a column's texts as bytes: some may not be UTF-8, and pyarrow would stop without naming the row."""
    column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    return column.cast(pa.large_binary()).to_pylist()


def open_parquet(stored: io.BufferedReader) -> Any:
    """Open a parquet file so that pages are read as they are wanted: row groups may be of any size."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(stored, buffer_size=_PAGE_BYTES, pre_buffer=False)


def _json_type(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _named(fields: Sequence[str]) -> str:
    more = f" and {len(fields) - NAMED_FIELDS:,} more" if len(fields) > NAMED_FIELDS else ""
    return (", ".join(repr(field)[:80] for field in fields[:NAMED_FIELDS]) or "none") + more
