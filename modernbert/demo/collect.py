"""Collect text from the standard library and the installed packages of the running interpreter.

Writes `code.jsonl` (Python files), `prose.jsonl` (docstrings, comments, descriptions, documents) and `heldout.jsonl`
(both, from packages that are in neither of the others). Until the budget is full, the next file is taken from the
package with the fewest bytes so far, so that no package dominates.
"""

import hashlib
import heapq
import json
import os
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from modernbert.data.labeled_rows import read_rows
from modernbert.demo.extract import (
    Definition,
    definitions,
    describe,
    functions,
    paragraphs,
    parse,
    prose_of_module,
    reads_like_english,
    topics,
)
from modernbert.errors import InputError
from modernbert.files import write_file

__all__ = ["Collected", "Record", "collect", "is_heldout", "library_roots", "read_records"]

HELDOUT_SHARE = 10  # one package in ten
MIN_CHARS = 200
MAX_BYTES = 400_000  # longer files are tables
MAX_LINE = 1_000  # longer lines are data or minified
SKIPPED_FOLDERS = {"__pycache__", "site-packages", "dist-packages", "node_modules", "lib-dynload"}
GENERATED = re.compile(
    r"generated (by|from|automatically)|(auto|automatically)[ -]?generated|do not edit", re.IGNORECASE
)
LICENSE_NAMES = ("license", "licence", "copying", "notice", "authors")


@dataclass(frozen=True)
class Record:
    """A document, its path in the library folder, and its top-level package."""

    text: str
    origin: str
    package: str


@dataclass(frozen=True)
class Collected:
    """The three files, the sizes of their contents, and the number of files skipped for each reason."""

    code: Path
    prose: Path
    heldout: Path
    num_bytes: dict[str, int]
    num_documents: dict[str, int]
    num_packages: int
    heldout_packages: list[str]
    skipped: dict[str, int]


@dataclass(frozen=True)
class _Source:
    path: Path
    origin: str
    package: str


@dataclass(frozen=True)
class _Taken:
    record: Record
    functions: frozenset[str]


@dataclass
class _Corpus:
    """The records so far, with hashes of texts, paragraphs and functions to detect copies."""

    code: list[_Taken] = field(default_factory=list)
    prose: list[_Taken] = field(default_factory=list)
    texts: set[str] = field(default_factory=set)
    paragraphs: set[str] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)


def collect(
    folder: Path,
    *,
    budget_mb: float,
    seed: int,
    roots: Sequence[Path] | None = None,
) -> Collected:
    """Write `code.jsonl`, `prose.jsonl` and `heldout.jsonl` into `folder`, about `budget_mb` million bytes in all.

    The same files, budget and seed give the same bytes. Links are not followed.

    Args:
        folder: The folder of the three files.
        budget_mb: Size of all text, in millions of bytes.
        seed: Seed of the order of the files.
        roots: Folders to read; default: the library folders of the interpreter.

    Raises:
        InputError: There is no text, or the folder cannot be written.
    """
    corpus = _Corpus()
    roots = library_roots() if roots is None else roots
    packages = _packages(roots, seed)
    budget = int(budget_mb * 1_000_000)
    total = 0
    queue = [(0, _sha(f"{seed} {package}"), package) for package in packages]
    heapq.heapify(queue)
    while queue and total < budget:
        taken, tie, package = heapq.heappop(queue)
        if not packages[package]:
            continue
        gain = _take(packages[package].pop(), corpus)
        total += gain
        heapq.heappush(queue, (taken + gain, tie, package))
    if not corpus.code:
        raise InputError(f"no Python source found under {', '.join(map(str, roots))}")
    return _write(folder, corpus)


def read_records(path: Path) -> list[Record]:
    """Read a file that `collect` wrote.

    Raises:
        InputError: The file is missing, or a line is not a record.
    """
    rows = [] if path.exists() and not path.stat().st_size else read_rows([str(path)])
    return [Record(*(row.text(name) for name in ("text", "origin", "package"))) for row in rows]


def library_roots() -> list[Path]:
    """Return the library folders of the running interpreter: the standard library, then the installed packages."""
    paths = sysconfig.get_paths()
    found = [Path(paths[name]).resolve() for name in ("stdlib", "purelib", "platlib") if name in paths]
    return [root for root in dict.fromkeys(found) if root.is_dir()]


def is_heldout(package: str) -> bool:
    """Return whether a package is held out; `_json` and `json` are together."""
    return int(_sha(package.lstrip("_").lower())[:8], 16) % HELDOUT_SHARE == 0


def _packages(roots: Sequence[Path], seed: int) -> dict[str, list[_Source]]:
    """Return the files of each top-level package, the first one last: documents, then modules, then tests."""

    def order(source: _Source) -> tuple[bool, bool, str]:
        tests = any(part in ("test", "tests", "testing", "idle_test") for part in source.origin.split("/")[1:])
        return tests, source.origin.endswith(".py"), _sha(f"{seed} {source.origin}")

    packages: dict[str, list[_Source]] = {}
    for root in roots:
        for path in _files(root):
            origin = path.relative_to(root).as_posix()
            package = _package(root, origin)
            packages.setdefault(package, []).append(_Source(path, origin, package))
    for sources in packages.values():
        sources.sort(key=order, reverse=True)
    return packages


def _files(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.is_symlink():
            continue
        if entry.is_dir():
            if entry.name not in SKIPPED_FOLDERS and not entry.name.startswith("."):
                yield from _files(Path(entry.path))
        elif entry.name == "METADATA" or entry.name.lower().startswith(LICENSE_NAMES):
            yield Path(entry.path)
        elif entry.name.endswith((".py", ".rst", ".md", ".txt")):
            yield Path(entry.path)


def _package(root: Path, origin: str) -> str:
    top = origin.split("/")[0]
    if not top.endswith((".dist-info", ".egg-info")):
        return top.removesuffix(".py")
    named = root / top / "top_level.txt"
    try:
        lines = named.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        lines = []
    public = [line for line in lines if not line.startswith("_")]
    return (public or lines or [top.split("-")[0].lower()])[0]


def _take(source: _Source, corpus: _Corpus) -> int:
    """Add the text of a file; return its bytes, 0 if the file is skipped."""
    try:
        if source.path.stat().st_size > MAX_BYTES and not source.origin.startswith("pydoc_data/"):
            return _skip(corpus, "too large")
        text = source.path.read_bytes().decode("utf-8")
    except OSError:
        return _skip(corpus, "unreadable")
    except UnicodeDecodeError:
        return _skip(corpus, "not UTF-8")
    text = text.replace("\r\n", "\n")
    if source.origin.endswith(".py"):
        return _take_module(source, text, corpus)
    if source.path.name == "METADATA":
        text = describe(text)
    elif max(map(len, text.split("\n"))) > MAX_LINE and not source.origin.endswith(".md"):
        return _skip(corpus, "data-like")
    return _take_prose(source.origin, source.package, paragraphs(text), corpus)


def _take_module(source: _Source, text: str, corpus: _Corpus) -> int:
    tree = parse(text)
    if tree is None:
        return _skip(corpus, "does not parse")
    if source.origin == "pydoc_data/topics.py":
        found = topics(tree)
        return sum(
            _take_prose(f"{source.origin}#{name}", source.package, paragraphs(topic), corpus) for name, topic in found
        )
    defined = definitions(tree)
    reason = _reason_to_skip(text, defined)
    if reason is None and _sha(text) in corpus.texts:
        reason = "duplicate"
    if reason is not None:
        return _skip(corpus, reason)
    copies = frozenset(_sha(function) for function in functions(defined, text))
    corpus.texts.add(_sha(text))
    corpus.code.append(_Taken(Record(text, source.origin, source.package), copies))
    gain = len(text.encode())
    return gain + _take_prose(
        f"{source.origin}#prose", source.package, prose_of_module([tree, *defined], text), corpus, copies
    )


def _take_prose(
    origin: str, package: str, found: Iterable[str], corpus: _Corpus, copies: frozenset[str] = frozenset()
) -> int:
    """Add the paragraphs that are new: licenses and copied docstrings appear once."""
    kept = []
    for paragraph in dict.fromkeys(found):
        digest = _sha(" ".join(paragraph.split()))
        long = len(paragraph) > 80
        if long and digest in corpus.paragraphs:
            continue
        if long:
            corpus.paragraphs.add(digest)
        kept.append(paragraph)
    # An escape in a docstring can be an unpaired surrogate, which UTF-8 cannot encode.
    text = "\n\n".join(kept).encode("utf-8", "replace").decode()
    if len(text) < MIN_CHARS or not reads_like_english(text):
        return _skip(corpus, "not prose")
    corpus.prose.append(_Taken(Record(text, origin, package), copies))
    return len(text.encode())


def _reason_to_skip(text: str, defined: list[Definition]) -> str | None:
    if len(text) < MIN_CHARS:
        return "too short"
    if GENERATED.search(text[:1_500]):
        return "generated"
    digits = sum(map(text.count, "0123456789"))
    if digits > 0.15 * len(text) or max(map(len, text.split("\n"))) > MAX_LINE:
        return "data-like"
    return None if defined else "no definitions"


def _write(folder: Path, corpus: _Corpus) -> Collected:
    """Write the three files; a held-out file that shares a function with the training text is dropped."""
    trained: set[str] = set()
    trained.update(*(taken.functions for taken in corpus.code if not is_heldout(taken.record.package)))
    kept: dict[str, list[Record]] = {"code": [], "prose": [], "heldout": []}
    for name, every in (("code", corpus.code), ("prose", corpus.prose)):
        for taken in every:
            if not is_heldout(taken.record.package):
                kept[name].append(taken.record)
            elif taken.functions & trained:
                corpus.skipped["held-out copy of training text"] += 1
            else:
                kept["heldout"].append(taken.record)
    for name, records in kept.items():
        ordered = sorted(records, key=lambda record: record.origin)
        lines = [json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in ordered]
        write_file(folder / f"{name}.jsonl", "".join(lines))
    packages = {record.package for records in kept.values() for record in records}
    return Collected(
        **{name: folder / f"{name}.jsonl" for name in kept},
        num_bytes={name: sum(len(record.text.encode()) for record in records) for name, records in kept.items()},
        num_documents={name: len(records) for name, records in kept.items()},
        num_packages=len(packages),
        heldout_packages=sorted(filter(is_heldout, packages)),
        skipped=dict(sorted(corpus.skipped.items())),
    )


def _skip(corpus: _Corpus, reason: str) -> int:
    corpus.skipped[reason] += 1
    return 0


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
