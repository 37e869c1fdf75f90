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

from modernbert.data.archives import open_plain
from modernbert.data.conll import read_sentences
from modernbert.data.json_array import read_array
from modernbert.data.readers import (
    File,
    check_not_utf16,
    json_pieces,
    not_utf8,
    open_parquet,
    require_readers,
    starts_array,
)
from modernbert.data.remote_files import dataset_url, find_remote, is_url
from modernbert.data.splits import Parts, Subset, choose_split, is_shard, splits_in, subset_of
from modernbert.data.suffixes import CONLL, KNOWN, ROWS, format_of, unknown_suffix
from modernbert.errors import InputError
from modernbert.extras import missing
from modernbert.safe_files import is_one_line

__all__ = ["Row", "check_files", "read_file", "read_rows"]

# In float32, in which models compute.
_LARGEST = 3.4e38
_ROWS = (*ROWS, *CONLL)
# Formats of data that are not read, and files of these formats that data sets have beside their rows.
_OTHER_DATA = (".arrow", ".feather", ".xlsx", ".zip", ".tar", ".tgz", ".bz2", ".xz", ".pkl", ".txt", ".orc")
_CONVERTED = "@refs/convert/parquet"
_README_BYTES = 1 << 20


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
            raise InputError(
                f"{self.origin}: {column} contains an invalid Unicode character (unpaired surrogate)"
            ) from None

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


def read_rows(sources: Sequence[str], split: str = "train", subset: str | None = None) -> list[Row]:
    """Read all rows of all sources, in order.

    `.tsv` has a line of column names and neither quotes nor escapes; `.csv` has them; `.jsonl` one object a line;
    `.json` an array of objects, or of strings, which are the column `text`; `.conll`, `.conllu` and `.iob2` a word and
    its tags a line, a blank line between sentences (see `conll.py`). Each but `.parquet` may end in `.gz` or `.zst`. A
    source is a file, a URL of one, or a data set: a folder, a URL of a folder, or the name of a dataset on the hub. A
    file is read whatever it is called; of a data set only `split` is read, found by the conventions of `splits.py`.
    `subset` is one of those that the README.md of the data set lists.

    Raises: InputError naming the file, and the line where there is one, at the first thing that cannot be read;
    naming the data set, if it does not have the split.
    """
    files = [file for source in sources for file in _files(source, split, subset)]
    require_readers(files)
    rows = [row for file in files for row in read_file(file)]
    if not rows:
        raise InputError(f"{', '.join(sources)}: found no row, expected at least one")
    return rows


def check_files(sources: Sequence[str], split: str, subset: str | None = None) -> None:
    """Check that all sources are there and can be read here, before the first of them is read.

    Raises: InputError naming a source that is absent or of an unknown format, or a library that is not installed.
    """
    for source in sources:
        require_readers(_files(source, split, subset, report=False))


def _files(source: str, split: str, subset: str | None, *, report: bool = True) -> list[File]:
    url = source if is_url(source) else dataset_url(source)
    is_one_file = False
    listed: list[tuple[Parts, File]]
    if url is not None:
        listed = list(find_remote(url))
        is_one_file = listed[0][0] == ()
        listed = [each for each in listed if not _is_hidden(each[0])]
    elif (path := Path(source)).is_dir():
        listed = _walked(path)
    elif path.exists():
        listed, is_one_file = [((), path)], True
    else:
        raise InputError(f"{source}: no such file")
    if is_one_file:
        if subset is not None:
            raise InputError(f"subset: found {subset!r}, but {source} is a file, expected a data set")
        ((_, file),) = listed
        _check_format(file)
        return [file]
    chosen = _subset(source, listed, subset)
    by_names = chosen.patterns is None
    known = [(parts, file) for parts, file in listed if _has_rows(file) or not by_names]
    if not known:
        raise InputError(f"{source}: no labelled file there, expected {', '.join(_ROWS)}")
    paths = [parts for parts, _ in known]
    pattern = url is not None and "*" in url
    if pattern and subset is None and len({tuple(splits_in(parts)) for parts in paths}) == 1:
        return [file for _, file in known]
    name, numbers = choose_split(paths, split, source, chosen)
    if by_names and not is_shard(paths[numbers[0]]):
        _check_left_out(source, listed, paths, numbers)
    found = [known[number][1] for number in numbers]
    for file in found:
        _check_format(file)
    left_out = ["/".join(parts) for n, (parts, file) in enumerate(known) if n not in numbers]
    left_out = [path for path in left_out if path != "README.md"]
    more = f"; left out {', '.join(left_out[:6])}{' ...' if len(left_out) > 6 else ''}" if left_out else ""
    if report:
        print(f"{source}: split {name}, {len(found)} of {len(known)} files{more}")
    return found


def _check_format(file: File) -> None:
    if format_of(file) not in KNOWN:
        raise unknown_suffix(file)
    if format_of(file) not in _ROWS:
        raise InputError(f"{file}: holds text without fields, expected labelled rows: {', '.join(_ROWS)}")


def _walked(folder: Path) -> list[tuple[Parts, File]]:
    """List the files below a folder as a store lists them; hidden files and folders are left out, links followed."""
    found: list[tuple[Parts, File]] = []

    def walk(place: Path, parts: Parts, above: frozenset[Path]) -> None:
        real = place.resolve()
        if real in above:
            return  # a link to a folder that holds it
        for path in place.iterdir():
            if path.is_dir() and not _is_hidden((path.name, "")):
                walk(path, (*parts, path.name), above | {real})
            elif not path.is_dir():
                found.append(((*parts, path.name), path))

    try:
        walk(folder, (), frozenset())
    except OSError as error:
        raise InputError(f"{error.filename or folder}: cannot be read ({error.strerror or error})") from None
    return sorted(((parts, file) for parts, file in found if not _is_hidden(parts)), key=lambda item: item[0])


def _is_hidden(parts: Parts) -> bool:
    return any(part.startswith(".") for part in parts) or any(part.startswith("__") for part in parts[:-1])


def _subset(source: str, listed: Sequence[tuple[Parts, File]], name: str | None) -> Subset:
    if source.endswith(_CONVERTED):
        # The hub's own conversion has a folder for each subset, and no README.md.
        folders = sorted({parts[0] for parts, _ in listed if len(parts) > 1})
        chosen = name or (folders[0] if len(folders) == 1 else None)
        if chosen not in folders:
            raise InputError(f"{source}: found the subsets {', '.join(folders)}; choose one with subset=NAME")
        return Subset((str(chosen),))
    readme = next((file for parts, file in listed if parts == ("README.md",)), None)
    if readme is None:
        return subset_of(None, name, source)
    try:
        with readme.open("rb") as stored:
            text = stored.read(_README_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise InputError(f"{readme}: cannot be read ({error.strerror or error})") from None
    return subset_of(text, name, source)


def _check_left_out(
    source: str, listed: Sequence[tuple[Parts, File]], paths: Sequence[Parts], chosen: Sequence[int]
) -> None:
    """Refuse a data file of the same split whose format is not read: the split would lack a part.

    Raises: InputError naming the file.
    """
    splits = {split for number in chosen for split in splits_in(paths[number])}
    for parts, file in listed:
        if Path(parts[-1]).suffix.lower() in _OTHER_DATA and splits_in(parts):
            if set(splits_in(parts)) <= splits:
                raise InputError(
                    f"{file}: unknown format, but its name is that of the split that {source} is read for, expected "
                    f"{', '.join(_ROWS)}; convert it, or name the files to read"
                )


def _has_rows(file: File) -> bool:
    """Say whether a file that was met in a folder is one to read; a .json file there may be any object."""
    return format_of(file) in _ROWS and (format_of(file) != ".json" or starts_array(file))


def read_file(file: File, column: str | None = None) -> Iterator[Row]:
    """Yield the rows of one file as they are read; see `read_rows`.

    Where one `column` is all that is wanted, and the format lets it be read alone, rows hold no other.
    """
    suffix = format_of(file)
    if suffix == ".parquet":
        return _read_parquet(file, column)
    if suffix == ".jsonl":
        return _read_jsonl(file)
    if suffix == ".json":
        return _read_array(file, column)
    if suffix in CONLL:
        return _read_conll(file)
    return _read_table(file, tabs=suffix == ".tsv")


def _lines(file: File) -> Iterator[str]:
    with open_plain(file) as stream:
        for number, line in enumerate(stream.lines(), 1):
            if number == 1:
                check_not_utf16(line, str(file))
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"{file}:{number}: {not_utf8(error)}") from None


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


def _read_array(file: File, column: str | None) -> Iterator[Row]:
    with open_plain(file) as stream:
        for place, found in read_array(json_pieces(stream.chunks(), str(file), strict=True), str(file)):
            if isinstance(found, str):
                found = {column or "text": found}
            if not isinstance(found, dict):
                raise InputError(f"{place}: found a JSON {type(found).__name__}, expected an object or a string")
            yield Row(found, place)


def _read_conll(file: File) -> Iterator[Row]:
    for values, number in read_sentences(list(_lines(file)), str(file), is_conllu=format_of(file) == ".conllu"):
        yield Row(values, f"{file}:{number}")


def _read_parquet(file: File, column: str | None) -> Iterator[Row]:
    try:
        import pyarrow as pa
    except ImportError:
        raise missing(str(file), "pyarrow") from None
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
