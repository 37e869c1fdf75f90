"""Options of the commands around training: fine-tuning by task, sweeps, growing and averaging models, and GLUE."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from modernbert.common_options import ModelRevision
from modernbert.option_types import Dtype
from modernbert.training.finetuning_config import FinetuneConfig
from modernbert.training.retriever_config import RetrieverConfig

__all__ = [
    "AverageConfig",
    "FinetuneSweepConfig",
    "GlueConfig",
    "GrowConfig",
    "LABELED_TASKS",
    "RETRIEVAL_TASKS",
    "RetrieverSweepConfig",
    "SweepGrid",
    "schema_of",
    "sweep_schema_of",
]

# The registry knows all tasks, but imports torch, which help texts do not wait for.
LABELED_TASKS = ("choose", "classify", "extract", "multilabel", "regress", "rerank", "tag")
RETRIEVAL_TASKS = ("embed", "late")


@dataclass(frozen=True)
class GrowConfig(ModelRevision):
    """Initialize a larger model with the weights of a trained one."""

    model: str
    """Model folder, name of a model on the Hub, checkpoint or run to grow."""
    _: KW_ONLY
    output: str
    """New model folder."""
    preset: str = "large"
    """Shape of the larger model."""
    shape: dict[str, Any] = field(default_factory=dict)
    """Size that differs from the preset, such as hidden_size."""


@dataclass
class AverageConfig:
    """Average the weights of the best checkpoints of a run, or of several models."""

    models: list[str] = field(default_factory=list)
    """Model folders, checkpoints or runs; or a run with --run."""
    _: KW_ONLY
    output: str
    """New model folder."""
    run: str | None = None
    """Run whose checkpoints are averaged; none, by default."""
    best: Annotated[int, Ge(0)] = 3
    """Number of checkpoints of the run with the lowest held-out loss."""
    last: bool = True
    """Average the last checkpoint of the run, too."""


@dataclass(frozen=True)
class GlueConfig(ModelRevision):
    """Fine-tune a model on the tasks of GLUE, and print the scores beside the published ones.

    A stopped command continues.
    """

    model: str
    """Model folder, or name of a model on the Hub."""
    data: Path
    """Folder with a folder for each task: cola, sst2, ..."""
    _: KW_ONLY
    output: Path
    """Folder for runs and results."""
    tasks: Sequence[str] = ()
    """Task; repeat for several; all in the folder, by default."""
    grid: Literal["chosen", "paper"] = "chosen"
    """Hyperparameters: the choice of the paper, or its whole grid."""
    lrs: Sequence[float] = ()
    """Learning rate to try instead of the values of the grid; repeat for several."""
    weight_decays: Sequence[float] = ()
    """Weight decay to try instead of the values of the grid; repeat for several."""
    epochs: Sequence[int] = ()
    """Number of epochs to try instead of the values of the grid; repeat for several."""
    seeds: Sequence[int] = (0, 1, 2)
    """Seed; repeat for several."""
    max_len: Annotated[int, Ge(8)] = 256
    """Maximum tokens of a text; longer texts are truncated."""
    patience: Annotated[int, Ge(1)] | None = None
    """Scorings without an improvement after which a run stops; none, by default."""
    device: Sequence[str] = ("auto",)
    """Device: auto, cpu, cuda or cuda:N; repeat for one run on each."""
    dtype: Dtype = "auto"
    """Data type of the matrix products."""


@dataclass(kw_only=True)
class SweepGrid:
    """Values to try."""

    lr: Sequence[float] = ()
    """Learning rate to try; repeat for several; that of --lr, by default."""
    weight_decay: Sequence[float] = ()
    """Weight decay to try; repeat for several; that of --weight-decay, by default."""
    epochs: Sequence[int] = ()
    """Number of epochs to try; repeat for several; that of --epochs, by default."""
    seed: Sequence[int] = ()
    """Seed to try; repeat for several; that of --seed, by default."""
    device: Sequence[str] = ()
    """Device; repeat for one run on each; that of --device, by default."""


def schema_of(task: str) -> type[FinetuneConfig] | type[RetrieverConfig]:
    """Return the class of the options of fine-tuning for a task."""
    if task in LABELED_TASKS:
        return FinetuneConfig
    if task in RETRIEVAL_TASKS:
        return RetrieverConfig
    from modernbert.tasks.task import RetrievalTask, known_tasks

    return RetrieverConfig if isinstance(known_tasks().get(task), RetrievalTask) else FinetuneConfig


@dataclass(kw_only=True)
class FinetuneSweepConfig(FinetuneConfig):
    """Fine-tune with each combination of values, stop runs that fall behind, and keep the best model."""

    sweep: SweepGrid = field(default_factory=SweepGrid)
    """Values to try."""


@dataclass(kw_only=True)
class RetrieverSweepConfig(RetrieverConfig):
    """Fine-tune for retrieval with each combination of values, stop runs that fall behind, and keep the best model."""

    sweep: SweepGrid = field(default_factory=SweepGrid)
    """Values to try."""


def sweep_schema_of(task: str) -> type[FinetuneSweepConfig] | type[RetrieverSweepConfig]:
    """Return the class of the options of a sweep for a task."""
    return RetrieverSweepConfig if schema_of(task) is RetrieverConfig else FinetuneSweepConfig
