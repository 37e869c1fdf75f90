"""A LanceDB table of document vectors on disk, one for each text or for each token, with exact search.

An unfinished table is continued after its last block.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from modernbert.errors import InputError
from modernbert.extras import require
from modernbert.inference.exact_search import Found

__all__ = ["EmbeddingTable", "about_of", "connect", "open_table", "translate_lance_errors", "vector_type"]

_TABLE, _ABOUT = "vectors", b"modernbert"
# Tables of earlier versions lack these keys.
_OPTIONAL_KEYS = ("dtype",)


class EmbeddingTable:
    """A table of vectors of length 1, numbered in the order in which they were added."""

    def __init__(self, folder: Path, about: Mapping[str, Any], width: int, late: bool) -> None:
        """Open the table in a folder, or make one; `about` describes the source of its vectors, as JSON.

        Raises:
            InputError: LanceDB is not installed, or the folder has a table of another source, or something else.
        """
        database = connect(folder)
        import pyarrow

        self.folder, self.late = folder, late
        self._schema = pyarrow.schema([
            ("number", pyarrow.int64()), ("vector", vector_type(width, late)),
            # How many documents of a block were cut; stored with its first row.
            ("num_truncated", pyarrow.int64()),
        ])  # fmt: skip
        self._table = open_table(folder, database, _TABLE, self._schema, about)
        there, found = self._table.schema, about_of(self._table)
        for key, value in about.items():
            if found.get(key, value if key in _OPTIONAL_KEYS else None) != value:
                raise InputError(f"{folder}: was made with other {key}; choose another folder, or delete this one")
        if there.field("vector").type != self._schema.field("vector").type:
            raise InputError(f"{folder}: holds vectors of another width or kind")

    def __len__(self) -> int:
        """Return the number of documents."""
        return self._table.count_rows()

    @property
    def num_truncated(self) -> int:
        """How many documents were cut."""
        column = self._table.search().select(["num_truncated"]).limit(len(self)).to_arrow()["num_truncated"]
        return int(np.sum(column.to_numpy()))

    def add(self, vectors: np.ndarray | Sequence[np.ndarray], num_truncated: int = 0) -> None:
        """Append the vectors of documents, all or none: [N, E], or [its tokens, E] each.

        `num_truncated` of the documents were cut.

        Raises:
            InputError: They cannot be written.
        """
        import pyarrow

        width = self._schema.field("vector").type.value_type.list_size if self.late else vectors[0].shape[-1]
        flat = np.concatenate(vectors) if self.late else np.asarray(vectors)
        column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat.ravel()), width)
        if self.late:
            offsets = np.cumsum([0, *map(len, vectors)], dtype=np.int32)
            column = pyarrow.ListArray.from_arrays(pyarrow.array(offsets), column)
        first = len(self)
        numbers = pyarrow.array(np.arange(first, first + len(column), dtype=np.int64))
        cut = pyarrow.array(np.array([num_truncated] + [0] * (len(column) - 1), np.int64))
        with translate_lance_errors(self.folder):
            self._table.add(pyarrow.Table.from_arrays([numbers, column, cut], schema=self._schema))

    def search(self, queries: np.ndarray | Sequence[np.ndarray], k: int) -> Found:
        """Return the scores and numbers of the `k` documents nearest to each query; see `search_vectors`.

        Raises:
            InputError: The table is empty.
        """
        if k < 1 or not len(self):
            raise InputError(f"{self.folder}: found {len(self)} documents, k of {k}; expected at least 1")
        rows = min(k, len(self))
        scores = np.zeros((len(queries), rows), np.float32)
        numbers = np.zeros((len(queries), rows), np.int64)
        for place, query in enumerate(queries):
            # A distance is 1 minus the product; with late interaction, that is summed over the query's tokens.
            asked: Any = self._table.search(query, vector_column_name="vector")
            found = asked.distance_type("cosine" if self.late else "dot").limit(rows).to_arrow()
            scores[place] = (len(query) if self.late else 1) - found["_distance"].to_numpy()
            numbers[place] = found["number"].to_numpy()
        return scores, numbers


def connect(folder: Path) -> Any:
    """Open a folder as a LanceDB database, or make one.

    Raises:
        InputError: LanceDB is not installed, or cannot use the folder.
    """
    require(str(folder), "lancedb", "pyarrow", extra="index")
    import lancedb

    with translate_lance_errors(folder):
        return lancedb.connect(folder)


def vector_type(width: int, late: bool) -> Any:
    """Return pyarrow's type of a row's vector, or of its vectors."""
    import pyarrow

    vector = pyarrow.list_(pyarrow.float32(), width)
    return pyarrow.list_(vector) if late else vector


def open_table(folder: Path, database: Any, name: str, schema: Any, about: Mapping[str, Any]) -> Any:
    """Open a table, or make one with `about` in its metadata, as JSON.

    Raises:
        InputError: LanceDB reports an error.
    """
    with translate_lance_errors(folder):
        if name in database.list_tables().tables:
            return database.open_table(name)
        return database.create_table(name, schema=schema.with_metadata({_ABOUT: json.dumps(about).encode()}))


def about_of(table: Any) -> dict[str, Any]:
    """Return the description that a table was made with."""
    found: dict[str, Any] = json.loads((table.schema.metadata or {}).get(_ABOUT, b"{}"))
    return found


@contextmanager
def translate_lance_errors(folder: Path) -> Iterator[None]:
    """Raise errors of LanceDB as an InputError with their first line."""
    try:
        yield
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        first = (str(error).splitlines() or ["?"])[0]
        raise InputError(f"{folder}: cannot be used as an index ({first})") from None
