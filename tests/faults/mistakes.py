"""Mistakes put into the product on purpose: a suite that does not notice them proves nothing.

In: a run, and one thing done wrong in it. Out: for each mistake the first case that goes red. A file of its own because
here it is the suite that is examined.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from modernbert import files as storage
from modernbert.training import pretraining as pretrain
from modernbert.training import run_checkpoint as checkpoint
from modernbert.training import run_log as journal
from modernbert.training import training_loop as loop
from modernbert.training.spike_guard import LossSpikeGuard
from modernbert.training.training_run import TrainingRun

from . import course, damage, kills, steps
from .course import Case
from .kills import Kill


@dataclass(frozen=True)
class Mistake:
    """Something done wrong, and cases that should see it."""

    name: str
    make: Callable[[], None]
    cases: Callable[["Room"], list[Case]]


@dataclass
class Room:
    """What all cases need."""

    data: Path
    scratch: Path
    straight: dict[str, str]
    keys: list[str]


def sync_order(data: Path, *mistakes: course.Prepare) -> Case:
    """Return the case that listens to the system calls: what is renamed into place has to be on the disk before."""

    def act(folder: Path) -> list[str]:
        config, told = course.config_of(data, folder / "run"), folder / "calls.json"

        def listening() -> None:
            calls: list[tuple[str, ...]] = []
            fsync, rename, replace = os.fsync, os.rename, os.replace

            def heard(name: str, original: Callable[..., None], describe: Callable[..., tuple[str, ...]]) -> Any:
                def call(*arguments: Any) -> None:
                    calls.append((name, *describe(*arguments)))
                    original(*arguments)

                return call

            def moved(source: Path, target: Path) -> tuple[str, ...]:
                source = Path(source)
                inside = [str(path) for path in source.rglob("*")] if source.is_dir() else []
                return (str(source), str(target), *inside)

            os.fsync = heard("sync", fsync, lambda descriptor: (os.readlink(f"/proc/self/fd/{descriptor}"),))
            os.rename, os.replace = heard("move", rename, moved), heard("move", replace, moved)
            pretrain.run(config)
            told.write_text(json.dumps(calls))

        outcome = course.in_fork(lambda: [*(make() for make in mistakes), listening()], folder / "said.txt")
        return course.unfinished(outcome, "the run") + _unsynced(json.loads(told.read_text()))

    return Case("kill", "order of calls", "what is renamed was synced, its folder after it", act)


def _unsynced(calls: list[list[str]]) -> list[str]:
    wrong = set()
    for place, (name, *paths) in enumerate(calls):
        # What is set aside, or renamed to be deleted, need not outlive a power cut under its new name.
        if name != "move" or ".partial-previous-" in paths[1] or ".partial-old-" in paths[1]:
            continue
        source, target, *inside = paths
        before = {path for kind, path, *_ in calls[:place] if kind == "sync"}
        after = {path for kind, path, *_ in calls[place + 1 :] if kind == "sync"}
        if ".partial-previous-" not in source:
            wrong |= {
                f"{Path(path).name} was renamed before it was synced"
                for path in (source, *inside)
                if path not in before
            }
        if str(Path(target).parent) not in after:
            wrong.add(f"the folder of {Path(target).name} was not synced after it")
    return sorted(wrong)[:3]


def _no_sync() -> None:
    storage.sync_file = checkpoint.sync_file = lambda path: None


def _manifest_after_rename() -> None:
    write, commit = checkpoint._write, checkpoint._commit
    kept: dict[str, str] = {}

    def without_manifest(folder: Path, *arguments: Any) -> None:
        commit(folder, *arguments)
        kept["text"] = (folder / "manifest.json").read_text()
        (folder / "manifest.json").unlink()

    def then_manifest(root: Path, step: int, *arguments: Any) -> Path:
        rename = storage._rename

        def renaming(partial_folder: Path, target: Path) -> None:
            rename(partial_folder, target)
            if "text" in kept:
                kills_between()
                (target / "manifest.json").write_text(kept.pop("text"))

        storage._rename = renaming
        try:
            return write(root, step, *arguments)
        finally:
            storage._rename = rename

    def kills_between() -> None:
        """A place between the two."""

    checkpoint._commit, checkpoint._write = without_manifest, then_manifest


def _on_resume(change: Callable[[Any], None]) -> Callable[[], None]:
    """Return a mistake in what a run takes from its checkpoint."""

    def make() -> None:
        restore = TrainingRun._restore

        def restoring(run: Any, found: Any) -> Mapping[str, Any]:
            state = restore(run, found)
            if found is not None:
                change(run)
            return state

        TrainingRun._restore = restoring  # type: ignore[method-assign]

    return make


def _masks_anew(run: Any) -> None:
    if run.state.cursor:
        run.state.cursor["bin"] = 0


def _pool_lost(run: Any) -> None:
    if run.state.cursor:
        run.state.cursor["pool"].clear()


def _no_moments() -> None:
    restore = TrainingRun._restore
    TrainingRun._restore = lambda run, found: restore(run, found) if found is None else {}  # type: ignore[method-assign]


def _same_dropout() -> None:
    """Let dropout depend on how long this process has been running."""
    loop.torch.manual_seed = lambda seed: None  # type: ignore[attr-defined]


def _journal_not_cut() -> None:
    journal._open = lambda path, size: path.open("ab")


def _nothing_verified() -> None:
    checkpoint._fault = lambda folder: None


def _always_taken() -> None:
    LossSpikeGuard._fault = lambda self, loss, norm: None


def _no_return() -> None:
    LossSpikeGuard.is_exhausted = property(lambda self: False)  # type: ignore[assignment]


def _killed(room: Room, mistake: course.Prepare) -> list[Case]:
    points = [
        ("_write", 9, "after"),
        ("train_step", 8, "before"),
        ("Journal._write", 14, "half"),
        ("os.rename", 7, "after"),
    ]
    return [kills.kill_case(room.data, room.straight, 2, [Kill(*point)], mistake) for point in points]


def _resumed(case: Case, mistake: course.Prepare) -> Case:
    """Put the mistake into every run of a case."""

    def act(folder: Path) -> list[str]:
        mistake()
        return case.act(folder)

    return Case(case.part, case.point, case.name, act)


def mistakes() -> list[Mistake]:
    """Return what is done wrong, one at a time."""

    def listened(make: course.Prepare) -> Callable[[Room], list[Case]]:
        return lambda room: [sync_order(room.data, make)]

    def killed(make: course.Prepare) -> Callable[[Room], list[Case]]:
        return lambda room: _killed(room, make)

    def damaged(make: course.Prepare) -> Callable[[Room], list[Case]]:
        harm = partial(damage.flip, "model.safetensors", 0.6)
        return lambda room: [_resumed(damage.damaged(room.data, room.straight, "a bit flipped", harm), make)]

    def spoiled(make: course.Prepare, kind: str, pattern: str) -> Callable[[Room], list[Case]]:
        return lambda room: [
            _resumed(
                steps.bad_steps(room.data, kind, pattern, [room.keys[n - 1] for n in steps.PATTERNS[pattern]]), make
            )
        ]

    made = {
        "fsync left out": _no_sync,
        "renamed before the manifest is written": _manifest_after_rename,
        "masks begin anew after a restart": _on_resume(_masks_anew),
        "text that waits in the pool lost at a restart": _on_resume(_pool_lost),
        "the optimizer's moments not restored": _no_moments,
        "dropout's generator not set": _same_dropout,
        "the log not cut back to the checkpoint": _journal_not_cut,
    }
    named = [Mistake(name, make, listened(make) if "fsync" in name else killed(make)) for name, make in made.items()]
    between = Kill("sync_folder", 8, "after")
    named[1] = Mistake(
        "renamed before the manifest is written", _manifest_after_rename,
        lambda room: [
            kills.kill_case(room.data, room.straight, 1, [Kill("os.rename", n, "after")], _manifest_after_rename)
            for n in (2, 3, 4)
        ] + [kills.kill_case(room.data, room.straight, 1, [between], _manifest_after_rename)],
    )  # fmt: skip
    return [
        *named,
        Mistake("checkpoints not verified", _nothing_verified, damaged(_nothing_verified)),
        Mistake("bad steps taken", _always_taken, spoiled(_always_taken, "nan loss", "one step")),
        Mistake("no return after bad steps in a row", _no_return,
                spoiled(_no_return, "nan in one gradient", "three in a row, as many as are waited for")),
    ]  # fmt: skip
