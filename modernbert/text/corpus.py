"""Documents from files of many formats, one at a time.

In: paths of files and folders. Out: a stream of `Document`, and a `Tally` of what was met. A file of its own because
everything that can be wrong with text on a disk is met here and nowhere later.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modernbert.errors import InputError
from modernbert.text.archive import open_plain

__all__ = ["Document", "Tally", "find_files", "read_documents", "stored_bytes"]

PROSE = (".txt", ".md", ".rst")
CODE = tuple(
    ".py .pyi .pyx .ipynb .c .h .cc .cpp .cxx .hh .hpp .cu .cuh .java .kt .scala .js .jsx .mjs .ts .tsx .go .rs .rb"
    " .php .cs .swift .lua .r .jl .pl .hs .ml .ex .exs .erl .clj .sh .bash .ps1 .sql .html .htm .css .scss .xml .yaml"
    " .yml .toml .ini .cfg .cmake .proto .tex .vue".split()
)
SUFFIXES = (*PROSE, ".jsonl", ".parquet", *CODE)
SKIPPED_FOLDERS = ("__pycache__", "node_modules")
PARQUET_ROWS = 64

_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_BYTES = re.compile("[\udc80-\udcff]+")


@dataclass(frozen=True)
class Document:
    """Hold one document's text and where it was read: a path, or `path:line`."""

    text: str
    origin: str


@dataclass
class Tally:
    """Count what was met while documents were read."""

    documents: int = 0
    empty: int = 0
    repaired: int = 0
    bytes: int = 0
    """UTF-8 bytes of the documents."""
    stored_bytes: int = 0
    """Bytes read from the disk, compressed as they are there."""
    passed_over: int = 0
    """Files of unknown formats and links to folders, met below the folders given."""


@dataclass(frozen=True)
class _Raw:
    """Hold text before it is checked; of a whole file, the line of an error is still to be found."""

    text: str | bytes
    origin: str
    is_whole_file: bool = False


def read_documents(
    paths: Sequence[Path | str],
    tally: Tally,
    *,
    text_field: str = "text",
    txt_unit: str = "file",
    invalid: str = "repair",
) -> Iterator[Document]:
    """Read the documents of files and folders, in a fixed order, and count them in `tally`.

    `.txt`, `.md` and `.rst` give one document a file, line or paragraph (`txt_unit`), source code one a file, `.jsonl`
    and `.parquet` one a row from `text_field`; each may end in `.gz` or `.zst`. Documents of white space alone are
    counted and left out. Bytes that are not UTF-8 and lone surrogates become U+FFFD (`invalid="repair"`), or are an
    error (`"refuse"`).

    Raises: InputError naming the file, and the line where there is one, at the first thing that cannot be read; at
    once if a path is absent or has no known format.
    """
    if txt_unit not in ("file", "line", "paragraph"):
        raise InputError(f"txt_unit: found {txt_unit!r}, expected 'file', 'line' or 'paragraph'")
    if invalid not in ("repair", "refuse"):
        raise InputError(f"invalid: found {invalid!r}, expected 'repair' or 'refuse'")
    files = find_files(paths, tally)

    def documents() -> Iterator[Document]:
        for path in files:
            for raw in _read_file(path, tally, text_field, txt_unit):
                document = _checked(raw, tally, invalid)
                if document is not None:
                    yield document
        if not tally.documents:
            raise InputError(f"{', '.join(map(str, paths))}: no document with text in {len(files)} files")

    return documents()


def find_files(paths: Sequence[Path | str], tally: Tally | None = None) -> list[Path]:
    """List the files to read: those given, and those of known formats below the folders given, sorted by name.

    Hidden files and folders, `__pycache__` and `node_modules` are passed over; so are files of unknown formats and
    links to folders, which are counted in `tally`.

    Raises: InputError if a path is absent, or a folder has no file of a known format, or a file has an unknown suffix.
    """
    if not paths:
        raise InputError("sources: found none, expected at least one file or folder")
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = list(_walk(path, tally or Tally()))
            if not found:
                raise InputError(f"{path}: no file of a known format below this folder ({_known()})")
            files += found
        elif not path.exists():
            raise InputError(f"{path}: no such file or folder")
        elif _suffix(path) not in SUFFIXES:
            raise InputError(f"{path}: unknown format {_suffix(path)!r}, expected {_known()}")
        else:
            files.append(path)
    return files


def stored_bytes(paths: Sequence[Path | str]) -> int:
    """Return the bytes on disk of all files that would be read: what `Tally.stored_bytes` will come to."""
    return sum(path.stat().st_size for path in find_files(paths))


def _walk(folder: Path, tally: Tally) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and not entry.is_symlink():
            if entry.name not in SKIPPED_FOLDERS:
                yield from _walk(entry, tally)
        elif entry.is_file() and _suffix(entry) in SUFFIXES:
            yield entry
        else:
            tally.passed_over += 1


def _suffix(path: Path) -> str:
    name = path.name.lower()
    for packed in (".gz", ".zst"):
        name = name.removesuffix(packed)
    return Path(name).suffix


def _known() -> str:
    return f"{' '.join(SUFFIXES[:8])} or other source code, also as .gz or .zst"


def _read_file(path: Path, tally: Tally, text_field: str, txt_unit: str) -> Iterator[_Raw]:
    suffix = _suffix(path)
    if suffix == ".parquet":
        return _read_parquet(path, tally, text_field)
    if suffix == ".jsonl":
        return _read_jsonl(path, tally, text_field)
    if suffix in PROSE and txt_unit != "file":
        return _read_lines(path, tally) if txt_unit == "line" else _read_paragraphs(path, tally)
    return _read_whole(path, tally)


def _plain_lines(path: Path, tally: Tally) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, line with its line break); the byte order mark of Windows editors is left out."""
    seen = 0
    with open_plain(path) as stream:
        for number, line in enumerate(stream.lines(), 1):
            tally.stored_bytes += stream.stored_bytes() - seen
            seen = stream.stored_bytes()
            yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        tally.stored_bytes += stream.stored_bytes() - seen


def _read_whole(path: Path, tally: Tally) -> Iterator[_Raw]:
    yield _Raw(b"".join(line for _, line in _plain_lines(path, tally)), str(path), is_whole_file=True)


def _read_lines(path: Path, tally: Tally) -> Iterator[_Raw]:
    for number, line in _plain_lines(path, tally):
        yield _Raw(line.rstrip(b"\r\n"), f"{path}:{number}")


def _read_paragraphs(path: Path, tally: Tally) -> Iterator[_Raw]:
    paragraph: list[bytes] = []
    first = 1
    for number, line in _plain_lines(path, tally):
        if line.strip():
            first = first if paragraph else number
            paragraph.append(line)
        elif paragraph:
            yield _Raw(b"".join(paragraph).rstrip(b"\r\n"), f"{path}:{first}")
            paragraph = []
    if paragraph:
        yield _Raw(b"".join(paragraph).rstrip(b"\r\n"), f"{path}:{first}")


def _read_jsonl(path: Path, tally: Tally, text_field: str) -> Iterator[_Raw]:
    for number, line in _plain_lines(path, tally):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row: Any = json.loads(line.decode("utf-8", "surrogateescape"))
        except RecursionError:
            raise InputError(f"{place}: JSON nested too deeply") from None
        except ValueError as error:
            raise InputError(f"{place}: is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise InputError(f"{place}: found a JSON {type(row).__name__}, expected an object with {text_field!r}")
        if text_field not in row:
            raise InputError(f"{place}: no field {text_field!r}, found {', '.join(map(repr, row)) or 'none'}")
        if not isinstance(row[text_field], str):
            raise InputError(f"{place}: field {text_field!r} is {type(row[text_field]).__name__}, expected a string")
        yield _Raw(row[text_field], place)


def _read_parquet(path: Path, tally: Tally, text_field: str) -> Iterator[_Raw]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(f"{path}: needs pyarrow to be read; pip install 'modernbert[data]'") from None
    size = path.stat().st_size
    number = seen = 0
    try:
        with pq.ParquetFile(path) as table:
            schema = table.schema_arrow
            if text_field not in schema.names:
                raise InputError(f"{path}: no column {text_field!r}, found {', '.join(map(repr, schema.names))}")
            kind = schema.field(text_field).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
                raise InputError(f"{path}: column {text_field!r} is {kind}, expected strings")
            for rows in table.iter_batches(batch_size=PARQUET_ROWS, columns=[text_field]):
                # As bytes: a column may hold what is not UTF-8, and pyarrow would stop without saying in which row.
                for text in rows.column(0).cast(pa.large_binary()).to_pylist():
                    number += 1
                    if text is None:
                        raise InputError(f"{path}:{number}: column {text_field!r} is null, expected a string")
                    yield _Raw(text, f"{path}:{number}")
                tally.stored_bytes += size * number // table.metadata.num_rows - seen
                seen = size * number // table.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: is not readable as parquet ({str(error).splitlines()[0]})") from None


def _checked(raw: _Raw, tally: Tally, invalid: str) -> Document | None:
    """Decode a text, repair or refuse what is not UTF-8, leave out what is empty."""
    text, damaged = raw.text, False
    try:
        if isinstance(text, bytes):
            size, text = len(text), text.decode()
        else:
            size = len(text.encode())
    except UnicodeError as error:
        if invalid == "refuse":
            raise InputError(f"{_place(raw, error)}: {_what(error)}, expected UTF-8, or invalid='repair'") from None
        damaged = True
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else _repaired(text)
        size = len(text.encode())
    if not text or text.isspace():
        tally.empty += 1
        return None
    tally.repaired += damaged
    tally.documents += 1
    tally.bytes += size
    return Document(text, raw.origin)


def _repaired(text: str) -> str:
    # Bytes that were not UTF-8 came through the JSON parser as surrogates; they get the usual treatment.
    def decoded(run: re.Match[str]) -> str:
        return run[0].encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    restored = _ESCAPED_BYTES.sub(decoded, text)
    return _SURROGATE.sub("\ufffd", restored)


def _place(raw: _Raw, error: UnicodeError) -> str:
    if raw.is_whole_file and isinstance(error, UnicodeDecodeError):
        line = error.object[: error.start].count(b"\n") + 1
        return f"{raw.origin}:{line}"
    return raw.origin


def _what(error: UnicodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"found byte 0x{error.object[error.start]:02x}"
    if isinstance(error, UnicodeEncodeError):
        code = ord(error.object[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            return f"found byte 0x{code - 0xDC00:02x}"
        return f"found the lone surrogate U+{code:04X}"
    return f"found {error}"
