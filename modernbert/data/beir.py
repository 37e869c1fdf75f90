"""Retrieval collections in BEIR's format: documents, queries and relevance judgments.

A collection is a folder with `corpus.jsonl`, `queries.jsonl`, and `qrels/SPLIT.tsv` or `qrels.tsv`; each file may end
in `.gz` or `.zst`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modernbert.data.labeled_rows import read_rows
from modernbert.data.rows import Row
from modernbert.data.suffixes import COMPRESSIONS
from modernbert.errors import InputError

__all__ = ["Collection", "Rank", "is_collection", "judgments_file", "read_collection", "read_texts"]


@dataclass(frozen=True)
class Collection:
    """Documents and queries by id, and the grades of each query's documents.

    Only queries with a relevant document are kept. `num_unjudged` counts the others; `num_empty` counts documents
    without text, which no query can find.
    """

    name: str
    documents: dict[str, str]
    queries: dict[str, str]
    judgments: dict[str, dict[str, int]]
    num_unjudged: int
    num_empty: int


Rank = Callable[[Collection, int], tuple[np.ndarray, np.ndarray, int]]
"""(collection, k) -> scores and indices of each query's k best documents [Q, k], and the number of truncated texts"""


def read_collection(folder: Path, split: str = "test", usual: str = "test") -> Collection:
    """Read a collection. A document's title is put before its text.

    Args:
        folder: The folder of the collection.
        split: The split of the judgments.
        usual: The split of a folder that has one `qrels.tsv`; see `judgments_file`.

    Raises:
        InputError: An id occurs twice or nowhere, or a grade is not a whole number; names the file and row.
    """
    documents, queries = read_texts(folder)
    judgments: dict[str, dict[str, int]] = {}
    for row in read_rows([str(judgments_file(folder, split, usual))]):
        query, document = str(row.value("query-id")), str(row.value("corpus-id"))
        for key, known in ((query, queries), (document, documents)):
            if key not in known:
                where = "queries.jsonl" if known is queries else "corpus.jsonl"
                raise InputError(f"{row.origin}: found the id {key!r}, which {where} does not have")
        grade = row.number("score")
        if grade != int(grade):
            raise InputError(f"{row.origin}: score is {grade:g}, expected a whole number")
        if judgments.setdefault(query, {}).setdefault(document, int(grade)) != grade:
            raise InputError(f"{row.origin}: {query!r} and {document!r} have two scores, expected one")
    judgments = {query: grades for query, grades in judgments.items() if any(grade > 0 for grade in grades.values())}
    if not judgments:
        raise InputError(f"{folder}: no query of the split {split!r} has a relevant document")
    empty = [key for key, text in documents.items() if not text.strip()]
    return Collection(
        name=folder.resolve().name,
        documents={key: text for key, text in documents.items() if text.strip()},
        queries={key: queries[key] for key in judgments},
        judgments=judgments,
        num_unjudged=len(queries) - len(judgments),
        num_empty=len(empty),
    )


def judgments_file(folder: Path, split: str, usual: str) -> Path:
    """Return the file with the judgments of a split.

    A folder with one `qrels.tsv` has it for the split `test`, and for the `usual` split of the caller.

    Raises:
        InputError: The file does not exist.
    """
    if (folder / "qrels").is_dir():
        return _file(folder, f"qrels/{split}.tsv")
    path = _file(folder, "qrels.tsv")
    if split not in (usual, "test"):
        raise InputError(f"{path}: has one set of judgments, expected the split {split!r}; leave the split out")
    return path


def read_texts(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Read the documents and queries of a folder by id. A document's title is put before its text.

    Raises:
        InputError: An id occurs twice; names the file and row.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, expected one with corpus.jsonl, queries.jsonl and qrels")
    documents: dict[str, str] = {}
    for row in read_rows([str(_file(folder, "corpus.jsonl"))]):
        title, text = (_optional_text(row, name) for name in ("title", "text"))
        _add(documents, row, f"{title}\n{text}" if title and text else title or text)
    queries: dict[str, str] = {}
    for row in read_rows([str(_file(folder, "queries.jsonl"))]):
        _add(queries, row, row.text("text"))
    return documents, queries


def is_collection(folder: Path) -> bool:
    """Return whether a folder has the queries of a collection."""
    return any((folder / f"queries.jsonl{suffix}").exists() for suffix in ("", *COMPRESSIONS))


def _optional_text(row: Row, column: str) -> str:
    """Return a text that may be empty or null; only the column `text` must exist."""
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
        raise InputError(f"{row.origin}: the id {key!r} occurs twice, expected each once")
    known[key] = text


def _file(folder: Path, name: str) -> Path:
    found = [path for suffix in ("", *COMPRESSIONS) if (path := folder / f"{name}{suffix}").exists()]
    if len(found) > 1:
        raise InputError(f"{folder}: found {' and '.join(path.name for path in found)}, expected one of them")
    if found:
        return found[0]
    splits = sorted(path.name.split(".")[0] for path in (folder / "qrels").glob("*.tsv*")) if "qrels/" in name else []
    more = f"; found the splits {', '.join(splits)}" if splits else ""
    raise InputError(f"{folder / name}: no such file, also not with .gz or .zst{more}")
