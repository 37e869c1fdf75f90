"""Files that can be searched: their passages, vectors and words in a table of LanceDB.

In: documents, a model. Out: a folder that is brought up to date by indexing again, and passages that answer a query.
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
from modernbert.inference.modernbert import ModernBert
from modernbert.model.embedder import EmbeddingConfig
from modernbert.search.embedding_table import about_of, connect, open_table, told, vector_type
from modernbert.search.passages import Passage, longest_passage, passages_of

__all__ = ["HOW", "PassageIndex", "SearchResult", "SyncStats"]

HOW = ("hybrid", "vectors", "words")
_TABLE = "passages"
_PASSAGE_TOKENS = 256
# Passages are embedded and written so many characters at a time.
_BLOCK_CHARACTERS = 2**20
# So many of each ranking are joined, and so many are ranked again.
_DEPTH = 50
# Of Cormack et al. 2009, reciprocal rank fusion.
_FUSION = 60


@dataclass(frozen=True)
class SearchResult:
    """Hold a passage that was found: how well it answers, its file or row, its first line, its text."""

    score: float
    origin: str
    line: int
    text: str


@dataclass
class SyncStats:
    """Count what indexing changed: documents new or changed, those that were as before, those that are gone."""

    added: int = 0
    kept: int = 0
    removed: int = 0
    passages: int = 0
    cut: int = 0
    """Passages of which the model saw the beginning alone."""


class PassageIndex:
    """Passages of documents, searched by vectors, by words, or by both."""

    def __init__(self, folder: Path, table: Any) -> None:
        self.folder, self._table = folder, table

    @staticmethod
    def open(folder: Path) -> "PassageIndex":
        """Open a catalog that was made before.

        Raises: InputError if there is none, or LanceDB is not installed.
        """
        with told(folder):
            database = connect(folder) if folder.is_dir() else None
            if database is None or _TABLE not in database.list_tables().tables:
                raise InputError(f"{folder}: is no index, expected a folder made by modernbert index")
            return PassageIndex(folder, database.open_table(_TABLE))

    @staticmethod
    def begin(
        folder: Path, bert: ModernBert, model: str, files: str, passage_tokens: int | None = None
    ) -> "PassageIndex":
        """Open the catalog in a folder, or begin one.

        `model` is where it can be loaded from, `files` what tells it from all others. Passages have at most
        `passage_tokens` tokens, or as many as a document of the model may have, if that is less; None is what they had
        before, or 256.

        Raises: InputError if it was begun with another model or other settings, or next to nothing fits a passage.
        """
        import pyarrow

        if passage_tokens is None:
            passage_tokens = (
                PassageIndex.open(folder).about["passage_tokens"] if PassageIndex.is_in(folder) else _PASSAGE_TOKENS
            )
        longest = longest_passage(passage_tokens, bert.document_form, bert.tokenizer)
        about = {"model": model, "model_files": files, "vectors": asdict(bert.vectors), "passage_tokens": longest}
        fields = [
            ("origin", pyarrow.string()), ("digest", pyarrow.string()), ("line", pyarrow.int64()),
            ("text", pyarrow.string()), ("vector", vector_type(bert.vector_width, bert.is_late)),
        ]  # fmt: skip
        if folder.is_dir() and any(folder.iterdir()) and not PassageIndex.is_in(folder):
            raise InputError(f"{folder}: exists and is no index, expected a new folder or an index")
        catalog = PassageIndex(folder, open_table(folder, connect(folder), _TABLE, pyarrow.schema(fields), about))
        catalog.check({key: value for key, value in about.items() if key != "model"})
        return catalog

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Say whether a catalog was begun in a folder."""
        return (folder / f"{_TABLE}.lance").exists()

    def check(self, about: Mapping[str, Any]) -> None:
        """Compare what is given with what it was begun with.

        Raises: InputError naming what is other.
        """
        begun = self.about
        if "model_files" not in begun:
            raise InputError(f"{self.folder}: was begun by an earlier version, make it anew in another folder")
        for key, value in about.items():
            if begun.get(key) != value:
                raise InputError(f"{self.folder}: was begun with other {key} ({begun.get(key)!r}, found {value!r})")

    @property
    def about(self) -> dict[str, Any]:
        """What it was begun with."""
        about = about_of(self._table)
        # What there was no word for when it was begun was as it is where nothing is said.
        return about | {"vectors": asdict(EmbeddingConfig()) | about.get("vectors", {})}

    def __len__(self) -> int:
        """Count its passages."""
        return self._table.count_rows()

    def update(
        self, bert: ModernBert, documents: Iterable[Document], is_whole: Callable[[], bool] = lambda: True
    ) -> SyncStats:
        """Bring it up to date: what is new or changed is embedded, what is no longer among the documents goes.

        A stop loses nothing: indexing again goes on with what is left. Of documents with one origin, the first counts.
        `is_whole` is asked at the end whether the documents were all there are; if they were not, nothing goes.

        Raises: InputError if the table cannot be written.
        """
        with told(self.folder):
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
        self, bert: ModernBert, query: str, k: int, how: str = "hybrid", judge: ModernBert | None = None
    ) -> list[SearchResult]:
        """Return the `k` passages that answer a query best.

        `vectors` compares meaning, `words` shares them (BM25), `hybrid` joins both rankings; `judge` ranks the best
        again, see `ModernBert.rerank`.

        Raises: InputError for an unknown way, an empty catalog, or one that was stopped before its words were known.
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
                f"{self.folder}: has no words yet, for its index was stopped; expected to be indexed again"
            )
        with told(self.folder):
            rankings = [self._nearest(bert, query, depth)] if how != "words" else []
            rankings += [self._sharing(query, depth)] if how != "vectors" else []
        if len(rankings) == 1:
            found = rankings[0]
        else:
            scores: dict[tuple[str, int, str], float] = {}
            for ranking in rankings:
                for rank, hit in enumerate(ranking, 1):
                    key = hit.origin, hit.line, hit.text
                    scores[key] = scores.get(key, 0) + 1 / (_FUSION + rank)
            found = [SearchResult(score, *key) for key, score in sorted(scores.items(), key=lambda item: -item[1])]
        if judge is not None and found:
            ranked = judge.rerank(query, [hit.text for hit in found[:depth]], overflow="truncate")
            found = [SearchResult(each.score, *_place(found[each.index])) for each in ranked]
        return found[:k]

    def _nearest(self, bert: ModernBert, query: str, depth: int) -> list[SearchResult]:
        (vector,) = bert.embed_queries([query]).vectors
        asked: Any = self._table.search(vector, vector_column_name="vector")
        rows = asked.distance_type("cosine").limit(depth).to_list()
        whole = len(vector) if bert.is_late else 1
        return [SearchResult(whole - row["_distance"], row["origin"], row["line"], row["text"]) for row in rows]

    def _sharing(self, query: str, depth: int) -> list[SearchResult]:
        from lancedb.query import MatchQuery

        # A query as mere text is read for its quotes, as a phrase that this index of words cannot look for.
        words: Any = MatchQuery
        rows = self._table.search(words(query, "text"), query_type="fts").limit(depth).to_list()
        return [SearchResult(row["_score"], row["origin"], row["line"], row["text"]) for row in rows]

    def _changed(
        self, bert: ModernBert, documents: Iterable[Document], known: dict[str, str | None], update: SyncStats
    ) -> Iterator[tuple[Document, str, list[Passage]]]:
        """Yield what is not known; what was met is known by None from then on."""
        longest = int(self.about["passage_tokens"])
        for document in map(_writable, documents):
            digest = sha256(document.text.encode()).hexdigest()
            before = known.get(document.origin, "")
            known[document.origin] = None
            if before == digest:
                update.kept += 1
            elif before is not None:
                update.added += 1
                # Parts of one line may have the same text: kept once, for each would count as a find of its own.
                yield document, digest, list(dict.fromkeys(passages_of(document.text, bert.tokenizer, longest)))

    def _replace(self, bert: ModernBert, block: Sequence[tuple[Document, str, list[Passage]]]) -> int:
        """Embed the passages of some documents, and write them in the place of what there was of these.

        Returns how many passages were cut.
        """
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
        return embedded.num_cut

    def _delete(self, origins: Sequence[str]) -> None:
        for first in range(0, len(origins), 256):
            listed = ", ".join("'" + origin.replace("'", "''") + "'" for origin in origins[first : first + 256])
            self._table.delete(f"origin IN ({listed})")

    def _has_words(self) -> bool:
        """Say whether all passages are known by their words: a stop may have come before they were."""
        words = self._words()
        return words is not None and not self._table.index_stats(words).num_unindexed_rows

    def _words(self) -> str | None:
        """Return the name of the index of words, if it was made."""
        return next((each.name for each in self._table.list_indices() if each.columns == ["text"]), None)

    def _index_words(self) -> None:
        from lancedb.index import FTS

        self._table.create_index("text", config=FTS(), replace=True)
        self._table.optimize()


def _writable(document: Document) -> Document:
    """Return a document under a name that can be written: bytes that are not UTF-8 are spelled out."""
    name = document.origin.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return replace(document, origin=name)


def _size(entry: tuple[Document, str, list[Passage]]) -> int:
    return len(entry[0].text)


def _place(hit: SearchResult) -> tuple[str, int, str]:
    return hit.origin, hit.line, hit.text
