"""A searchable index of files: passages, their vectors and a full-text index, in a LanceDB table.

Indexing again updates it. A hybrid search fuses the rankings by vectors and by words.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from modernbert.batch import batch_by_size
from modernbert.data.corpus import Document
from modernbert.errors import InputError
from modernbert.files import check_writable
from modernbert.inference.modernbert import ModernBert
from modernbert.model.embedding_config import EmbeddingConfig
from modernbert.search.embedding_table import about_of, connect, open_table, translate_lance_errors, vector_type
from modernbert.search.passages import Passage, longest_passage, passages_of

__all__ = ["HOW", "PassageIndex", "SearchResult", "SyncStats"]

HOW = ("hybrid", "vectors", "words")
_TABLE = "passages"
_PASSAGE_TOKENS = 256
# Characters of passages that are embedded and written at a time.
_BLOCK_CHARACTERS = 2**20
# Results of each ranking that are fused, and that are reranked.
_DEPTH = 50
# The constant of reciprocal rank fusion. Source: Cormack et al. 2009.
_FUSION = 60


@dataclass(frozen=True)
class SearchResult:
    """A passage that was found: its score, its file or row, its first line, its text."""

    score: float
    origin: str
    line: int
    text: str


@dataclass
class SyncStats:
    """What indexing changed: documents new or changed, documents kept, documents removed."""

    added: int = 0
    kept: int = 0
    removed: int = 0
    passages: int = 0
    cut: int = 0
    """Passages that were too long for the model."""


class PassageIndex:
    """Passages of documents, with search by vectors, by words, or by both."""

    def __init__(self, folder: Path, table: Any) -> None:
        self.folder, self._table = folder, table

    @staticmethod
    def open(folder: Path) -> "PassageIndex":
        """Open an existing index.

        Raises:
            InputError: There is none, or LanceDB is not installed.
        """
        with translate_lance_errors(folder):
            database = connect(folder) if folder.is_dir() else None
            if database is None or _TABLE not in database.list_tables().tables:
                raise InputError(f"{folder}: is not an index, expected a folder made by `modernbert index`")
            return PassageIndex(folder, database.open_table(_TABLE))

    @staticmethod
    def begin(
        folder: Path, bert: ModernBert, model: str, files: str, passage_tokens: int | None = None
    ) -> "PassageIndex":
        """Open the index in a folder, or make one.

        Args:
            folder: The folder of the index.
            bert: The model that embeds passages.
            model: The folder or name that the model is loaded from.
            files: The digest of the model's files.
            passage_tokens: The most tokens of a passage, if the model's documents may have as many; by default as in
                the existing index, or 256.

        Raises:
            InputError: The index has another model or other settings, or too few tokens are left for a passage.
        """
        import pyarrow

        if passage_tokens is None:
            passage_tokens = (
                PassageIndex.open(folder).about["passage_tokens"] if PassageIndex.is_in(folder) else _PASSAGE_TOKENS
            )
        longest = longest_passage(passage_tokens, bert.document_template, bert.tokenizer)
        about = {"model": model, "model_files": files, "vectors": asdict(bert.vectors), "passage_tokens": longest}
        fields = [
            ("origin", pyarrow.string()), ("digest", pyarrow.string()), ("line", pyarrow.int64()),
            ("text", pyarrow.string()), ("vector", vector_type(bert.vector_width, bert.is_late)),
        ]  # fmt: skip
        PassageIndex.check_folder(folder)
        index = PassageIndex(folder, open_table(folder, connect(folder), _TABLE, pyarrow.schema(fields), about))
        index.check({key: value for key, value in about.items() if key != "model"})
        return index

    @staticmethod
    def check_folder(folder: Path) -> None:
        """Check that a folder is an index, or can become one.

        Raises:
            InputError: It is a file, has other files, or cannot be written.
        """
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: is a file, expected a new folder or an index")
        if folder.is_dir() and any(folder.iterdir()) and not PassageIndex.is_in(folder):
            raise InputError(f"{folder}: exists and is not an index, expected a new folder or an index")
        check_writable(folder)

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Return whether a folder has an index."""
        return (folder / f"{_TABLE}.lance").exists()

    def check(self, about: Mapping[str, Any]) -> None:
        """Compare settings with the settings of the index.

        Raises:
            InputError: A setting differs; names it.
        """
        known = self.about
        if "model_files" not in known:
            raise InputError(f"{self.folder}: was made by an earlier version; make a new index in another folder")
        for key, value in about.items():
            if known.get(key) != value and key == "model_files":
                raise InputError(
                    f"{self.folder}: was made with another model ({known['model']}, as it was then); make a new "
                    "index in another folder: modernbert index MODEL --input FILES --output FOLDER"
                )
            if known.get(key) != value:
                raise InputError(f"{self.folder}: was made with {key}={known.get(key)!r}, found {value!r}")

    @property
    def about(self) -> dict[str, Any]:
        """The settings that the index was made with."""
        about = about_of(self._table)
        # Settings added since the index was created have their defaults.
        return about | {"vectors": asdict(EmbeddingConfig()) | about.get("vectors", {})}

    def __len__(self) -> int:
        """Return the number of passages."""
        return self._table.count_rows()

    def update(
        self, bert: ModernBert, documents: Iterable[Document], is_whole: Callable[[], bool] = lambda: True
    ) -> SyncStats:
        """Embed new and changed documents, and remove missing ones.

        An interrupted update is continued by the next one. Of documents with the same origin, the first counts.
        `is_whole` is called at the end; unless it returns True, no document is removed.

        Raises:
            InputError: The table cannot be written.
        """
        with translate_lance_errors(self.folder):
            rows = self._table.search().select(["origin", "digest"]).limit(max(1, len(self))).to_arrow()
            known = dict(zip(rows["origin"].to_pylist(), rows["digest"].to_pylist(), strict=True))
            update = SyncStats()
            for block in batch_by_size(self._changed(bert, documents, known, update), _BLOCK_CHARACTERS, _size):
                update.cut += self._replace(bert, block)
            gone = [origin for origin, digest in known.items() if digest is not None] if is_whole() else []
            self._delete(gone)
            update.removed, update.passages = len(gone), len(self)
            if update.passages and (update.added or update.removed or not self._has_words()):
                self._index_words()
            return update

    def search(
        self, bert: ModernBert | None, query: str, k: int, how: str = "hybrid", reranker: ModernBert | None = None
    ) -> list[SearchResult]:
        """Return the `k` passages that answer a query best.

        `vectors` compares embeddings, `words` is full-text search (BM25) without a model, `hybrid` fuses both rankings.
        `reranker` ranks the best passages again, see `ModernBert.rerank`.

        Raises:
            InputError: `how` is unknown, or the index is empty or has no full-text index.
        """
        if how not in HOW:
            raise InputError(f"how: found {how!r}, expected {', '.join(HOW)}")
        if not query.strip():
            raise InputError("query: found no word, expected at least one")
        if k < 1:
            raise InputError(f"k: found {k}, expected at least 1")
        if not len(self):
            raise InputError(f"{self.folder}: found 0 passages, expected at least 1")
        depth = max(k, _DEPTH)
        if how != "vectors" and self._words() is None:
            raise InputError(
                f"{self.folder}: has no full-text index, because indexing was stopped; run `modernbert index` again"
            )
        with translate_lance_errors(self.folder):
            found = self._rank(bert, query, depth, how)
        if reranker is not None and found:
            ranked = reranker.rerank(query, [hit.text for hit in found[:depth]], overflow="truncate")
            found = [replace(found[each.index], score=each.score) for each in ranked]
        return found[:k]

    def _rank(self, bert: ModernBert | None, query: str, depth: int, how: str) -> list[SearchResult]:
        from lancedb.query import MatchQuery
        from lancedb.rerankers import RRFReranker

        # A plain string is parsed for quotes, as a phrase query, which this full-text index does not support.
        words = MatchQuery(query, "text")  # type: ignore[call-arg]
        if how == "words":
            rows = self._table.search(words, query_type="fts").limit(depth).to_list()
            return [_result(row, row["_score"]) for row in rows]
        assert bert is not None, "only a search by words needs no model"
        (vector,) = bert.embed_queries([query]).vectors
        asked: Any
        if how == "vectors":
            asked = self._table.search(vector, vector_column_name="vector")
            whole = len(vector) if bert.is_late else 1
            rows = asked.distance_type("cosine").limit(depth).to_list()
            return [_result(row, whole - row["_distance"]) for row in rows]
        asked = self._table.search(query_type="hybrid", vector_column_name="vector").vector(vector).text(words)
        rows = asked.distance_type("cosine").rerank(RRFReranker(_FUSION)).limit(depth).to_list()
        return [_result(row, row["_relevance_score"]) for row in rows]

    def _changed(
        self, bert: ModernBert, documents: Iterable[Document], known: dict[str, str | None], update: SyncStats
    ) -> Iterator[tuple[Document, str, list[Passage]]]:
        """Yield new and changed documents; a document that was seen has None in `known` from then on."""
        longest = int(self.about["passage_tokens"])
        for document in map(_writable, documents):
            digest = sha256(document.text.encode()).hexdigest()
            before = known.get(document.origin, "")
            known[document.origin] = None
            if before == digest:
                update.kept += 1
            elif before is not None:
                update.added += 1
                # Parts of one line may have the same text: keep one, or each would be a result.
                yield document, digest, list(dict.fromkeys(passages_of(document.text, bert.tokenizer, longest)))

    def _replace(self, bert: ModernBert, block: Sequence[tuple[Document, str, list[Passage]]]) -> int:
        """Embed the passages of documents, replace those in the table, and return how many were cut."""
        import pyarrow

        rows = [(document.origin, digest, each) for document, digest, passages in block for each in passages]
        self._delete([document.origin for document, _, _ in block])
        if not rows:
            return 0
        embedded = bert.embed_documents([passage.text for _, _, passage in rows])
        columns = {
            "origin": [origin for origin, _, _ in rows], "digest": [digest for _, digest, _ in rows],
            "line": [passage.line for _, _, passage in rows], "text": [passage.text for _, _, passage in rows],
            "vector": [np.asarray(vector).tolist() for vector in embedded.vectors],
        }  # fmt: skip
        self._table.add(pyarrow.table(columns, schema=self._table.schema))
        return embedded.num_truncated

    def _delete(self, origins: Sequence[str]) -> None:
        for first in range(0, len(origins), 256):
            listed = ", ".join("'" + origin.replace("'", "''") + "'" for origin in origins[first : first + 256])
            self._table.delete(f"origin IN ({listed})")

    def _has_words(self) -> bool:
        """Return whether all passages are in the full-text index; an interrupted update may have left some out."""
        words = self._words()
        return words is not None and not self._table.index_stats(words).num_unindexed_rows

    def _words(self) -> str | None:
        """Return the name of the full-text index, if it exists."""
        return next((each.name for each in self._table.list_indices() if each.columns == ["text"]), None)

    def _index_words(self) -> None:
        from lancedb.index import FTS

        self._table.create_index("text", config=FTS(), replace=True)
        self._table.optimize()


def _writable(document: Document) -> Document:
    """Return a document with a valid UTF-8 origin: other bytes are escaped."""
    name = document.origin.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return replace(document, origin=name)


def _size(entry: tuple[Document, str, list[Passage]]) -> int:
    return len(entry[0].text)


def _result(row: Mapping[str, Any], score: float) -> SearchResult:
    return SearchResult(score, row["origin"], row["line"], row["text"])
