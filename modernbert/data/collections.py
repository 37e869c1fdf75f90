"""A retrieval collection as BEIR lays it out: documents, queries, judgments.

In: a folder with `corpus.jsonl`, `queries.jsonl`, and `qrels/SPLIT.tsv` or `qrels.tsv`, each also as `.gz`. Out: a
`Collection` whose ids fit together.
"""

from dataclasses import dataclass
from pathlib import Path

from modernbert.data.labeled_rows import Row, read_rows
from modernbert.errors import InputError

__all__ = ["Collection", "is_collection", "judgments_file", "read_collection", "read_texts"]


_PACKED = ("", ".gz", ".zst")


@dataclass(frozen=True)
class Collection:
    """Hold documents and queries by id, and for each query the grades of its documents.

    Only queries with a relevant document are kept; `num_unjudged` counts the others, `num_empty` documents without
    text, which nothing can find.
    """

    name: str
    documents: dict[str, str]
    queries: dict[str, str]
    judgments: dict[str, dict[str, int]]
    num_unjudged: int
    num_empty: int


def read_collection(folder: Path, split: str = "test", usual: str = "test") -> Collection:
    """Read a collection; a document's title stands before its text. For `split` and `usual` see `judgments_file`.

    Raises: InputError naming the file and row, for an id that is there twice or nowhere, or a grade that is no number.
    """
    documents, queries = read_texts(folder)
    judgments: dict[str, dict[str, int]] = {}
    for row in read_rows([str(judgments_file(folder, split, usual))]):
        query, document = str(row.value("query-id")), str(row.value("corpus-id"))
        for key, known in ((query, queries), (document, documents)):
            if key not in known:
                where = "queries.jsonl" if known is queries else "corpus.jsonl"
                raise InputError(f"{row.origin}: found the id {key!r}, which {where} has not")
        grade = row.number("score")
        if grade != int(grade):
            raise InputError(f"{row.origin}: score is {grade:g}, expected a whole number")
        if judgments.setdefault(query, {}).setdefault(document, int(grade)) != grade:
            raise InputError(f"{row.origin}: {query!r} and {document!r} are judged before, expected one score")
    judgments = {query: grades for query, grades in judgments.items() if any(grade > 0 for grade in grades.values())}
    if not judgments:
        raise InputError(f"{folder}: no query of the split {split!r} has a relevant document")
    empty = [key for key, text in documents.items() if not text.strip()]
    return Collection(
        name=folder.resolve().name,  # of `.` too
        documents={key: text for key, text in documents.items() if text.strip()},
        queries={key: queries[key] for key in judgments},
        judgments=judgments,
        num_unjudged=len(queries) - len(judgments),
        num_empty=len(empty),
    )


def judgments_file(folder: Path, split: str, usual: str) -> Path:
    """Return the file of a split's judgments.

    A folder with one `qrels.tsv` for all has them for the test, and for whoever asks for no split but the `usual` one.

    Raises: InputError if it is not there.
    """
    if (folder / "qrels").is_dir():
        return _file(folder, f"qrels/{split}.tsv")
    path = _file(folder, "qrels.tsv")
    if split not in (usual, "test"):
        raise InputError(f"{path}: has one set of judgments, of no split {split!r}; leave the name of the split out")
    return path


def read_texts(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Read documents and queries of a folder by id; a document's title stands before its text.

    Raises: InputError naming the file and row, for an id that is there twice.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, expected one with corpus.jsonl, queries.jsonl and qrels")
    documents: dict[str, str] = {}
    for row in read_rows([str(_file(folder, "corpus.jsonl"))]):
        title, text = (_string(row, name) for name in ("title", "text"))
        _add(documents, row, f"{title}\n{text}" if title and text else title or text)
    queries: dict[str, str] = {}
    for row in read_rows([str(_file(folder, "queries.jsonl"))]):
        _add(queries, row, row.text("text"))
    return documents, queries


def _string(row: Row, column: str) -> str:
    """Return a value that is text, or is not there; a document has a text, if only an empty one."""
    found = row.value(column) if column == "text" else row.values.get(column)
    if found is not None and not isinstance(found, str):
        raise InputError(f"{row.origin}: {column} is {type(found).__name__}, expected text")
    row.check_whole(column, found or "")
    return found or ""


def _add(known: dict[str, str], row: Row, text: str) -> None:
    found = row.value("_id")
    if not isinstance(found, (str, int)) or found == "":
        raise InputError(f"{row.origin}: _id is {found!r}, expected an id")
    key = str(found)
    row.check_whole("_id", key)
    if key in known:
        raise InputError(f"{row.origin}: the id {key!r} is there already, expected each once")
    known[key] = text


def is_collection(folder: Path) -> bool:
    """Say whether a folder is one of a collection, by its queries."""
    return any((folder / f"queries.jsonl{packed}").exists() for packed in _PACKED)


def _file(folder: Path, name: str) -> Path:
    there = [path for packed in _PACKED if (path := folder / f"{name}{packed}").exists()]
    if len(there) > 1:
        raise InputError(f"{folder}: found {' and '.join(path.name for path in there)}, expected one of them")
    if there:
        return there[0]
    found = sorted(path.name.split(".")[0] for path in (folder / "qrels").glob("*.tsv*")) if "qrels/" in name else []
    more = f"; found the splits {', '.join(found)}" if found else ""
    raise InputError(f"{folder / name}: no such file, bare or with .gz or .zst{more}")
