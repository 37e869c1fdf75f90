"""Kill a run with SIGKILL before, during or after the n-th call of a function, restart it, and compare its end state.

Functions of the package, the standard library and torch are patched by name.
"""

import json
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from modernbert import files as storage
from modernbert.checkpoints import folder as model_folder
from modernbert.data import prepare, shards, stream
from modernbert.training import optimizers as optim
from modernbert.training import pretraining as pretrain
from modernbert.training import run_checkpoint as checkpoint
from modernbert.training import run_log as journal
from modernbert.training import training_loop as loop
from modernbert.training import training_run

from . import course
from .course import Case

POINTS: dict[str, tuple[Any, str]] = {
    "open_run_folder": (training_run, "open_run_folder"),
    "os.replace": (os, "replace"),
    "os.fsync": (os, "fsync"),
    "os.rename": (os, "rename"),
    "sync_folder": (storage, "sync_folder"),
    "save_file": (safetensors.torch, "save_file"),
    "write_text": (Path, "write_text"),
    "sha256_of": (checkpoint, "sha256_of"),
    "rmtree": (shutil, "rmtree"),
    "remove_leftovers": (storage, "remove_leftovers"),
    "CheckpointWriter.save": (checkpoint.CheckpointWriter, "save"),
    "_write": (checkpoint, "_write"),
    "_write_own": (checkpoint, "_write_own"),
    "_commit": (checkpoint, "_commit"),
    "_rotate": (checkpoint, "_rotate"),
    "Journal._write": (journal.RunLog, "_write"),
    "Journal.sizes": (journal.RunLog, "sizes"),
    "Journal._open": (journal, "_open"),
    "latest": (training_run, "latest"),
    "_restore": (training_run.TrainingRun, "_restore"),
    "load_named_state": (training_run, "load_named_state"),
    "prefetch": (stream._Builder, "build"),
    "train_step": (loop, "train_step"),
    "backward": (torch.Tensor, "backward"),
    "StableAdamW.step": (optim.StableAdamW, "step"),
    "score_heldout": (pretrain, "score_heldout"),
    "_export": (pretrain, "_export"),
    "ModelFolder.save": (model_folder.ModelFolder, "save"),
    "verify_written": (model_folder, "verify_written"),
}
"""Where a run can be killed: a name for the table, and the function that is wrapped."""

PREPARE_POINTS: dict[str, tuple[Any, str]] = {
    "write_shard": (shards, "write_shard"),
    "shard write_file": (shards, "write_file"),
    "shard sync_file": (shards, "sync_file"),
    "prepare _begin": (prepare, "_begin"),
    "move_into_place": (prepare, "move_into_place"),
}


@dataclass(frozen=True)
class Kill:
    """A kill at the n-th call of a point, counted from 1; `half` leaves half of the written data."""

    point: str
    n: int
    when: str

    def __str__(self) -> str:
        return f"{self.when} call {self.n} of {self.point}"


def wrap(point: str, around: Callable[[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]], Any]) -> None:
    """Wrap the function of a point, in this process."""
    owner, name = (POINTS | PREPARE_POINTS)[point]
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        return around(original, arguments, named)

    setattr(owner, name, wrapped)


def end_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(kill: Kill) -> None:
    """Kill this process at a call."""
    calls = count(1)

    def around(original: Callable[..., Any], arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        number = next(calls)
        if number == kill.n and kill.when == "before":
            end_process()
        if number == kill.n and kill.when == "half":
            HALVES[kill.point](original, arguments, named)
            end_process()
        result = original(*arguments, **named)
        if number == kill.n:
            end_process()
        return result

    wrap(kill.point, around)


def _half_file(which: int, original: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Write a file, and leave its first half."""
    original(*arguments, **named)
    path = Path(arguments[which])
    os.truncate(path, path.stat().st_size // 2)


def _half_line(original: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Write half a line of the log."""
    files, (_, name, row) = arguments[0]._files, arguments
    line = json.dumps(row)
    files[name].write(line[: len(line) // 2].encode())
    files[name].flush()


def _half_folder(original: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Remove half of the files of a folder."""
    for path in sorted(Path(arguments[0]).glob("*"))[:2]:
        path.unlink()


HALVES: dict[str, Callable[..., None]] = {
    "save_file": partial(_half_file, 1),
    "write_text": partial(_half_file, 0),
    "Journal._write": _half_line,
    "rmtree": _half_folder,
}


def count_calls(config: Any, scratch: Path, *before: Kill) -> dict[str, int]:
    """Return the number of calls of each point in a run, or in its rest after kills."""
    for kill in before:
        outcome = course.run(config, partial(arm, kill))
        assert outcome.was_killed, outcome.said
    counts_file = scratch / "counts.json"
    counts: Counter[str] = Counter()

    def counting(point: str) -> None:
        def around(original: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
            counts[point] += 1
            return original(*arguments, **named)

        wrap(point, around)

    def act() -> None:
        for point in POINTS:
            counting(point)
        pretrain.run(config)
        counts_file.write_text(json.dumps(counts))

    outcome = course.in_fork(act, scratch / "said.txt")
    assert outcome.status == 0, outcome.said
    found = json.loads(counts_file.read_text())
    found["write_text"] -= "write_text" in found and 1  # the call that writes the counts
    return found


def kill_cases(data: Path, scratch: Path, seed: int, per_point: int) -> list[Case]:
    """Draw kills at every point, in new and in resumed runs; a third of the runs is killed twice."""
    straight = course.straight_run(course.config_of(data, scratch / "straight" / "run"))
    from_start = {k: count_calls(config_every(k, data, scratch / f"count{k}"), scratch) for k in (1, 2, 3)}
    half_way = Kill("StableAdamW.step", 8, "before")
    left = {k: count_calls(config_every(k, data, scratch / f"left{k}"), scratch, half_way) for k in (1, 2, 3)}
    rng = random.Random(seed)
    cases = []
    for number, point in enumerate(POINTS):
        for turn in range(per_point):
            every = rng.choice((1, 2, 3))
            whens = ("before", "after", "half") if point in HALVES else ("before", "after")
            calls = from_start[every][point]
            # Spread the kills over the whole run.
            first = Kill(point, 1 + int(calls * (turn + rng.random()) / per_point), whens[turn % len(whens)])
            kills = [first]
            if (number + turn) % 3 == 0:
                second = rng.choice([name for name, calls in left[every].items() if calls])
                whens = ("before", "after", "half") if second in HALVES else ("before", "after")
                kills.append(Kill(second, rng.randint(1, max(1, left[every][second] // 2)), rng.choice(whens)))
            cases.append(kill_case(data, straight, every, kills))
    return cases


def config_every(every: int, data: Path, folder: Path, **changes: Any) -> Any:
    """Return the config of a run in a new folder, with a checkpoint every `every` steps."""
    folder.mkdir(parents=True, exist_ok=True)
    return course.config_of(data, folder / "run", checkpoint__every_steps=every, **changes)


def kill_case(data: Path, straight: dict[str, str], every: int, kills: list[Kill], *mistakes: course.Prepare) -> Case:
    """Return the case of a run that is killed and restarted by the same command until it is done."""

    def act(folder: Path) -> list[str]:
        config = config_every(every, data, folder)
        out, wrong, landed, expected = Path(config.output), list[str](), 0, 0
        for kill in [*kills, None]:
            outcome = course.run(config, *mistakes, *([partial(arm, kill)] if kill else []))
            was_whole = (out / "model").is_dir() and "this run is finished" in outcome.said
            if expected and not was_whole and outcome.resumed_from < expected and "resuming after" in outcome.said:
                wrong.append(f"step {expected} was committed, resumed from {outcome.resumed_from}")
            if "skipping this checkpoint" in outcome.said:
                wrong.append("a kill left a checkpoint that has to be passed over")
            if outcome.was_killed:
                landed += 1
            else:
                wrong += course.unfinished(outcome, f"start {landed + 1}")
            expected = course.committed(out)
        course.note(folder, kills=landed, every=every)
        return wrong + course.differences(out, straight)

    name = ", then ".join(map(str, kills))
    return Case("kill", kills[0].point, f"save every {every}: {name}", act)
