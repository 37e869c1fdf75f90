"""Groups of options that pretraining, fine-tuning and retrieval share, and the checks of their values."""

import math
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from modernbert.config_files import MISSING
from modernbert.errors import InputError
from modernbert.training.optimizers import OPTIMIZERS
from modernbert.training.trackers import check_trackers

__all__ = [
    "CheckpointConfig",
    "DistributedConfig",
    "Dtype",
    "OptimizerConfig",
    "RunOptions",
    "Sharding",
    "Tracker",
    "check_choices",
    "expect",
]

Dtype = Literal["auto", "float32", "bfloat16"]
Sharding = Literal["none", "full", "hybrid"]
Tracker = Literal["tensorboard", "wandb", "trackio"]


@dataclass
class OptimizerConfig:
    """The optimizer and its constants. The learning rate belongs to the schedule."""

    kind: str = "stable_adamw"
    """Name of the optimizer."""
    kinds: dict[str, str] = field(default_factory=dict)
    """Other optimizers for some parameters: a pattern of parameter names, such as `*.Wqkv.weight`, and a name."""
    beta1: float = 0.9
    """Decay rate of the first moment."""
    beta2: float = 0.98
    """Decay rate of the second moment."""
    eps: float = 1e-6
    """Term added to the denominator."""

    def kind_of(self, name: str) -> str:
        """Return the name of the optimizer of a parameter; of several patterns that match, the last one counts."""
        return next((self.kinds[pattern] for pattern in reversed(self.kinds) if fnmatchcase(name, pattern)), self.kind)

    def check(self, prefix: str = "optim.") -> None:
        """Check the values. Raises: InputError naming the field."""
        for key, kind in {"kind": self.kind, **{f"kinds.{key}": kind for key, kind in self.kinds.items()}}.items():
            expect(f"{prefix}{key}", kind, kind in OPTIMIZERS, ", ".join(OPTIMIZERS))
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            expect(f"{prefix}{name}", value, 0 <= value < 1, "at least 0 and below 1")
        expect(f"{prefix}eps", self.eps, 0 < self.eps <= 1, "a number above 0, at most 1")


@dataclass
class CheckpointConfig:
    """When checkpoints are written, and which of them are kept."""

    every_steps: int = 0
    """Write a checkpoint each time this many steps are done; 0 turns it off."""
    every_s: float = 300.0
    """Write a checkpoint each time this many seconds have passed; 0 turns it off."""
    keep: int = 2
    """Number of newest checkpoints to keep; at least 2, in case one is damaged."""
    keep_every_steps: int = 0
    """Write and keep every checkpoint whose step is a multiple of this; 0 turns it off."""

    def check(self, prefix: str = "checkpoint.") -> None:
        """Check the values. Raises: InputError naming the field."""
        expect(f"{prefix}every_steps", self.every_steps, self.every_steps >= 0, "0 or more")
        expect(f"{prefix}every_s", self.every_s, self.every_s >= 0, "0 or more seconds")
        expect(f"{prefix}keep", self.keep, self.keep >= 2, "at least 2 checkpoints, in case one is damaged")
        expect(f"{prefix}keep_every_steps", self.keep_every_steps, self.keep_every_steps >= 0, "0 or more")


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
    """Fields, or groups of them, under which a run may continue with other values than it was begun with: they change
    where it computes and what it keeps, never what it computes."""

    output: str = MISSING
    """Run folder: config, log, checkpoints, and at the end the model."""
    seed: int = 0
    """Seed of new weights, of the order of the data, and of dropout."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: Dtype = "auto"
    """Data type of the matrix products; auto: bfloat16 where the device is fast at it, else float32."""
    engine: str = "auto"
    """Implementation of attention, layers and optimizer; auto: the fastest that runs here."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """Data parallelism under `torchrun`."""
    optim: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints, from which a stopped run continues."""
    log_every: int = 1
    """Steps between two rows of the log."""
    trackers: list[Tracker] = field(default_factory=list)
    """Experiment trackers that receive the rows of the log."""

    def check(self) -> None:
        """Check all values that can be checked without opening a file.

        Raises: InputError naming the field, the value found and the value expected.
        """
        check_choices(self)
        expect("seed", self.seed, 0 <= self.seed < 2**32, "0 to 2**32 - 1")
        expect("log_every", self.log_every, self.log_every >= 1, "at least 1")
        self.optim.check()
        self.checkpoint.check()
        check_trackers(self.trackers)


def check_choices(config: Any, prefix: str = "") -> None:
    """Check every field of a dataclass, and of the dataclasses in it, whose type is a `Literal`.

    Raises: InputError naming the first field with another value, and its choices.
    """
    for name, kind in get_type_hints(type(config)).items():
        if name.isupper() or name == "_":  # class variables, and the mark of keyword-only fields
            continue
        value = getattr(config, name)
        if hasattr(value, "__dataclass_fields__"):
            check_choices(value, f"{prefix}{name}.")
            continue
        choices = _choices(kind)
        for each in value if isinstance(value, list) else [value]:
            if choices and each not in choices and each is not None:
                joined = (" or " if len(choices) == 2 else ", ").join(choices)
                raise InputError(f"{prefix}{name}: found {each!r}, expected {joined}")


def _choices(kind: Any) -> tuple[str, ...]:
    """Return the values of a `Literal`, also inside `list[...]` and `... | None`."""
    if getattr(kind, "__origin__", None) is Literal:
        return get_args(kind)
    return next((found for inner in get_args(kind) if (found := _choices(inner))), ())


def expect(key: str, found: Any, holds: bool, expected: str) -> None:
    """Raise: InputError naming `key`, unless `holds` and `found` is finite."""
    if isinstance(found, float) and not math.isfinite(found):
        raise InputError(f"{key}: found {found!r}, expected a finite number")
    if not holds:
        raise InputError(f"{key}: found {found!r}, expected {expected}")
