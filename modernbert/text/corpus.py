"""Documents from files of many formats, one at a time.

In: paths of files and folders, URLs, names of datasets. Out: a stream of `Document`, and a `Tally` of what was met. A
file of its own because what becomes of a text that is broken, empty or there already is decided here and nowhere later.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modernbert.errors import InputError
from modernbert.text.duplicates import SeenTexts
from modernbert.text.faults import BrokenInput
from modernbert.text.formats import KNOWN, File, RawText, format_of, read_texts, require_readers, size_of
from modernbert.text.remote import RemoteFile, dataset_url, find_remote, is_url

__all__ = ["Document", "Tally", "find_files", "read_documents", "stored_bytes"]

SKIPPED_FOLDERS = ("__pycache__", "node_modules")
REASONS_KEPT = 5

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
    skipped: int = 0
    """Broken rows, and broken files or what was left of them, left out on request."""
    skipped_reasons: list[str] = field(default_factory=list)
    """What was wrong with the first of them."""
    duplicates: int = 0
    """Documents left out on request, because the same text came before."""

    def skip(self, broken: BrokenInput) -> None:
        """Count something broken that is left out."""
        self.skipped += 1
        if len(self.skipped_reasons) < REASONS_KEPT:
            self.skipped_reasons.append(str(broken))


def read_documents(
    sources: Sequence[File | str],
    tally: Tally,
    *,
    text_field: str = "text",
    txt_unit: str = "file",
    invalid: str = "repair",
    on_error: str = "refuse",
    deduplicate: bool = False,
    empty_ok: bool = False,
) -> Iterator[Document]:
    """Read the documents of all sources, in a fixed order, and count them in `tally`.

    `.txt`, `.md` and `.rst` give one document a file, line or paragraph (`txt_unit`), source code one a file, `.jsonl`
    and `.parquet` one a row from `text_field`; each may end in `.gz` or `.zst`. Documents of white space alone are
    counted and left out. Bytes that are not UTF-8 and lone surrogates become U+FFFD (`invalid="repair"`), or are an
    error (`"refuse"`). With `deduplicate`, only the first of the documents with the same text stays; that takes 16
    bytes of memory a document.

    What is broken is an error (`on_error="refuse"`), or is counted and left out (`"skip"`): a row, or a damaged file
    from the place of the damage on. A network that fails is an error either way, since what it lacks today it may give
    tomorrow.

    Raises: BrokenInput naming the file, and the line where there is one, at the first thing that cannot be read;
    InputError at once if a source is absent or has no known format, and at the end if there was no text, unless
    `empty_ok`.
    """
    for name, found, known in (
        ("txt_unit", txt_unit, ("file", "line", "paragraph")),
        ("invalid", invalid, ("repair", "refuse")),
        ("on_error", on_error, ("refuse", "skip")),
    ):
        if found not in known:
            raise InputError(f"{name}: found {found!r}, expected {', '.join(map(repr, known[:-1]))} or {known[-1]!r}")
    lost = tally.skip if on_error == "skip" else _refuse
    files = find_files(sources, tally, on_error=on_error, empty_ok=empty_ok)
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
    sources: Sequence[File | str], tally: Tally | None = None, *, on_error: str = "refuse", empty_ok: bool = False
) -> list[File]:
    """List the files to read: those given, and those of known formats below the folders given, sorted by name.

    A source is a path, a URL that fsspec knows (a folder's, a file's, or one with `*`), or `owner/name@revision` of a
    dataset on the Hugging Face Hub, of which the card is passed over. So are hidden files and folders, `__pycache__`
    and `node_modules`, and files of unknown formats and links to folders, which are counted in `tally`.

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
            files += _below_url(source, tally)
        elif isinstance(source, str) and format_of(Path(source)) not in KNOWN and (url := dataset_url(source)):
            files += _below_url(url, tally)
        else:
            files += _below_path(Path(source), tally, tally.skip if on_error == "skip" else _refuse, empty_ok)
    require_readers(files)
    return files


def stored_bytes(sources: Sequence[File | str]) -> int:
    """Return the bytes on disk of all files that would be read: what `Tally.stored_bytes` will come to."""
    return sum(map(size_of, find_files(sources)))


def _refuse(broken: BrokenInput) -> None:
    raise broken


def _below_path(path: Path, tally: Tally, lost: Callable[[BrokenInput], None], empty_ok: bool) -> list[File]:
    if path.is_dir():
        found = list(_walk(path, tally, lost))
        if not found and not empty_ok:
            raise InputError(f"{path}: no file of a known format below this folder ({_known()})")
        return found
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    _check_format(path)
    if not path.is_file():
        raise InputError(f"{path}: is neither a file nor a folder")
    return [path]


def _walk(folder: Path, tally: Tally, lost: Callable[[BrokenInput], None]) -> Iterator[File]:
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
                yield from _walk(entry, tally, lost)
        elif entry.is_file() and format_of(entry) in KNOWN:
            yield entry
        else:
            tally.passed_over += 1


def _below_url(url: str, tally: Tally) -> list[File]:
    files: list[File] = []
    for parts, file in find_remote(url):
        if not parts:
            _check_format(file)
        if any(part.startswith(".") or part in SKIPPED_FOLDERS for part in parts):
            continue
        is_card = url.startswith("hf://datasets/") and parts == ("README.md",)
        if format_of(file) in KNOWN and not is_card:
            files.append(file)
        else:
            tally.passed_over += 1
    if not files:
        raise InputError(f"{url}: no file of a known format below this folder ({_known()})")
    return files


def _check_format(file: File) -> None:
    if format_of(file) not in KNOWN:
        raise InputError(f"{file}: unknown format {format_of(file)!r}, expected {_known()}")


def _known() -> str:
    return f"{' '.join(KNOWN[:8])} or other source code, also as .gz or .zst"


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
            raise BrokenInput(f"{_place(raw, error)}: {_what(error)}, expected UTF-8, or invalid='repair'") from None
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


def _what(error: UnicodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"found byte 0x{error.object[error.start]:02x}"
    if isinstance(error, UnicodeEncodeError):
        code = ord(error.object[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            return f"found byte 0x{code - 0xDC00:02x}"
        return f"found the lone surrogate U+{code:04X}"
    return f"found {error}"
