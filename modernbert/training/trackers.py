"""Experiment trackers: TensorBoard, Weights & Biases, Trackio.

They receive the rows of the log under names such as `train/loss` and `heldout/prose/1024/loss`. A tracker that fails is
reported once, and training continues without it.
"""

import importlib
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from modernbert.errors import InputError
from modernbert.extras import missing
from modernbert.files import write_file

__all__ = ["Trackers", "check_trackers", "numbers_of", "open_trackers"]

_LIBRARIES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}
# Fields that identify a row; all others are measurements.
_NAMING = ("kind", "phase", "step", "source", "max_len", "reason")
# Longest wait for a server at the start and the end of a run.
_WAIT_S = 60


@runtime_checkable
class _Tracker(Protocol):
    def write(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def forget(self, first_step: int) -> None:
        """Remove the rows of this step and later ones, if the tracker can."""

    def close(self, *, failed: bool) -> None: ...


class Trackers:
    """Write rows to the trackers that still work."""

    def __init__(self, trackers: Mapping[str, _Tracker], first_step: int) -> None:
        self._trackers = dict(trackers)
        self._step = first_step

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for name, tracker in self._trackers.items():
            _attempt(name, partial(tracker.close, failed=kind is not None))

    def write(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of a row of the log or the timing; a row without a step belongs to the last step."""
        if row.get("kind") == "rollback":
            self._each(lambda tracker: tracker.forget(row["to_step"] + 1))
        self._step = row.get("step", self._step)
        if numbers := numbers_of(row):
            self._each(lambda tracker: tracker.write(self._step, numbers))

    def _each(self, action: Callable[[_Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            if not _attempt(name, partial(action, tracker)):
                del self._trackers[name]


def open_trackers(names: Sequence[str], folder: Path, config: Mapping[str, Any], first_step: int) -> Trackers:
    """Open trackers by name for the run in `folder`; a resumed run continues in the same tracker run.

    `first_step` is the first step to come: rows of it and later steps from an earlier process are removed. A tracker
    that cannot be opened, such as without a network, is reported, and the run starts without it.

    Raises: InputError as `check_trackers` does.
    """
    check_trackers(names)
    place = folder / "watch"
    trackers: dict[str, _Tracker] = {}

    def start(name: str) -> None:
        place.mkdir(parents=True, exist_ok=True)
        trackers[name] = _KINDS[name](place, config, first_step)

    for name in dict.fromkeys(names):
        _attempt(name, partial(start, name))
    return Trackers(trackers, first_step)


def check_trackers(names: Sequence[str]) -> None:
    """Check that trackers are known and their libraries are installed.

    Raises: InputError naming the tracker, and the extra that installs its library.
    """
    for name in names:
        if name not in _LIBRARIES:
            raise InputError(f"trackers: found {name!r}, expected {', '.join(_LIBRARIES)}")
        try:
            importlib.import_module(_LIBRARIES[name])
        except ImportError:
            raise missing("trackers", name) from None


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a row under flat names.

    >>> numbers_of({"kind": "heldout", "step": 8, "source": "prose", "max_len": 64, "loss": 2.5})
    {'heldout/prose/64/loss': 2.5}
    >>> numbers_of({"kind": "skipped", "step": 9, "loss": None, "reason": "the loss is nan"})
    {'skipped/times': 1.0}
    """
    kind = row.get("kind", "timing")
    place = [str(row[key]) for key in ("source", "max_len") if kind == "heldout" and key in row]
    prefix = "/".join(["train" if kind == "step" else kind, *place])
    measured = {key: value for key, value in row.items() if key not in _NAMING}
    # A skipped step may have no other number.
    events = [(f"{prefix}/times", 1.0)] if kind in ("skipped", "rollback") else []
    return dict([*events, *_flat(measured, prefix)])


def _flat(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}/{key}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}/{key}", float(value)


class _TensorBoard:
    """Event files in the run folder: `tensorboard --logdir RUN`."""

    def __init__(self, place: Path, config: Mapping[str, Any], first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open = lambda first: SummaryWriter(str(place / "tensorboard"), purge_step=first, flush_secs=15)
        self._writer = self._open(first_step)
        lines = [f"    {key}: {value}" for key, value in config.items()]
        self._writer.add_text("config", "\n".join(lines), first_step)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)

    def forget(self, first_step: int) -> None:
        self._writer.close()
        self._writer = self._open(first_step)

    def close(self, *, failed: bool) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """A run on the server, or in the run folder if WANDB_MODE is `offline`."""

    def __init__(self, place: Path, config: Mapping[str, Any], first_step: int) -> None:
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "modernbert"), name=place.parent.name, id=_identity(place),
            resume="allow", dir=str(place), config=dict(config), allow_val_change=True,
            settings=wandb.Settings(console="off", init_timeout=_WAIT_S, finish_timeout=_WAIT_S),
        )  # fmt: skip
        # The step of wandb can only grow; that of a run goes back to a checkpoint.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({"step": step, **numbers})

    def forget(self, first_step: int) -> None:
        """Do nothing: the server does not remove rows."""

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _Trackio:
    """A run in the local database of Trackio, or on the server that its environment variables name."""

    def __init__(self, place: Path, config: Mapping[str, Any], first_step: int) -> None:
        trackio = importlib.import_module("trackio")
        # Trackio identifies runs by name; two folders of one name are two runs.
        name = f"{place.parent.name}-{_identity(place)}"
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "modernbert"), name=name, resume="allow", config=dict(config),
            embed=False, auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def forget(self, first_step: int) -> None:
        """Do nothing: the database does not remove rows."""

    def close(self, *, failed: bool) -> None:
        self._run.finish()


_KINDS: dict[str, Callable[[Path, Mapping[str, Any], int], _Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
    "trackio": _Trackio,
}


def _identity(place: Path) -> str:
    """Return the identifier of the run in this folder, created once."""
    path = place / "id"
    if not path.exists():
        write_file(path, uuid.uuid4().hex[:8])
    return path.read_text(encoding="utf-8").strip()


def _attempt(name: str, action: Callable[[], None]) -> bool:
    """Call a tracker; report a failure on standard error, and return whether it worked."""
    try:
        action()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"trackers: {name} failed, training continues without it ({reason})", file=sys.stderr, flush=True)
        return False
    return True
