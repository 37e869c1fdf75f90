"""Options of the commands around training: growing and averaging models, and GLUE."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from modernbert.training.run_options import Dtype

__all__ = ["AverageConfig", "GlueConfig", "GrowConfig", "SweepGrid"]


@dataclass
class GrowConfig:
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


@dataclass
class GlueConfig:
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
    """Hyperparameters: those that the paper chose, or all that it tried."""
    lrs: Sequence[float] = ()
    """Learning rate to try instead of those of the grid; repeat for several."""
    weight_decays: Sequence[float] = ()
    """Weight decay to try instead of those of the grid; repeat for several."""
    epochs: Sequence[int] = ()
    """Number of epochs to try instead of those of the grid; repeat for several."""
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
