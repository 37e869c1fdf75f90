"""Options of fine-tuning: of every task, and of tasks with labels."""

from dataclasses import KW_ONLY, dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from modernbert.errors import InputError, counted
from modernbert.extras import require
from modernbert.options import MISSING
from modernbert.tasks.columns import Columns
from modernbert.training.run_options import CheckpointConfig, RunOptions

__all__ = ["FinetuneConfig", "FinetuneOptions"]


@dataclass
class FinetuneOptions(RunOptions):
    """Options of every fine-tuning run. Defaults are from appendix E.1 of the paper."""

    FREE_TO_CHANGE: ClassVar[tuple[str, ...]] = (*RunOptions.FREE_TO_CHANGE, "ignore_columns")

    model: str = MISSING
    """Model folder, or name of a model on the Hub, to start from."""
    _: KW_ONLY
    # Not from `ModelRevision`: a class that can be changed cannot inherit from a frozen one.
    revision: str | None = None
    """Commit, tag or branch of the model on the Hub; its main branch, by default."""
    task: str = MISSING
    """Task: classify, tag, rerank, embed, late, ..."""
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
    epochs: Annotated[int, Ge(1)] = 3
    """Passes over the training data."""
    batch: Annotated[int, Ge(1)] = 32
    """Examples of a step."""
    lr: Annotated[float, Gt(0)] = 8e-5
    """Peak learning rate."""
    layer_decay: Annotated[float, Gt(0), Le(1)] = 1.0
    """Learning rate of a layer as a share of that of the layer above it."""
    weight_decay: Annotated[float, Ge(0), Le(1)] = 1e-5
    """Share of each weight that a step at the peak learning rate removes."""
    warmup: Annotated[float, Ge(0), Le(1)] = 0.1
    """Share of the steps over which the learning rate rises from 0; it then falls linearly to 0."""
    dropout: Annotated[float, Ge(0), Le(0.99)] | None = None
    """Dropout of the attention output; from the model's config, by default."""
    metric: str | None = None
    """Score on `dev` that decides; the first one of the task, by default."""
    scorings_per_epoch: Annotated[int, Ge(1)] = 1
    """How often `dev` is scored in an epoch."""
    patience: Annotated[int, Ge(1)] | None = None
    """Scorings without an improvement after which training stops; none, by default."""
    budget_tokens: Annotated[int, Ge(1)] = 16_384
    """Maximum tokens of a micro-batch; larger steps are split into several micro-batches."""
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every_s=600.0))
    """Checkpoints, from which a stopped run continues."""

    def check(self) -> None:
        """Check all values that can be checked without opening a file.

        Raises: InputError naming the field.
        """
        super().check()
        if not self.train:
            raise InputError("train: found none, expected files of rows or folders of data sets")
        for name, data in (("dev_split", "dev"), ("test_split", "test"), ("scorings_per_epoch", "dev")):
            if not getattr(self, data) and getattr(self, name) != getattr(FinetuneOptions, name):
                raise InputError(f"{name}: found {getattr(self, name)!r}, which has no effect without `{data}`")

    def steps_per_epoch(self, num_examples: int) -> int:
        """Return the steps of a pass over the training data."""
        return -(-num_examples // self.batch)

    def check_scorings(self, num_examples: int) -> None:
        """Check that an epoch has a step for each scoring. Raises: InputError."""
        steps = self.steps_per_epoch(num_examples)
        if self.scorings_per_epoch > steps:
            raise InputError(
                f"scorings_per_epoch: found {self.scorings_per_epoch}, but an epoch has {counted(steps, 'step')} of "
                f"{counted(self.batch, 'example')} (`batch`)"
            )


@dataclass(kw_only=True)
class FinetuneConfig(FinetuneOptions):
    """Fine-tune a model on labeled rows."""

    task: str = MISSING
    """classify, multilabel, regress, rerank, choose, tag, extract, or a task that was added; embed and late, for
    retrieval, have other options, which `--task embed --help` lists."""
    columns: Columns = field(default_factory=Columns)
    """Names of the columns."""
    max_len: Annotated[int, Ge(8)] | None = None
    """Maximum tokens of a text; from the model, by default."""
    cut: bool = False
    """Cut longer texts; otherwise they are an error."""
    head_lr: Annotated[float, Gt(0)] | None = None
    """Peak learning rate of the new head; `lr`, by default."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weigh each class by the inverse of its frequency."""

    def check(self) -> None:
        """Check all values that can be checked without opening a file.

        Raises: InputError naming the field.
        """
        from modernbert.tasks.task import classifier_task  # imports torch, which help texts do not wait for

        task = classifier_task(self.task)
        super().check()
        if self.class_weights != "none" and not task.has_classes:
            raise InputError(f"class_weights: found {self.class_weights!r}, but {self.task} has no classes")
        task.check_columns(self.columns)
        if not self.dev and (self.patience is not None or self.metric is not None):
            raise InputError("dev: found no rows, expected some to choose and stop by (`patience`, `metric`)")
        if self.dev or self.test:
            require(f"`task={self.task}`", *task.libraries)
