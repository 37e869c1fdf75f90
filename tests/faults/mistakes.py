"""Mutation tests of this suite: deliberate mistakes in the product, each of which at least one case must notice."""

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
    """A deliberate mistake, and the cases that should notice it."""

    name: str
    make: Callable[[], None]
    cases: Callable[["Context"], list[Case]]


@dataclass
class Context:
    """Data that all cases share."""

    data: Path
    scratch: Path
    straight: dict[str, str]
    keys: list[str]


def sync_order(data: Path, *mistakes: course.Prepare) -> Case:
    """Return the case that records system calls: files must be synced before they are renamed into place."""

    def act(folder: Path) -> list[str]:
        config, calls_file = course.config_of(data, folder / "run"), folder / "calls.json"

        def record_calls() -> None:
            calls: list[tuple[str, ...]] = []
            fsync, rename, replace = os.fsync, os.rename, os.replace

            def recorded(name: str, original: Callable[..., None], describe: Callable[..., tuple[str, ...]]) -> Any:
                def call(*arguments: Any) -> None:
                    calls.append((name, *describe(*arguments)))
                    original(*arguments)

                return call

            def moved(source: Path, target: Path) -> tuple[str, ...]:
                source = Path(source)
                inside = [str(path) for path in source.rglob("*")] if source.is_dir() else []
                return (str(source), str(target), *inside)

            os.fsync = recorded("sync", fsync, lambda descriptor: (os.readlink(f"/proc/self/fd/{descriptor}"),))
            os.rename, os.replace = recorded("move", rename, moved), recorded("move", replace, moved)
            pretrain.run(config)
            calls_file.write_text(json.dumps(calls))

        outcome = course.in_fork(lambda: [*(make() for make in mistakes), record_calls()], folder / "said.txt")
        return course.unfinished(outcome, "the run") + _unsynced(json.loads(calls_file.read_text()))

    return Case("kill", "order of calls", "files are synced before a rename, and their folder after it", act)


def _unsynced(calls: list[list[str]]) -> list[str]:
    wrong = set()
    for place, (name, *paths) in enumerate(calls):
        # Backups, and folders that will be deleted, need no durable name.
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
        """A point for kills between the two."""

    checkpoint._commit, checkpoint._write = without_manifest, then_manifest


def _on_resume(change: Callable[[Any], None]) -> Callable[[], None]:
    """Return a mistake in the state that a run restores."""

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


def _killed(context: Context, mistake: course.Prepare) -> list[Case]:
    points = [
        ("_write", 9, "after"),
        ("train_step", 8, "before"),
        ("Journal._write", 14, "half"),
        ("os.rename", 7, "after"),
    ]
    return [kills.kill_case(context.data, context.straight, 2, [Kill(*point)], mistake) for point in points]


def _resumed(case: Case, mistake: course.Prepare) -> Case:
    """Put the mistake into every run of a case."""

    def act(folder: Path) -> list[str]:
        mistake()
        return case.act(folder)

    return Case(case.part, case.point, case.name, act)


def mistakes() -> list[Mistake]:
    """Return all mistakes."""

    def with_recorded_calls(make: course.Prepare) -> Callable[[Context], list[Case]]:
        return lambda context: [sync_order(context.data, make)]

    def killed(make: course.Prepare) -> Callable[[Context], list[Case]]:
        return lambda context: _killed(context, make)

    def damaged(make: course.Prepare) -> Callable[[Context], list[Case]]:
        harm = partial(damage.flip, "model.safetensors", 0.6)
        return lambda context: [_resumed(damage.damaged(context.data, context.straight, "a bit flipped", harm), make)]

    def spoiled(make: course.Prepare, kind: str, pattern: str) -> Callable[[Context], list[Case]]:
        return lambda context: [
            _resumed(
                steps.bad_steps(context.data, kind, pattern, [context.keys[n - 1] for n in steps.PATTERNS[pattern]]),
                make,
            )
        ]

    made = {
        "fsync omitted": _no_sync,
        "renamed before the manifest is written": _manifest_after_rename,
        "masks restart after a resume": _on_resume(_masks_anew),
        "text in the packing pool lost at a resume": _on_resume(_pool_lost),
        "the optimizer's moments not restored": _no_moments,
        "dropout seed not set": _same_dropout,
        "the log not truncated to the checkpoint": _journal_not_cut,
    }
    named = [
        Mistake(name, make, with_recorded_calls(make) if "fsync" in name else killed(make))
        for name, make in made.items()
    ]
    between = Kill("sync_folder", 8, "after")
    named[1] = Mistake(
        "renamed before the manifest is written", _manifest_after_rename,
        lambda context: [
            kills.kill_case(context.data, context.straight, 1, [Kill("os.rename", n, "after")], _manifest_after_rename)
            for n in (2, 3, 4)
        ] + [kills.kill_case(context.data, context.straight, 1, [between], _manifest_after_rename)],
    )  # fmt: skip
    return [
        *named,
        Mistake("checkpoints not verified", _nothing_verified, damaged(_nothing_verified)),
        Mistake("bad steps taken", _always_taken, spoiled(_always_taken, "nan loss", "one step")),
        Mistake("no rollback after several bad steps", _no_return,
                spoiled(_no_return, "nan in one gradient", "three in a row, as many as the patience")),
    ]  # fmt: skip
