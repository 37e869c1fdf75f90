"""Groups of options that pretraining, fine-tuning and retrieval share, and the checks of their values."""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from modernbert.config_files import check_values
from modernbert.engines.engine_names import EngineName
from modernbert.errors import InputError
from modernbert.option_types import Dtype
from modernbert.options import MISSING

__all__ = [
    "CheckpointConfig",
    "DistributedConfig",
    "OptimizerConfig",
    "RunOptions",
    "Seed",
    "Sharding",
    "Tracker",
    "expect",
]

Sharding = Literal["none", "full", "hybrid"]
Seed = Annotated[int, Ge(0), Lt(2**32)]
Tracker = Literal["tensorboard", "wandb", "trackio"]


@dataclass
class OptimizerConfig:
    """The optimizer and its constants. The learning rate belongs to the schedule."""

    kind: str = "stable_adamw"
    """Name of the optimizer."""
    kinds: dict[str, str] = field(default_factory=dict)
    """Other optimizers for some parameters: a pattern of parameter names, such as `*.Wqkv.weight`, and a name."""
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Decay rate of the first moment."""
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.98
    """Decay rate of the second moment."""
    eps: Annotated[float, Gt(0), Le(1)] = 1e-6
    """Term added to the denominator."""

    def kind_of(self, name: str) -> str:
        """Return the name of the optimizer of a parameter; of several patterns that match, the last one counts."""
        return next((self.kinds[pattern] for pattern in reversed(self.kinds) if fnmatchcase(name, pattern)), self.kind)

    def check(self) -> None:
        """Check the names of optimizers. Raises: InputError naming the field."""
        from modernbert.training.optimizers import OPTIMIZERS  # imports torch, which help texts do not wait for

        for key, kind in {"kind": self.kind, **{f"kinds.{key}": kind for key, kind in self.kinds.items()}}.items():
            expect(f"optim.{key}", kind, kind in OPTIMIZERS, ", ".join(OPTIMIZERS))


@dataclass
class CheckpointConfig:
    """When checkpoints are written, and which of them are kept."""

    every_steps: Annotated[int, Ge(0)] = 0
    """Write a checkpoint each time this many steps are done; 0 turns it off."""
    every_s: Annotated[float, Ge(0)] = 300.0
    """Write a checkpoint each time this many seconds have passed; 0 turns it off."""
    keep: Annotated[int, Ge(2)] = 2
    """Number of newest checkpoints to keep; at least 2, in case one is damaged."""
    keep_every_steps: Annotated[int, Ge(0)] = 0
    """Write and keep every checkpoint whose step is a multiple of this; 0 turns it off."""


@dataclass
class DistributedConfig:
    """How the processes that `torchrun` starts share one model."""

    sharding: Sharding = "none"
    """none: every process holds the whole model (DDP); full: each holds a part (FSDP2); hybrid: a part within a
    machine, copies across machines (HSDP)."""


@dataclass(kw_only=True)
class RunOptions:
    """Options of every training run."""

    FREE_TO_CHANGE: ClassVar[tuple[str, ...]] = ("output", "device", "distributed", "checkpoint", "trackers")
    """Fields, or groups of them, that may change when a run continues: they decide where it computes and which files it
    keeps, never its results."""

    output: str = MISSING
    """Run folder: config, log, checkpoints, and at the end the model."""
    seed: Seed = 0
    """Seed of new weights, of the order of the data, and of dropout."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: Dtype = "auto"
    """Data type of the matrix products; auto: bfloat16 where the device is fast at it, else float32."""
    engine: EngineName = "auto"
    """Implementation of attention, layers and optimizer; auto: the fastest that runs here."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """Data parallelism under `torchrun`."""
    optim: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints, from which a stopped run continues."""
    log_every: Annotated[int, Ge(1)] = 1
    """Steps between two rows of the log."""
    trackers: list[Tracker] = field(default_factory=list)
    """Experiment trackers that receive the rows of the log."""

    def check(self) -> None:
        """Check all values that can be checked without opening a file.

        Raises: InputError naming the field, the value found and the value expected.
        """
        from modernbert.training.trackers import check_trackers

        check_values(self)
        self.optim.check()
        check_trackers(self.trackers)


def expect(key: str, found: Any, holds: bool, expected: str) -> None:
    """Raise: InputError naming `key`, unless `holds`."""
    if not holds:
        raise InputError(f"{key}: found {found!r}, expected {expected}")
