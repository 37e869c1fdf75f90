"""The reader of data files: rows with their origin (`path:line`) from every format, plain or compressed."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from modernbert.data.archives import open_plain
from modernbert.data.conll import read_sentences
from modernbert.data.input_errors import BrokenInput
from modernbert.data.json_array import read_array
from modernbert.data.remote_files import RemoteFile
from modernbert.data.rows import Row
from modernbert.data.source_files import File
from modernbert.data.suffixes import CONLL, ROWS, format_of
from modernbert.data.utf8 import BOM, decode_chunks, decode_lines
from modernbert.errors import InputError
from modernbert.extras import missing, require

__all__ = ["mark_of", "read_file", "require_readers", "size_of", "starts_array", "starts_with_field"]

# Documents may be long, so few are in memory at a time.
TEXT_ROWS, ROWS_AT_A_TIME = 64, 1024
_PAGE_BYTES = 1 << 20
_MAX_NAMES = 8

Count = Callable[[int], None]
"""called with the number of stored bytes that were read since the last call"""


def read_file(
    file: File,
    text_fields: Sequence[str] | None = None,
    *,
    unit: str = "line",
    strict: bool = False,
    count: Count = lambda num_bytes: None,
) -> Iterator[Row | BrokenInput]:
    """Yield the rows of a file, or the error of a row that cannot be read.

    `.jsonl`, `.ndjson`, `.json` (an array of objects or strings), `.parquet`, `.csv` and `.tsv` have rows with fields.
    `.conll` and `.conllu` have sentences, one per row. Any other file has text in lines, paragraphs, or as a whole.

    Args:
        file: The file.
        text_fields: Fields that must be texts; others are not read where the format allows. None reads all fields as
            they are. The text of a file without fields, or of an array of strings, is the first of them, or `text`.
        unit: The row of a file without fields: a `line`, a `paragraph` or the `file`.
        strict: Refuse invalid UTF-8; otherwise it becomes unpaired surrogates, see `utf8.py`.
        count: Called with the number of stored bytes that were read.

    Raises:
        BrokenInput: The file, or the rest of it, cannot be read.
        Outage: The store of a remote file fails.
    """
    suffix = format_of(file)
    if suffix == ".parquet":
        return _read_parquet(file, text_fields, count)
    if suffix in (".jsonl", ".ndjson"):
        return _read_jsonl(_lines(file, strict, count), file, text_fields)
    if suffix == ".json":
        return _read_array(file, text_fields, strict, count)
    if suffix in ROWS:
        return _read_table(_lines(file, strict, count), file, text_fields)
    if suffix in CONLL:
        return _read_conll(_lines(file, strict, count), file)
    texts = {"line": _read_lines, "paragraph": _read_paragraphs, "file": _read_whole}[unit]
    field = text_fields[0] if text_fields else "text"
    return (Row({field: text}, origin) for text, origin in texts(_lines(file, strict, count), file))


def require_readers(files: Iterable[File]) -> None:
    """Check that the libraries that read these files are installed.

    Raises:
        InputError: One is missing; names the file.
    """
    for file in files:
        if format_of(file) == ".parquet":
            require(str(file), "pyarrow")
        if file.suffix.lower() == ".zst":
            require(str(file), "zstandard")


def size_of(file: File) -> int:
    """Return the size of a file in bytes as stored."""
    return file.size if isinstance(file, RemoteFile) else file.stat().st_size


def mark_of(file: File) -> str:
    """Return a mark that changes with the content of a file: its modification time, or the ETag of its store."""
    return file.mark if isinstance(file, RemoteFile) else str(file.stat().st_mtime_ns)


def starts_with_field(file: File, field: str) -> bool:
    """Return whether the first row of a .csv, .tsv or .json file has a field; true if the file is damaged."""
    if format_of(file) == ".json" and not starts_array(file):
        return False
    try:
        if format_of(file) == ".json":
            with open_plain(file) as stream:
                _, first = next(read_array(decode_chunks(stream.chunks(), file), str(file)), ("", None))
            return isinstance(first, dict) and field in first
        return field in next(csv.reader((line for _, line in _lines(file)), **_dialect(file)), [])
    except (BrokenInput, csv.Error):
        return True


def starts_array(file: File) -> bool:
    """Return whether a .json file begins as an array; true if it cannot be read."""
    try:
        with open_plain(file) as stream:
            return next(stream.chunks(), b"[").removeprefix(BOM).lstrip()[:1] in (b"[", b"\xff", b"\xfe")
    except BrokenInput:
        return True


def _lines(file: File, strict: bool = False, count: Count = lambda num_bytes: None) -> Iterator[tuple[int, str]]:
    with open_plain(file, count) as stream:
        yield from decode_lines(stream.lines(), file, strict=strict)


def _read_lines(lines: Iterator[tuple[int, str]], file: File) -> Iterator[tuple[str, str]]:
    for number, line in lines:
        yield line.rstrip("\r\n"), f"{file}:{number}"


def _read_whole(lines: Iterator[tuple[int, str]], file: File) -> Iterator[tuple[str, str]]:
    yield "".join(line for _, line in lines), str(file)


def _read_paragraphs(lines: Iterator[tuple[int, str]], file: File) -> Iterator[tuple[str, str]]:
    paragraph: list[str] = []
    first = 1
    for number, line in lines:
        if not _is_blank(line):
            first = first if paragraph else number
            paragraph.append(line)
        elif paragraph:
            yield "".join(paragraph).rstrip("\r\n"), f"{file}:{first}"
            paragraph = []
    if paragraph:
        yield "".join(paragraph).rstrip("\r\n"), f"{file}:{first}"


def _is_blank(line: str) -> bool:
    return not line.strip(" \t\r\n\v\f")


def _read_jsonl(
    lines: Iterator[tuple[int, str]], file: File, fields: Sequence[str] | None
) -> Iterator[Row | BrokenInput]:
    for number, line in lines:
        if not line.strip():
            continue
        origin = f"{file}:{number}"
        try:
            value: Any = json.loads(line)
        except RecursionError:
            yield BrokenInput(origin, "JSON nested too deeply")
        except ValueError as error:
            yield BrokenInput(origin, f"is not JSON ({error})")
        else:
            yield _row_of_json(value, origin, fields)


def _read_array(file: File, fields: Sequence[str] | None, strict: bool, count: Count) -> Iterator[Row | BrokenInput]:
    with open_plain(file, count) as stream:
        for origin, value in read_array(decode_chunks(stream.chunks(), file, strict=strict), str(file)):
            if isinstance(value, str) and (fields is None or len(fields) == 1):
                yield Row({fields[0] if fields else "text": value}, origin)
            else:
                yield _row_of_json(value, origin, fields)


def _row_of_json(value: Any, origin: str, fields: Sequence[str] | None) -> Row | BrokenInput:
    if not isinstance(value, dict):
        having = f" with {_listed(fields)}" if fields else ""
        return BrokenInput(origin, f"found a JSON {type(value).__name__}, expected an object{having}")
    for field in fields or ():
        if field not in value:
            return BrokenInput(origin, f"no field {field!r}, found {_listed(list(value))}")
        if not isinstance(value[field], str):
            kind = "null" if value[field] is None else type(value[field]).__name__
            return BrokenInput(origin, f"field {field!r} is {kind}, expected a string")
    return Row(value, origin)


def _dialect(file: File) -> dict[str, Any]:
    csv.field_size_limit(2**31 - 1)
    return {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if format_of(file) == ".tsv" else {"strict": True}


def _read_table(
    lines: Iterator[tuple[int, str]], file: File, fields: Sequence[str] | None
) -> Iterator[Row | BrokenInput]:
    cells = csv.reader((line for _, line in lines), **_dialect(file))
    try:
        names = next(cells, None)
        if names is None:
            return
        if fields is None and (len(set(names)) < len(names) or not all(names)):
            raise BrokenInput(f"{file}:1", f"found columns {names}, expected a different name for each")
        for field in fields or ():
            if names.count(field) != 1:
                problem = "no column" if field not in names else "more than one column"
                raise BrokenInput(file, f"{problem} {field!r}, found {_listed(names)}")
        columns = [names.index(name) for name in fields or names]
        for row in cells:
            origin = f"{file}:{cells.line_num}"
            if len(row) == len(names):
                yield Row({names[column]: row[column] for column in columns}, origin)
            elif row:
                shown = ", ".join(name[:80] for name in names[:_MAX_NAMES])
                yield BrokenInput(origin, f"found {len(row)} columns, expected {len(names)} ({shown})")
    except csv.Error as error:
        raise BrokenInput(f"{file}:{cells.line_num}", f"is not readable as {format_of(file)[1:]} ({error})") from None


def _read_conll(lines: Iterator[tuple[int, str]], file: File) -> Iterator[Row | BrokenInput]:
    texts = [line for _, line in lines]
    for values, number in read_sentences(texts, str(file), is_conllu=format_of(file) == ".conllu"):
        yield Row(values, f"{file}:{number}")


def _read_parquet(file: File, fields: Sequence[str] | None, count: Count) -> Iterator[Row | BrokenInput]:
    try:
        import pyarrow as pa
    except ImportError:
        raise missing(str(file), "pyarrow") from None
    number = counted = 0
    try:
        size = size_of(file)
        with file.open("rb") as stored, _open_parquet(stored) as table:
            _check_text_columns(pa, file, table.schema_arrow, fields or ())
            columns = None if fields is None else list(fields)
            for batch in table.iter_batches(
                batch_size=ROWS_AT_A_TIME if fields is None else TEXT_ROWS, columns=columns
            ):
                for values in batch.to_pylist() if fields is None else _texts_of(pa, batch, fields):
                    number += 1
                    field = next((field for field in fields or () if values[field] is None), None)
                    if field is None:
                        yield Row(values, f"{file}:{number}")
                    else:
                        yield BrokenInput(f"{file}:{number}", f"column {field!r} is null, expected a string")
                read = size * number // table.metadata.num_rows
                count(read - counted)
                counted = read
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BrokenInput(file, f"is not readable as parquet ({reason})") from None


def _open_parquet(stored: io.BufferedReader) -> Any:
    """Open a parquet file so that pages are read when they are needed: row groups may be of any size."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(stored, buffer_size=_PAGE_BYTES, pre_buffer=False)


def _check_text_columns(pa: Any, file: File, schema: Any, fields: Sequence[str]) -> None:
    for field in fields:
        if field not in schema.names:
            raise BrokenInput(file, f"no column {field!r}, found {_listed(schema.names)}")
        kind = schema.field(field).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise BrokenInput(file, f"column {field!r} is {kind}, expected strings")


def _texts_of(pa: Any, batch: Any, fields: Sequence[str]) -> Iterator[dict[str, str | None]]:
    """Yield the texts of a batch. They are decoded here: pyarrow would raise for invalid UTF-8 without the row."""
    columns = []
    for field in fields:
        column = batch.column(field)
        column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        values: list[bytes | None] = column.cast(pa.large_binary()).to_pylist()
        columns.append([None if value is None else value.decode("utf-8", "surrogateescape") for value in values])
    for texts in zip(*columns, strict=True):
        yield dict(zip(fields, texts, strict=True))


def _listed(fields: Sequence[str]) -> str:
    more = f" and {len(fields) - _MAX_NAMES:,} more" if len(fields) > _MAX_NAMES else ""
    return (", ".join(repr(field)[:80] for field in fields[:_MAX_NAMES]) or "none") + more
