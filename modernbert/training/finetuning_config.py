"""Options that fine-tuning of every task has: data, schedule, optimizer, device, checkpoints."""

from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

from modernbert.config_files import MISSING
from modernbert.errors import InputError
from modernbert.number_checks import check_numbers
from modernbert.training.run_options import CheckpointConfig, RunOptions

__all__ = ["FinetuneOptions"]


@dataclass
class FinetuneOptions(RunOptions):
    """Options of every fine-tuning run. Defaults are those of appendix E.1 of the paper."""

    FREE_TO_CHANGE: ClassVar[tuple[str, ...]] = (*RunOptions.FREE_TO_CHANGE, "ignore_columns")

    model: str = MISSING
    """Model folder, or name of a model on the Hub, to start from."""
    _: KW_ONLY
    task: str = MISSING
    """What the model learns."""
    train: list[str] = MISSING
    """Training data: files, folders or data sets on the Hub."""
    dev: list[str] = field(default_factory=list)
    """Data whose score decides which weights are kept, and when to stop."""
    test: list[str] = field(default_factory=list)
    """Data that the final model is scored on."""
    train_split: str = "train"
    """Split of the folders and data sets in `train`; files are read whole."""
    dev_split: str = "dev"
    """Split of the folders and data sets in `dev`."""
    test_split: str = "test"
    """Split of the folders and data sets in `test`."""
    subset: str | None = None
    """Subset of the data sets that have several; the default one of the data set, by default."""
    ignore_columns: list[str] = field(default_factory=list)
    """Columns to leave out, such as one that is refused because it looks like a label."""
    epochs: int = 3
    """Passes over the training data."""
    batch: int = 32
    """Examples of a step."""
    lr: float = 8e-5
    """Peak learning rate."""
    layer_decay: float = 1.0
    """Learning rate of a layer as a share of that of the layer above it."""
    weight_decay: float = 1e-5
    """Share of each weight that a step at the peak learning rate removes."""
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises from 0; it then falls linearly to 0."""
    dropout: float | None = None
    """Dropout of the attention output; that of the model's config, by default."""
    metric: str | None = None
    """Score on `dev` that decides; the first one of the task, by default."""
    scorings_per_epoch: int = 1
    """How often `dev` is scored in an epoch."""
    patience: int | None = None
    """Scorings without an improvement after which training stops; none, by default."""
    budget_tokens: int = 16_384
    """Tokens of a micro-batch: a step with more is divided."""
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every_s=600.0))
    """Checkpoints, from which a stopped run continues."""

    def check(self) -> None:
        """Check all values that can be checked without opening a file.

        Raises: InputError naming the field.
        """
        super().check()
        check_numbers(self)
        if not self.train:
            raise InputError("train: found none, expected files of rows or folders of data sets")
