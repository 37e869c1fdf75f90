"""The suffixes of the files that commands read, and the error for a file with another suffix."""

from pathlib import Path

from modernbert.data.remote_files import RemoteFile
from modernbert.errors import InputError

__all__ = [
    "CODE",
    "COMPRESSIONS",
    "CONLL",
    "KNOWN",
    "PROSE",
    "ROWS",
    "check_suffix",
    "format_of",
    "known_suffixes",
    "unknown_suffix",
]

PROSE = (".txt", ".md", ".rst")
# Files with named fields. A .json file has one array of objects or strings.
ROWS = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".ndjson")
CONLL = (".conll", ".conllu", ".iob", ".iob2", ".bio")
CODE = tuple(
    ".py .pyi .pyx .ipynb .c .h .cc .cpp .cxx .hh .hpp .cu .cuh .java .kt .scala .js .jsx .mjs .ts .tsx .go .rs .rb"
    " .php .cs .swift .lua .r .jl .pl .hs .ml .ex .exs .erl .clj .sh .bash .ps1 .sql .html .htm .css .scss .xml .yaml"
    " .yml .toml .ini .cfg .cmake .proto .tex .vue".split()
)
KNOWN = (*PROSE, *ROWS, *CONLL, *CODE)
COMPRESSIONS = (".gz", ".zst")


def format_of(file: Path | RemoteFile) -> str:
    """Return the lowercase suffix that names the format, without the suffix of the compression.

    >>> format_of(Path("a/texts.JSONL.gz"))
    '.jsonl'
    """
    name = file.name.lower()
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    return Path(name).suffix


def check_suffix(file: Path | RemoteFile, *, bare_ok: bool = True) -> None:
    """Check that a file has a known suffix; with `bare_ok` it may have none and is plain text.

    Raises:
        InputError: It has another suffix; names the known ones.
    """
    suffix = format_of(file)
    if suffix not in KNOWN and (suffix or not bare_ok):
        raise unknown_suffix(file)


def unknown_suffix(file: Path | RemoteFile) -> InputError:
    """Return the error for a file with an unknown suffix."""
    return InputError(f"{file}: unknown format {format_of(file)!r}, expected {known_suffixes()}")


def known_suffixes() -> str:
    """Return the known suffixes as one line for errors."""
    return f"{', '.join((*PROSE, *ROWS, *CONLL))} or source code (.py, .c, .js, ...), also with .gz or .zst"
