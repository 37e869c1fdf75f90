"""Documents of a corpus: one stream from files, folders, URLs and Hub data sets, with counts."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from modernbert.data.duplicates import SeenTexts
from modernbert.data.hub_datasets import is_hub_dataset
from modernbert.data.input_errors import BrokenInput, Skips
from modernbert.data.prepare_options import Documents
from modernbert.data.readers import read_file, require_readers, size_of, starts_with_field
from modernbert.data.remote_files import RemoteFile
from modernbert.data.source_files import File, Parts, fail, list_source
from modernbert.data.splits import splits_in
from modernbert.data.suffixes import CONLL, KNOWN, PROSE, ROWS, check_suffix, format_of, known_suffixes
from modernbert.data.utf8 import find_problem
from modernbert.errors import InputError, counted
from modernbert.progress import show_progress

__all__ = ["Document", "Tally", "check_choice", "find_files", "read_documents", "show_documents", "stored_bytes"]

SKIPPED_FOLDERS = ("__pycache__", "node_modules")

_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_BYTES = re.compile("[\udc80-\udcff]+")


@dataclass(frozen=True)
class Document:
    """The text of a document and where it was read: a path or URL, or `path:line`."""

    text: str
    origin: str


@dataclass
class Tally:
    """Counts of documents, bytes, and skipped rows and files."""

    documents: int = 0
    empty: int = 0
    repaired: int = 0
    bytes: int = 0
    """UTF-8 bytes of the documents."""
    stored_bytes: int = 0
    """Bytes read from files, compressed as they are stored."""
    passed_over: int = 0
    """Files of unknown formats and links to folders, found below the given folders."""
    skips: Skips = field(default_factory=Skips)
    """Broken rows, and broken files or the rest of them, that were skipped on request."""
    duplicates: int = 0
    """Documents that were dropped on request because the same text came before."""

    @property
    def skipped(self) -> int:
        """Number of skipped rows and files."""
        return self.skips.number

    @property
    def skipped_reasons(self) -> list[str]:
        """Errors of the first skipped rows and files."""
        return self.skips.reasons

    def describe(self) -> str:
        """Return the counts as one line."""
        others = {
            "empty document left out": self.empty,
            "document repaired": self.repaired,
            "file of another format or linked folder ignored": self.passed_over,
            "duplicate left out": self.duplicates,
            "broken row or file skipped": self.skipped,
        }
        plurals = ("empty documents left out", "documents repaired", "files of other formats or linked folders ignored",
                   "duplicates left out", "broken rows or files skipped")  # fmt: skip
        more = [counted(n, noun, plural) for (noun, n), plural in zip(others.items(), plurals, strict=True) if n]
        return ", ".join([f"{counted(self.documents, 'document')} read", *more])


def read_documents(
    sources: Sequence[File | str],
    tally: Tally,
    *,
    text_field: str = "text",
    txt_unit: str = "file",
    invalid: str = "repair",
    on_error: str = "fail",
    deduplicate: bool = False,
    empty_ok: bool = False,
) -> Iterator[Document]:
    """Read the documents of all sources in a fixed order.

    Files with rows give one document per row, source code one per file. Documents of whitespace are counted and left
    out.

    Args:
        sources: Files, folders, URLs or names of Hub data sets; see `find_files`.
        tally: Receives the counts.
        text_field: The field with the text, in files with rows.
        txt_unit: The document of `.txt`, `.md`, `.rst` and files without a suffix: a `file`, `line` or `paragraph`.
        invalid: What to do with text that is not UTF-8: `repair` (replace by U+FFFD) or `refuse`.
        on_error: What to do with broken rows, and with damaged files from the place of the damage on: `fail`, or `skip`
            and count them. The failure of a network is always an error.
        deduplicate: Keep only the first of the documents with the same text; takes 16 bytes of memory per document.
        empty_ok: Whether there may be no document.

    Raises:
        BrokenInput: A file or row cannot be read; names the file, and the line if there is one.
        InputError: A source does not exist or has no known format, or there is no text.
    """
    check_choice("txt_unit", txt_unit, ("file", "line", "paragraph"))
    check_choice("invalid", invalid, ("repair", "refuse"))
    check_choice("on_error", on_error, ("fail", "skip"))
    on_broken = tally.skips.add if on_error == "skip" else fail
    files = find_files(sources, tally, text_field=text_field, on_error=on_error, empty_ok=empty_ok)
    seen = SeenTexts() if deduplicate else None

    def documents() -> Iterator[Document]:
        for raw in _read_all(files, tally, text_field, txt_unit, on_broken):
            try:
                document = _repair(raw, invalid)
            except BrokenInput as error:
                on_broken(error)
                continue
            if not document.text or document.text.isspace():
                tally.empty += 1
            elif seen is not None and not seen.add(document.text):
                tally.duplicates += 1
            else:
                tally.repaired += document is not raw
                tally.documents += 1
                tally.bytes += len(document.text.encode())
                yield document
        if not tally.documents and not empty_ok:
            more = f" ({tally.skipped_reasons[0]})" if tally.skipped_reasons else ""
            raise InputError(f"{', '.join(map(str, sources[:9]))}: no document with text in {len(files)} files{more}")

    return documents()


def find_files(
    sources: Sequence[File | str],
    tally: Tally | None = None,
    *,
    text_field: str = "text",
    on_error: str = "fail",
    empty_ok: bool = False,
) -> list[File]:
    """List the given files, and the files of known formats below the given folders, sorted by name.

    A source is a path, a URL that fsspec knows (of a folder, a file, or with `*`), or `owner/name@revision` of a data
    set on the Hugging Face Hub, whose card and whose rows of other splits than `train` are left out. Hidden files and
    folders, `__pycache__` and `node_modules` are left out. Files of unknown formats and links to folders are left out
    and counted in `tally`; below a folder, so are `.csv`, `.tsv` and `.json` files without `text_field`, because not
    all of them are data.

    Raises:
        InputError: A source does not exist, a folder has no file of a known format (unless `empty_ok`), a file has an
            unknown suffix, or a library is missing.
        BrokenInput: A folder cannot be read, unless that is to be skipped.
    """
    if not sources and not empty_ok:
        raise InputError("input: found none, expected at least one file or folder")
    tally = tally or Tally()
    files: list[File] = []
    on_broken = tally.skips.add if on_error == "skip" else fail
    for source in sources:
        files += _find_in(source, tally, on_broken, text_field, empty_ok)
    require_readers(files)
    return files


def stored_bytes(sources: Sequence[File | str], *, text_field: str = "text", on_error: str = "fail") -> int:
    """Return the stored bytes of all files to read, the final value of `Tally.stored_bytes`."""
    return sum(map(size_of, find_files(sources, text_field=text_field, on_error=on_error)))


@contextmanager
def show_documents(
    label: str,
    sources: Sequence[File | str],
    tally: Tally,
    options: Documents,
    *,
    deduplicate: bool = False,
    made: Callable[[], str] = str,
) -> Iterator[tuple[Iterator[Document], Callable[[], None]]]:
    """Read documents and show the progress; `made` returns a text about the output so far.

    Yields the documents, and a function that shows a change of the output.
    """
    documents = read_documents(
        sources, tally, text_field=options.text_field, txt_unit=options.txt_unit, invalid=options.invalid,
        on_error=options.on_error, deduplicate=deduplicate,
    )  # fmt: skip
    total = stored_bytes(sources, text_field=options.text_field, on_error=options.on_error)
    started = time.monotonic()

    def text() -> str:
        speed = tally.bytes / 1e6 / (time.monotonic() - started)
        return f"{label}  {tally.documents:,} documents  {speed:,.1f} MB/s  {made()}".rstrip()

    with show_progress(total, interval_s=5.0) as update:

        def show() -> None:
            update(tally.stored_bytes, text)

        def watched() -> Iterator[Document]:
            for document in documents:
                show()
                yield document
            show()

        yield watched(), show


def check_choice(name: str, found: str, known: Sequence[str]) -> None:
    """Check that a setting has one of its known values.

    Raises:
        InputError: It does not; names the setting and its values.
    """
    if found not in known:
        raise InputError(f"{name}: found {found!r}, expected {', '.join(map(repr, known[:-1]))} or {known[-1]!r}")


def _find_in(
    source: File | str, tally: Tally, on_broken: Callable[[InputError], None], text_field: str, empty_ok: bool
) -> list[File]:
    """Return the files to read of one source, and count the others."""
    if isinstance(source, RemoteFile):
        return [source]
    files: list[File] = []
    for parts, file in list_source(source, _is_hidden, on_broken):
        if not parts:
            _check_format(file)
            return [file]
        if any(map(_is_hidden, parts)):
            continue
        is_left_out = is_hub_dataset(str(source)) and _is_left_out(parts, file)
        if not is_left_out and _has_documents(file, text_field):
            files.append(file)
        else:
            tally.passed_over += 1
    if not files and not empty_ok:
        raise InputError(f"{source}: no file of a known format below this folder ({known_suffixes()})")
    return files


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SKIPPED_FOLDERS


def _is_left_out(parts: Parts, file: File) -> bool:
    """Return whether a file of a Hub data set is its card, or has rows of another split than `train`."""
    splits = splits_in(parts)
    return parts == ("README.md",) or (format_of(file) in ROWS and bool(splits) and "train" not in splits)


def _check_format(file: File) -> None:
    check_suffix(file)
    if format_of(file) in CONLL:
        raise InputError(f"{file}: has labeled words, expected documents: {known_suffixes()}")
    if isinstance(file, Path) and not file.is_file():
        raise InputError(f"{file}: is neither a file nor a folder")


def _has_documents(file: File, text_field: str) -> bool:
    """Return whether a file below a folder is one to read."""
    suffix = format_of(file)
    if isinstance(file, Path) and not file.is_file():
        return False
    if suffix in (".csv", ".tsv", ".json"):
        return starts_with_field(file, text_field)
    return suffix in KNOWN and suffix not in CONLL


def _read_all(
    files: list[File], tally: Tally, text_field: str, txt_unit: str, on_broken: Callable[[InputError], None]
) -> Iterator[Document]:
    """Read all files; pass broken rows and files to `on_broken`, and continue if it returns."""

    def count(num_bytes: int) -> None:
        tally.stored_bytes += num_bytes

    for file in files:
        unit = txt_unit if format_of(file) in (*PROSE, "") else "file"
        try:
            for row in read_file(file, [text_field], unit=unit, count=count):
                if isinstance(row, BrokenInput):
                    on_broken(row)
                else:
                    yield Document(row.values[text_field], row.origin)
        except BrokenInput as error:
            on_broken(error)


def _repair(document: Document, invalid: str) -> Document:
    """Return a document in valid UTF-8: itself, or with replacement characters if that is wanted."""
    found = find_problem(document.text)
    if found is None:
        return document
    if invalid == "refuse":
        index, problem = found
        # A document that is a whole file has no line yet.
        has_line = re.search(r":\d+(\[\d+\])?$", document.origin)
        line = "" if has_line else f":{document.text.count(chr(10), 0, index) + 1}"
        raise BrokenInput(f"{document.origin}{line}", f"{problem}, or invalid='repair'")

    def decode(run: re.Match[str]) -> str:
        return run[0].encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    return Document(_SURROGATE.sub("\ufffd", _ESCAPED_BYTES.sub(decode, document.text)), document.origin)
