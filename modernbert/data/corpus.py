"""Documents from files of many formats, one at a time.

In: paths of files and folders, URLs, names of datasets. Out: a stream of `Document`, and a `Tally` of what was met. A
file of its own because what becomes of a text that is broken, empty or there already is decided here and nowhere later.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from modernbert.data.duplicates import SeenTexts
from modernbert.data.input_errors import BrokenInput, Skips
from modernbert.data.readers import File, RawText, not_utf8, read_texts, require_readers, size_of, starts_with_field
from modernbert.data.remote_files import RemoteFile, dataset_url, find_remote, is_url
from modernbert.data.suffixes import CONLL, KNOWN, check_suffix, format_of, known_suffixes
from modernbert.errors import InputError
from modernbert.progress import show_progress

__all__ = ["Document", "Tally", "find_files", "read_documents", "show_reading", "stored_bytes"]

SKIPPED_FOLDERS = ("__pycache__", "node_modules")

_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_BYTES = re.compile("[\udc80-\udcff]+")


@dataclass(frozen=True)
class Document:
    """Hold one document's text and where it was read: a path or URL, or `path:line`."""

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
    skips: Skips = field(default_factory=Skips)
    """Broken rows, and broken files or what was left of them, left out on request."""
    duplicates: int = 0
    """Documents left out on request, because the same text came before."""

    @property
    def skipped(self) -> int:
        """How many broken rows and files were left out."""
        return self.skips.number

    @property
    def skipped_reasons(self) -> list[str]:
        """What was wrong with the first of them."""
        return self.skips.reasons

    def skip(self, broken: BrokenInput) -> None:
        """Count something broken that is left out."""
        self.skips.add(broken)


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
    """Read the documents of all sources, in a fixed order, and count them in `tally`.

    `.txt`, `.md` and `.rst` give one document a file, line or paragraph (`txt_unit`), source code one a file. `.jsonl`,
    `.json` (an array), `.parquet`, `.csv` and `.tsv` give one a row from `text_field`. Each may end in `.gz` or `.zst`;
    a file without a suffix is read as `.txt`. Documents of white space alone are counted and left out. Bytes that are
    not UTF-8 and lone surrogates become U+FFFD (`invalid="repair"`), or are an error (`"refuse"`). With
    `deduplicate`, only the first of the documents with the same text stays; that takes 16 bytes of memory a document.

    What is broken is an error (`on_error="fail"`), or is counted and left out (`"skip"`): a row, or a damaged file
    from the place of the damage on. A network that fails is an error either way, since what it lacks today it may give
    tomorrow.

    Raises: BrokenInput naming the file, and the line where there is one, at the first thing that cannot be read;
    InputError at once if a source is absent or has no known format, and at the end if there was no text, unless
    `empty_ok`.
    """
    for name, found, known in (
        ("txt_unit", txt_unit, ("file", "line", "paragraph")),
        ("invalid", invalid, ("repair", "refuse")),
        ("on_error", on_error, ("fail", "skip")),
    ):
        if found not in known:
            raise InputError(f"{name}: found {found!r}, expected {', '.join(map(repr, known[:-1]))} or {known[-1]!r}")
    lost = tally.skip if on_error == "skip" else _refuse
    files = find_files(sources, tally, text_field=text_field, on_error=on_error, empty_ok=empty_ok)
    seen = SeenTexts() if deduplicate else None

    def documents() -> Iterator[Document]:
        for raw in _read_all(files, tally, text_field, txt_unit, lost):
            try:
                document, is_repaired = _checked(raw, invalid)
            except BrokenInput as error:
                lost(error)
                continue
            if not document.text or document.text.isspace():
                tally.empty += 1
            elif seen is not None and not seen.add(document.text):
                tally.duplicates += 1
            else:
                tally.repaired += is_repaired
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
    """List the files to read: those given, and those of known formats below the folders given, sorted by name.

    A source is a path, a URL that fsspec knows (a folder's, a file's, or one with `*`), or `owner/name@revision` of a
    dataset on the Hugging Face Hub, of which the card is passed over. So are hidden files and folders, `__pycache__`
    and `node_modules`, and files of unknown formats and links to folders, which are counted in `tally`. Below a folder,
    `.csv`, `.tsv` and `.json` files without `text_field` are of unknown formats, too: not all of them are data.

    Raises: InputError if a source is absent, or a folder has no file of a known format (unless `empty_ok`), or a file
    has an unknown suffix, or needs a library that is not installed; BrokenInput if a folder cannot be read, unless that
    is to be skipped.
    """
    if not sources and not empty_ok:
        raise InputError("sources: found none, expected at least one file or folder")
    tally = tally or Tally()
    files: list[File] = []
    for source in sources:
        if isinstance(source, RemoteFile):
            files.append(source)
        elif isinstance(source, str) and is_url(source):
            files += _below_url(source, tally, text_field)
        elif isinstance(source, str) and format_of(Path(source)) not in KNOWN and (url := dataset_url(source)):
            files += _below_url(url, tally, text_field)
        else:
            lost = tally.skip if on_error == "skip" else _refuse
            files += _below_path(Path(source), tally, lost, text_field, empty_ok)
    require_readers(files)
    return files


def stored_bytes(sources: Sequence[File | str], *, text_field: str = "text", on_error: str = "fail") -> int:
    """Return the bytes on disk of all files that would be read: what `Tally.stored_bytes` will come to."""
    return sum(map(size_of, find_files(sources, text_field=text_field, on_error=on_error)))


@contextmanager
def show_reading(label: str, tally: Tally, total_bytes: int) -> Iterator[Callable[[str], None]]:
    """Show how far reading is; call the result after each document, with what was made so far, or with ""."""
    begun = time.monotonic()
    made = ""
    with show_progress(total_bytes, interval_s=5.0) as update:

        def text() -> str:
            speed = tally.bytes / 1e6 / (time.monotonic() - begun)
            return f"{label}  {tally.documents:,} documents  {speed:,.1f} MB/s  {made}".rstrip()

        def show(state: str) -> None:
            nonlocal made
            made = state or made
            update(tally.stored_bytes, text)

        yield show


def _refuse(broken: BrokenInput) -> None:
    raise broken


def _below_path(
    path: Path, tally: Tally, lost: Callable[[BrokenInput], None], text_field: str, empty_ok: bool
) -> list[File]:
    if path.is_dir():
        found = list(_walk(path, tally, lost, text_field))
        if not found and not empty_ok:
            raise InputError(f"{path}: no file of a known format below this folder ({known_suffixes()})")
        return found
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    _check_format(path)
    if not path.is_file():
        raise InputError(f"{path}: is neither a file nor a folder")
    return [path]


def _walk(folder: Path, tally: Tally, lost: Callable[[BrokenInput], None], text_field: str) -> Iterator[File]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        lost(BrokenInput(f"{folder}: cannot be read ({error.strerror})"))
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and not entry.is_symlink():
            if entry.name not in SKIPPED_FOLDERS:
                yield from _walk(entry, tally, lost, text_field)
        elif entry.is_file() and _has_documents(entry, text_field):
            yield entry
        else:
            tally.passed_over += 1


def _below_url(url: str, tally: Tally, text_field: str) -> list[File]:
    files: list[File] = []
    for parts, file in find_remote(url):
        if not parts:
            _check_format(file)
            return [file]
        if any(part.startswith(".") or part in SKIPPED_FOLDERS for part in parts):
            continue
        is_card = url.startswith("hf://datasets/") and parts == ("README.md",)
        if not is_card and _has_documents(file, text_field):
            files.append(file)
        else:
            tally.passed_over += 1
    if not files:
        raise InputError(f"{url}: no file of a known format below this folder ({known_suffixes()})")
    return files


def _check_format(file: File) -> None:
    check_suffix(file)
    if format_of(file) in CONLL:
        raise InputError(f"{file}: holds labelled words, expected documents: {known_suffixes()}")


def _has_documents(file: File, text_field: str) -> bool:
    """Say whether a file that was met below a folder is one to read."""
    suffix = format_of(file)
    if suffix in (".csv", ".tsv", ".json"):
        return starts_with_field(file, text_field)
    return suffix in KNOWN and suffix not in CONLL


def _read_all(
    files: list[File], tally: Tally, text_field: str, txt_unit: str, lost: Callable[[BrokenInput], None]
) -> Iterator[RawText]:
    """Read file after file; hand what is broken to `lost`, and go on if it returns."""

    def count(num_bytes: int) -> None:
        tally.stored_bytes += num_bytes

    for file in files:
        try:
            for raw in read_texts(file, text_field, txt_unit, count):
                if isinstance(raw, BrokenInput):
                    lost(raw)
                else:
                    yield raw
        except BrokenInput as error:
            lost(error)


def _checked(raw: RawText, invalid: str) -> tuple[Document, bool]:
    """Decode a text, repair or refuse what is not UTF-8; tell whether there was anything to repair."""
    text = raw.text
    try:
        if isinstance(text, bytes):
            text = text.decode()
        else:
            text.encode()
    except UnicodeError as error:
        if invalid == "refuse":
            raise BrokenInput(f"{_place(raw, error)}: {not_utf8(error)}, or invalid='repair'") from None
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else _repaired(text)
        return Document(text, raw.origin), True
    return Document(text, raw.origin), False


def _repaired(text: str) -> str:
    # Bytes that were not UTF-8 came through the JSON parser as surrogates; they get the usual treatment.
    def decoded(run: re.Match[str]) -> str:
        return run[0].encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    restored = _ESCAPED_BYTES.sub(decoded, text)
    return _SURROGATE.sub("\ufffd", restored)


def _place(raw: RawText, error: UnicodeError) -> str:
    if raw.is_whole_file and isinstance(error, UnicodeDecodeError):
        line = error.object[: error.start].count(b"\n") + 1
        return f"{raw.origin}:{line}"
    return raw.origin
