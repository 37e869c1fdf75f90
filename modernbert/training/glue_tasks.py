"""The tasks of GLUE: file names and columns, the metric of each, the paper's settings, and the published scores.

Source: table 5, table 6 and appendix E.1 of the paper. Metrics as in its baselines: Matthews correlation for CoLA,
Pearson correlation for STS-B, accuracy for all others.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from modernbert.data.labeled_rows import read_rows
from modernbert.data.suffixes import COMPRESSIONS, ROWS
from modernbert.errors import InputError
from modernbert.tasks.columns import Columns
from modernbert.training.finetuning import FinetuneConfig

__all__ = ["DECAYS", "PUBLISHED", "RATES", "TASKS", "GlueTask", "config_of", "tasks_in"]

RATES = (1e-5, 3e-5, 5e-5, 8e-5)
DECAYS = (1e-6, 5e-6, 8e-6, 1e-5)


@dataclass(frozen=True)
class GlueTask:
    """How a task is fine-tuned. The paper gives no batch size; these are the defaults of its code.

    Attributes:
        metric: The metric of the published scores.
        epochs: The paper's grid of epochs.
        chosen: Learning rate, weight decay and epochs that the paper chose for the base model.
        batch: Examples per step.
        pair: Whether rows have two texts.
        after_mnli: Whether the task starts from the model of MNLI.
        task: Name of the fine-tuning task.
    """

    metric: str
    epochs: tuple[int, ...]
    chosen: tuple[float, float, int]
    batch: int
    pair: bool = True
    after_mnli: bool = False
    task: str = "classify"


TASKS = {
    "cola": GlueTask("matthews", (2, 5, 10), (8e-5, 1e-6, 5), 32, pair=False),
    "sst2": GlueTask("accuracy", (1, 2, 3), (8e-5, 1e-5, 2), 16, pair=False),
    "mrpc": GlueTask("accuracy", (2, 5, 10), (5e-5, 5e-6, 10), 32, after_mnli=True),
    "stsb": GlueTask("pearson", (2, 5, 10), (8e-5, 5e-6, 10), 32, after_mnli=True, task="regress"),
    "qqp": GlueTask("accuracy", (2, 5, 10), (5e-5, 5e-6, 10), 16),
    "mnli": GlueTask("accuracy", (1, 2, 3), (5e-5, 5e-6, 1), 64),
    "qnli": GlueTask("accuracy", (2, 5, 10), (8e-5, 5e-6, 2), 16),
    "rte": GlueTask("accuracy", (1, 2, 3), (5e-5, 1e-5, 3), 16, after_mnli=True),
}

# Published dev scores in the order of TASKS; scores of other models are from earlier papers.
PUBLISHED = {
    "BERT base": (59.0, 93.1, 89.5, 89.4, 91.4, 85.4, 91.6, 78.2),
    "RoBERTa base": (63.6, 94.8, 90.2, 91.2, 91.9, 87.6, 92.8, 78.7),
    "DeBERTaV3 base": (69.2, 95.6, 89.5, 91.6, 92.4, 90.0, 94.0, 83.8),
    "MosaicBERT-128": (58.2, 93.5, 89.0, 90.3, 92.0, 85.6, 91.4, 83.0),
    "NomicBERT-2048": (50.0, 93.0, 88.0, 90.0, 92.0, 86.0, 92.0, 82.0),
    "GTE-en-MLM base": (57.0, 93.4, 92.1, 90.2, 88.8, 86.7, 91.9, 84.8),
    "ModernBERT base": (65.1, 96.0, 92.2, 91.8, 92.1, 89.1, 93.9, 87.4),
    "BERT large": (56.2, 93.3, 87.8, 90.6, 90.9, 86.3, 92.8, 83.8),
    "RoBERTa large": (68.0, 96.4, 90.9, 92.4, 92.2, 90.2, 94.7, 86.6),
    "DeBERTaV3 large": (75.3, 96.9, 92.2, 93.0, 93.3, 91.8, 96.0, 92.7),
    "GTE-en-MLM large": (60.4, 95.1, 93.5, 91.4, 89.2, 89.2, 93.9, 88.1),
    "ModernBERT large": (71.4, 97.1, 91.7, 92.8, 92.7, 90.8, 95.2, 92.1),
}

# Column names in the files of GLUE itself, and in the data sets that were made of them.
_FIRST = ("sentence1", "question1", "question", "premise", "#1 String", "sentence")
_SECOND = ("sentence2", "question2", "sentence", "hypothesis", "#2 String")
_LABELS = ("label", "score", "gold_label", "is_duplicate", "Quality")
_DEV = ("dev", "dev_matched", "validation", "validation_matched")
_SUFFIXES = tuple(f"{suffix}{compression}" for suffix in ROWS for compression in ("", *COMPRESSIONS))


def tasks_in(data: Path) -> list[str]:
    """Return the tasks whose training data is in a folder, in the order of the table.

    Raises: InputError if it holds none.
    """
    found = [name for name in TASKS if any((data / name / f"train{suffix}").exists() for suffix in _SUFFIXES)]
    if not found:
        raise InputError(
            f"{data}: holds no task of GLUE, expected folders called {', '.join(TASKS)} with train and dev"
        )
    return found


def config_of(name: str, data: Path, base: FinetuneConfig) -> FinetuneConfig:
    """Return the config for one task; further options come from `base`.

    Raises: InputError if a split or a column is missing.
    """
    task = TASKS[name]
    train, dev = _split(data / name, ("train",)), _split(data / name, _DEV)
    (first, *_) = read_rows([str(train)])
    text = _column(first.values, ("sentence",) if not task.pair else _FIRST, train)
    pair = _column({key: 0 for key in first.values if key != text}, _SECOND, train) if task.pair else None
    columns = Columns(text=text, pair=pair, label=_column(first.values, _LABELS, train))
    return replace(
        base, task=task.task, train=[str(train)], dev=[str(dev)], test=[], columns=columns, metric=task.metric,
        batch=task.batch,
        # Further columns of GLUE's own files, such as the labels of single annotators.
        ignore_columns=[key for key in first.values if key not in (text, pair, columns.label)],
    )  # fmt: skip


def _split(folder: Path, names: tuple[str, ...]) -> Path:
    found = [path for name in names for suffix in _SUFFIXES if (path := folder / f"{name}{suffix}").exists()]
    if len(found) > 1:
        raise InputError(f"{folder}: found {' and '.join(path.name for path in found)}, expected one file of the split")
    if found:
        return found[0]
    raise InputError(f"{folder}: has no {names[0]} split, expected {names[0]}.tsv, .csv, .jsonl or .parquet")


def _column(found: object, names: tuple[str, ...], path: Path) -> str:
    columns = list(found)  # type: ignore[call-overload]
    for name in names:
        if name in columns:
            return name
    raise InputError(f"{path}: found the columns {', '.join(map(str, columns))}, expected {' or '.join(names)}")
