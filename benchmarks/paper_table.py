"""Columns and published scores of table 1 of the paper.

Source: table 1 of the paper; sections 3.1.2 to 3.1.4 for the datasets of the columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from modernbert.evaluation.mteb_tasks import BEIR

__all__ = ["COLUMNS", "GLUE", "PUBLISHED", "Column", "Measured", "missing_sets", "score_of"]

GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
# Datasets of several folders: forums, programming languages.
_PARTS = {
    "cqadupstack": (
        "android", "english", "gaming", "gis", "mathematica", "physics", "programmers", "stats", "tex", "unix",
        "webmasters", "wordpress",
    ),
    "codesearchnet": ("go", "java", "javascript", "php", "python", "ruby"),
}  # fmt: skip

Measured = Mapping[tuple[str, str], float]
"""(kind, set) -> score of 0 to 1; the kinds are in COLUMNS"""


@dataclass(frozen=True)
class Column:
    """A column: the mean over some datasets, of one kind of run."""

    title: str
    kind: str
    sets: tuple[str, ...]


COLUMNS = (
    Column("BEIR, one vector", "single", BEIR),
    Column("MLDR, out of domain", "single", ("mldr",)),
    Column("MLDR, in domain", "in-domain", ("mldr",)),
    Column("BEIR, late interaction", "late", BEIR),
    Column("MLDR, late interaction", "late", ("mldr",)),
    Column("GLUE", "glue", GLUE),
    Column("CodeSearchNet", "single", ("codesearchnet",)),
    Column("StackOverflow-QA", "single", ("stackoverflow-qa",)),
)

PUBLISHED = {
    "BERT base": (38.9, 23.9, 32.2, 49.0, 28.1, 84.7, 41.2, 59.5),
    "RoBERTa base": (37.7, 22.9, 32.8, 48.7, 28.2, 86.4, 44.3, 59.6),
    "DeBERTaV3 base": (20.2, 5.4, 13.4, 47.1, 21.9, 88.1, 17.5, 18.6),
    "NomicBERT": (41.0, 26.7, 30.3, 49.9, 61.3, 84.0, 41.6, 61.4),
    "GTE-en-MLM base": (41.4, 34.3, 44.4, 48.2, 69.3, 85.6, 44.9, 71.4),
    "ModernBERT base": (41.6, 27.4, 44.0, 51.3, 80.2, 88.4, 56.4, 73.6),
    "BERT large": (38.9, 23.3, 31.7, 49.5, 28.5, 85.2, 41.6, 60.8),
    "RoBERTa large": (41.4, 22.6, 36.1, 49.8, 28.8, 88.9, 47.3, 68.1),
    "DeBERTaV3 large": (25.6, 7.1, 19.2, 46.7, 23.0, 91.4, 21.2, 19.7),
    "GTE-en-MLM large": (42.5, 36.4, 48.9, 50.7, 71.3, 87.6, 40.5, 66.9),
    "ModernBERT large": (44.0, 34.3, 48.6, 52.4, 80.4, 90.4, 59.5, 83.9),
}


def score_of(column: Column, measured: Measured) -> float | None:
    """Return the mean score of a column, from 0 to 100; None if a dataset is missing.

    >>> score_of(Column("MLDR", "late", ("mldr",)), {("late", "mldr"): 0.802})
    80.2
    """
    scores = [_score(column.kind, name, measured) for name in column.sets]
    known = [score for score in scores if score is not None]
    return 100 * sum(known) / len(known) if len(known) == len(scores) else None


def missing_sets(column: Column, measured: Measured) -> list[str]:
    """Return the missing datasets of a column, or the missing parts of a dataset that has some."""
    missing: list[str] = []
    for name in column.sets:
        parts = [f"{name}-{part}" for part in _PARTS.get(name, ())]
        gone = [part for part in parts if (column.kind, part) not in measured]
        if _score(column.kind, name, measured) is None:
            missing += gone if len(gone) < len(parts) else [name]
    return missing


def _score(kind: str, name: str, measured: Measured) -> float | None:
    if (kind, name) in measured:
        return measured[kind, name]
    parts = [measured.get((kind, f"{name}-{part}")) for part in _PARTS.get(name, ())]
    known = [score for score in parts if score is not None]
    return sum(known) / len(known) if known and len(known) == len(parts) else None
