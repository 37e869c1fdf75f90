"""`modernbert evaluate retrieval`: nDCG@10, MRR@10 and recall@100 of a model on collections in BEIR's format.

A collection is a folder or `mteb:` and the name of a task. BM25 is scored beside the model on request. Queries without
a relevant document are excluded and counted; truncated texts are counted.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from modernbert.config_files import check_values
from modernbert.console import open_console
from modernbert.data.beir import Collection, Rank, read_collection
from modernbert.errors import InputError
from modernbert.evaluation.mteb_tasks import run_task, tasks_of
from modernbert.evaluation.retrieval_eval import rank_by_index, rank_by_model, rank_by_words, score_collection
from modernbert.evaluation.retrieval_options import RetrievalConfig
from modernbert.extras import require
from modernbert.files import check_target, write_file
from modernbert.hub_download import at_revision
from modernbert.inference.modernbert import ModernBert

__all__ = ["RetrievalConfig", "run"]

_MTEB = "mteb:"


def run(config: RetrievalConfig) -> list[dict[str, Any]]:
    """Score each collection, print a table, and return its rows; `output` is written after each collection.

    Raises:
        InputError: The files of a collection contradict each other, or the model cannot be loaded.
    """
    if not config.collections:
        raise InputError("collections: found none, expected a folder in BEIR's format")
    check_values(config)
    config = replace(config, model=at_revision(config.model, config.revision), revision=None)
    if config.bm25:
        require("bm25", "bm25s")
    for name in config.collections:
        if name.startswith(_MTEB):
            require(name, "mteb")
    if config.index is not None:
        require("index", "lancedb", "pyarrow", extra="index")
    folders = [Path(name).resolve().name for name in config.collections if not name.startswith(_MTEB)]
    if config.index is not None and len(set(folders)) < len(folders):
        raise InputError("collections: found two folders of one name, which would share an index; rename one")
    check_target(config.output, overwrite=config.overwrite)
    check_target(None if config.index is None else config.index / "vectors.lance")
    collections = [each for name in config.collections for each in _open(name, config.split)]
    bert = ModernBert.load(config.model, device=config.device, dtype=config.dtype)
    asked = ("pooling", "query_prompt", "document_prompt", "query_length", "document_length")
    changes: dict[str, Any] = {name: getattr(config, name) for name in asked if getattr(config, name) is not None}
    bert.vectors = replace(bert.vectors, **changes)
    assert bert.origin is not None, "it was loaded from a folder"
    by_model = (
        rank_by_model(bert) if config.index is None else rank_by_index(bert, bert.origin.folder.digest, config.index)
    )
    systems: dict[str, Rank] = {config.model: by_model} | ({"BM25": rank_by_words} if config.bm25 else {})
    settings = {"vectors": asdict(bert.vectors), "device": str(bert.device)}
    rows: list[dict[str, Any]] = []
    try:
        for name, collection in collections:
            for system, rank in systems.items():
                rows.extend({"system": system, **row} for row in _rows(name, collection, config.split, rank))
                # Written now: a later collection may fail.
                if config.output is not None:
                    write_file(config.output, json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")
    finally:
        if rows:
            _show(rows)
    return rows


def _open(name: str, split: str) -> list[tuple[str, Collection | Any]]:
    """Read the collection of a folder, or look up the mteb tasks of a name."""
    if name.startswith(_MTEB):
        return list(tasks_of(name.removeprefix(_MTEB)).items())
    return [(name, read_collection(Path(name), split))]


def _rows(name: str, collection: Collection | Any, split: str, rank: Rank) -> list[dict[str, Any]]:
    """Return the row of one system on a folder, or the rows of each subset of an mteb task."""
    if isinstance(collection, Collection):
        scored = score_collection(collection, rank)
        counts = {"num_unjudged": collection.num_unjudged, "num_empty": collection.num_empty}
        sizes = {"num_queries": len(collection.queries), "num_documents": len(collection.documents)}
        return [{"collection": collection.name, "split": split, **asdict(scored), **sizes, **counts}]
    return [
        {
            "collection": found.collection, "split": found.split, **asdict(found.scores),
            "num_queries": found.num_queries, "num_documents": found.num_documents, "num_unjudged": 0, "num_empty": 0,
        }
        for found in run_task(name, collection, split, rank)
    ]  # fmt: skip


def _show(rows: Sequence[dict[str, Any]]) -> None:
    table = Table()
    for column in (
        "collection",
        "system",
        "nDCG@10",
        "MRR@10",
        "recall@100",
        "queries",
        "documents",
        "excluded",
        "truncated",
        "s",
    ):
        table.add_column(column, justify="left" if column in ("collection", "system") else "right")
    for row in rows:
        scores = [f"{row[name]:.3f}" for name in ("ndcg_10", "mrr_10", "recall_100")]
        table.add_row(
            f"{row['collection']} {row['split']}", row["system"], *scores, f"{row['num_queries']:,}",
            f"{row['num_documents']:,}", f"{row['num_unjudged'] + row['num_empty']:,}", f"{row['num_truncated']:,}",
            f"{row['seconds']:.1f}",
        )  # fmt: skip
    open_console().print(table)
