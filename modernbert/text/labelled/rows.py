"""Rows of labelled data, whatever the format of their files.

In: files, URLs, names of datasets. Out: rows, each with named values and the place it was read at. A file of its own
because what a format is made of concerns nobody after it: which columns are texts, and which are labels, is decided in
`examples.py`.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modernbert.errors import InputError
from modernbert.published import is_one_line
from modernbert.text.archive import open_plain
from modernbert.text.formats import File, format_of, open_parquet
from modernbert.text.remote import dataset_url, find_remote, is_url

__all__ = ["Row", "read_file", "read_rows"]

# In float32, in which models compute.
_LARGEST = 3.4e38
_CONLL = (".conll", ".iob", ".bio")
_KNOWN = (".tsv", ".csv", ".jsonl", ".parquet", *_CONLL)


@dataclass(frozen=True)
class Row:
    """Hold the values of one row by column, and where it was read: `path:line`."""

    values: dict[str, Any]
    origin: str

    def text(self, column: str) -> str:
        """Return a value that must be text with something in it.

        Raises: InputError naming the row.
        """
        found = self.value(column)
        if not isinstance(found, str):
            raise InputError(f"{self.origin}: {column} is {type(found).__name__}, expected text")
        if not found.strip():
            raise InputError(f"{self.origin}: {column} is empty, expected text")
        self.check_whole(column, found)
        return found

    def check_whole(self, column: str, *texts: str) -> None:
        """Check that texts are of whole characters: JSON can name halves, which no file can hold.

        Raises: InputError naming the row.
        """
        try:
            for text in texts:
                text.encode()
        except UnicodeEncodeError:
            raise InputError(f"{self.origin}: {column} has half of a character (a lone surrogate)") from None

    def check_labels(self, column: str, *labels: str) -> None:
        """Check that labels can be written into a model's folder, and printed.

        Raises: InputError naming the row.
        """
        self.check_whole(column, *labels)
        for label in labels:
            if not is_one_line(label):
                raise InputError(f"{self.origin}: {column} has {label!r}, expected text of one line, without tabs")

    def number(self, column: str) -> float:
        """Return a value that must be a finite number in single precision, written as such or as text.

        Raises: InputError naming the row.
        """
        found = self.value(column)
        try:
            number = float("nan" if found is None or isinstance(found, bool) else found)
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if not abs(number) <= _LARGEST:
            raise InputError(f"{self.origin}: {column} is {str(found)[:60]!r}, expected a finite number")
        return number

    def value(self, column: str) -> Any:
        """Return a value as it was read.

        Raises: InputError naming the row and the columns it has.
        """
        if column not in self.values:
            raise InputError(f"{self.origin}: no column {column!r}, found {', '.join(map(repr, self.values))}")
        return self.values[column]


def read_rows(sources: Sequence[str]) -> list[Row]:
    """Read all rows of all sources, in order.

    `.tsv` has a line of column names and neither quotes nor escapes; `.csv` has them; `.jsonl` one object a line;
    `.conll` a word and its tags a line, a blank line between sentences: columns `words` and `tags`, the last on a line.
    Each but `.parquet` may end in `.gz` or `.zst`. A source may be a URL, or the name of a dataset on the hub.

    Raises: InputError naming the file, and the line where there is one, at the first thing that cannot be read.
    """
    rows = [row for source in sources for file in _files(source) for row in read_file(file)]
    if not rows:
        raise InputError(f"{', '.join(sources)}: found no row, expected at least one")
    return rows


def _files(source: str) -> list[File]:
    url = source if is_url(source) else dataset_url(source)
    found: list[File]
    if url is not None:
        found = [file for _, file in find_remote(url) if format_of(file) in _KNOWN]
    elif (path := Path(source)).is_dir():
        found = [each for each in sorted(path.iterdir()) if format_of(each) in _KNOWN]
    elif path.exists():
        found = [path]
    else:
        raise InputError(f"{source}: no such file")
    for file in found:
        if format_of(file) not in _KNOWN:
            raise InputError(f"{file}: unknown format, expected {', '.join(_KNOWN)}, bare or with .gz or .zst")
    if not found:
        raise InputError(f"{source}: no labelled file there, expected {', '.join(_KNOWN)}")
    return found


def read_file(file: File, column: str | None = None) -> Iterator[Row]:
    """Yield the rows of one file as they are read; see `read_rows`.

    Where one `column` is all that is wanted, and the format lets it be read alone, rows hold no other.
    """
    suffix = format_of(file)
    if suffix == ".parquet":
        return _read_parquet(file, column)
    if suffix == ".jsonl":
        return _read_jsonl(file)
    if suffix in _CONLL:
        return _read_conll(file)
    return _read_table(file, tabs=suffix == ".tsv")


def _lines(file: File) -> Iterator[str]:
    with open_plain(file) as stream:
        for number, line in enumerate(stream.lines(), 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"{file}:{number}: is not UTF-8 text ({error.reason})") from None


def _read_table(file: File, *, tabs: bool) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    form: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    cells = csv.reader(_lines(file), **form)
    try:
        names = next(cells, [])
        if len(set(names)) < len(names) or not all(names):
            raise InputError(f"{file}:1: found columns {names}, expected a different name for each")
        for found in cells:
            place = f"{file}:{cells.line_num}"
            if not found:
                continue
            if len(found) != len(names):
                raise InputError(f"{place}: found {len(found)} columns, expected {len(names)} ({', '.join(names)})")
            yield Row(dict(zip(names, found, strict=True)), place)
    except csv.Error as error:
        raise InputError(f"{file}:{cells.line_num}: is not readable as {format_of(file)[1:]} ({error})") from None


def _read_jsonl(file: File) -> Iterator[Row]:
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file}:{number}: is not JSON ({error})") from None
        if not isinstance(found, dict):
            raise InputError(f"{file}:{number}: found a JSON {type(found).__name__}, expected an object")
        yield Row(found, f"{file}:{number}")


def _read_conll(file: File) -> Iterator[Row]:
    words: list[str] = []
    tags: list[str] = []
    first = 1
    for number, line in enumerate(_lines(file), 1):
        # A word may be a character that Python takes for a blank.
        cells = [cell for cell in line.rstrip("\r\n").replace(" ", "\t").split("\t") if cell]
        if not cells or cells[0] == "-DOCSTART-":
            if words:
                yield Row({"words": words, "tags": tags}, f"{file}:{first}")
            words, tags = [], []
            continue
        if len(cells) < 2:
            raise InputError(f"{file}:{number}: found {cells[0]!r} alone, expected a word and its tag")
        first = first if words else number
        words.append(cells[0])
        tags.append(cells[-1])
    if words:
        yield Row({"words": words, "tags": tags}, f"{file}:{first}")


def _read_parquet(file: File, column: str | None) -> Iterator[Row]:
    try:
        import pyarrow as pa
    except ImportError:
        raise InputError(f"{file}: needs pyarrow to be read; pip install 'modernbert[data]'") from None
    number = 0
    try:
        with file.open("rb") as stored, open_parquet(stored) as table:
            wanted = [column] if column in table.schema_arrow.names else None
            for some in table.iter_batches(batch_size=1024, columns=wanted):
                for values in some.to_pylist():
                    number += 1
                    yield Row(values, f"{file}:{number}")
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{file}: is not readable as parquet ({reason})") from None
