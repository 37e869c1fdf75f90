"""Disk faults: system calls that fail, and files of a checkpoint that are damaged.

The error must name the fault, the run must resume from the checkpoint before it, and no weight may differ from a run
without faults.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from . import course, kills
from .course import Case

SYSTEM_CALLS = {
    "os.fsync": (os, "fsync"),
    "os.rename": (os, "rename"),
    "os.replace": (os, "replace"),
    "Path.mkdir": (Path, "mkdir"),
    "Path.write_text": (Path, "write_text"),
    "Path.write_bytes": (Path, "write_bytes"),
    "save_file": (safetensors.torch, "save_file"),
}
FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
STOPPED_AT = 9


def fail(call: str, n: int, number: int) -> None:
    """Make the n-th call and every later one fail with a system error."""
    owner, name = SYSTEM_CALLS[call]
    original, calls = getattr(owner, name), count(1)

    def failing(*arguments: Any, **named: Any) -> Any:
        # Except for files of other programs.
        if next(calls) < n or (arguments and str(arguments[0]).startswith("/dev")):
            return original(*arguments, **named)
        if call == "save_file":
            raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")
        raise OSError(number, os.strerror(number))

    setattr(owner, name, failing)


def failing_call(data: Path, straight: dict[str, str], call: str, n: int, number: int) -> Case:
    """Return the case of a failing call: one error line, checkpoints stay, and the run resumes later."""

    def act(folder: Path) -> list[str]:
        config = course.config_of(data, folder / "run")
        outcome = course.run(config, partial(fail, call, n, number))
        wrong = course.untyped(outcome) if outcome.status else ["the fault did not occur"]
        if str(folder) not in outcome.last_line:
            wrong.append(f"no file of the run is named: {outcome.last_line[-200:]}")
        expected = course.committed(folder / "run")
        outcome = course.run(config)
        wrong += course.unfinished(outcome, "the resumed run")
        if outcome.resumed_from < expected:
            wrong.append(f"step {expected} was committed, resumed from {outcome.resumed_from}")
        return wrong + course.differences(folder / "run", straight)

    name = f"{errno.errorcode[number]} from call {n} of {call}"
    return Case("storage", "a system call fails", name, act)


def stopped_run(data: Path, folder: Path, **changes: Any) -> Any:
    """Kill a run in step 10, after a checkpoint of every step, and return its config."""
    config = course.config_of(data, folder / "run", checkpoint__keep=3, **changes)
    # A thread writes each checkpoint; the next write starts only when it is done.
    outcome = course.run(config, partial(kills.arm, kills.Kill("_write", STOPPED_AT + 1, "before")))
    assert outcome.was_killed, outcome.said
    assert course.committed(folder / "run") >= STOPPED_AT, outcome.said
    return config


def damaged(
    data: Path,
    straight: dict[str, str],
    name: str,
    harm: Callable[[Path], str | None],
    *,
    back_to: int = STOPPED_AT - 1,
) -> Case:
    """Return the case of a damaged checkpoint: `harm` damages its folder and returns the name for the error."""

    def act(folder: Path) -> list[str]:
        config = stopped_run(data, folder)
        named = harm(folder / "run" / "checkpoints" / f"step-{STOPPED_AT:08d}")
        outcome = course.run(config)
        wrong = course.unfinished(outcome, "the resumed run")
        if outcome.resumed_from != back_to:
            wrong.append(f"resumed from {outcome.resumed_from}, expected {back_to}")
        messages = [line for line in outcome.said.splitlines() if "skipping this checkpoint" in line]
        if named is not None and not any(named in line for line in messages):
            wrong.append(f"{named} is not named: {messages}")
        if named is None and messages:
            wrong.append(f"a whole checkpoint was passed over: {messages}")
        return wrong + course.differences(folder / "run", straight)

    return Case("storage", "a damaged checkpoint", name, act)


def refused(data: Path, name: str, harm: Callable[[Path], str], point: str = "nothing whole is left") -> Case:
    """Return the case of an unreadable run folder: one line names the file, and no file changes."""

    def act(folder: Path) -> list[str]:
        config = stopped_run(data, folder)
        named = harm(folder / "run")
        before = _content(folder / "run")
        outcome = course.run(config)
        wrong = course.untyped(outcome)
        if named not in outcome.last_line:
            wrong.append(f"{named} is not named: {outcome.last_line[-200:]}")
        if _content(folder / "run") != before:
            wrong.append("the refused run changed files")
        return wrong

    return Case("storage", point, name, act)


def _content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", "config.yaml"))
    return {str(path): path.read_bytes() for path in files}


def flip(file: str, share: float, folder: Path) -> str:
    path = folder / file
    data = bytearray(path.read_bytes())
    data[int(share * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)
    return folder.name


def cut(file: str, share: float, folder: Path) -> str:
    os.truncate(folder / file, int((folder / file).stat().st_size * share))
    return f"{folder.name}/{file}"


def lose(file: str, folder: Path) -> str:
    (folder / file).unlink()
    return f"{folder.name}/{file}"


def take_manifest_of_another_step(folder: Path) -> str:
    shutil.copy(folder.with_name(f"step-{STOPPED_AT - 1:08d}") / "manifest.json", folder / "manifest.json")
    return f"{folder.name}/manifest.json"


def take_folder_of_another_step(folder: Path) -> str:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name(f"step-{STOPPED_AT - 1:08d}"), folder)
    return f"{folder.name}/manifest.json"


def take_file_of_another_step(file: str, folder: Path) -> str:
    shutil.copy(folder.with_name(f"step-{STOPPED_AT - 1:08d}") / file, folder / file)
    return f"{folder.name}/{file}"


def edit_state(folder: Path) -> str:
    path = folder / "state.json"
    state = json.loads(path.read_text())
    state["position"]["tokens"] += 64
    path.write_text(json.dumps(state, indent=1))
    return f"{folder.name}/state.json"


def leave_half_written(owner: int, folder: Path) -> None:
    """Leave the unfinished folder of a dead process."""
    stale = folder.with_name(f"step-{STOPPED_AT + 1:08d}.partial-{owner}")
    shutil.copytree(folder, stale)
    cut("model.safetensors", 0.5, stale)


def set_aside(folder: Path) -> None:
    """Leave a checkpoint between the two renames of its replacement."""
    os.rename(folder, folder.with_name(f"{folder.name}.partial-previous-999999999"))


def cut_while_written(file: str, n: int, data: Path, straight: dict[str, str]) -> Case:
    """Return the case of a write that silently loses the end of a file before its SHA-256 is computed."""

    def lossy() -> None:
        owner, name = (Path, "write_text") if file.endswith(".json") else (safetensors.torch, "save_file")
        original, calls = getattr(owner, name), count(1)

        def writing(*arguments: Any, **named: Any) -> Any:
            result = original(*arguments, **named)
            path = Path(arguments[0] if owner is Path else arguments[1])
            if path.name == file and next(calls) == n:
                os.truncate(path, path.stat().st_size // 2)
            return result

        setattr(owner, name, writing)

    def act(folder: Path) -> list[str]:
        config = course.config_of(data, folder / "run", checkpoint__keep=3)
        stop = partial(kills.arm, kills.Kill("CheckpointWriter.save", n + 1, "before"))
        first = course.run(config, lossy, stop)
        if first.status == 2:
            wrong = course.untyped(first)
        else:
            wrong = [] if first.was_killed else [f"ended with {first.status}: {first.last_line}"]
        outcome = course.run(config)
        return wrong + course.unfinished(outcome, "the resumed run") + course.differences(folder / "run", straight)

    return Case("storage", "a short write", f"half of {file} of checkpoint {n}, unnoticed by the writer", act)


def harm_all(folder: Path) -> str:
    for each in (folder / "checkpoints").glob("step-*"):
        flip("model.safetensors", 0.7, each)
    return "all 3 checkpoints are damaged"


def lose_manifests(folder: Path) -> str:
    for each in (folder / "checkpoints").glob("step-*"):
        (each / "manifest.json").unlink()
    return "all 3 checkpoints are damaged"


def cut_log(folder: Path) -> str:
    os.truncate(folder / "log.jsonl", 40)
    return "log.jsonl"


def lose_log(folder: Path) -> str:
    (folder / "log.jsonl").unlink()
    return "log.jsonl"


def harm_config(folder: Path) -> str:
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("seed: ", "seed: 1"))
    return "config.yaml"


def read_only(data: Path) -> Case:
    """Return the case of a read-only folder, for a user other than root."""

    def act(folder: Path) -> list[str]:
        config = stopped_run(data, folder)
        os.chmod(folder / "run" / "checkpoints", 0o555)
        for path in [folder / "run", *(folder / "run").rglob("*")]:
            os.chown(path, 65_534, 65_534)
        outcome = course.run(config, lambda: os.setuid(65_534)) if os.getuid() == 0 else course.run(config)
        wrong = course.untyped(outcome)
        return wrong if "cannot be written" in outcome.last_line else [*wrong, outcome.last_line]

    return Case("storage", "nothing can be written", "checkpoints is read-only", act)


def storage_cases(data: Path, scratch: Path) -> list[Case]:
    """Return about sixty disk faults."""
    straight = course.straight_run(kills.config_every(1, data, scratch / "storage"))
    calls = {"os.fsync": (1, 4, 40), "os.rename": (1, 2, 9), "os.replace": (1,), "Path.mkdir": (2, 6),
             "Path.write_text": (1, 2, 8, 13), "Path.write_bytes": (1,), "save_file": (1, 2, 9)}  # fmt: skip
    cases = [
        failing_call(data, straight, call, n, number)
        for call, numbers in calls.items()
        for n in numbers
        for number in (errno.ENOSPC, errno.EIO)
    ]
    harms: list[tuple[str, Callable[[Path], str | None]]] = []
    for file in FILES:
        harms += [(f"a bit of {file} flipped at {share:.0%}", partial(flip, file, share)) for share in (0.0, 0.6)]
        harms += [(f"{file} cut to {share:.0%}", partial(cut, file, share)) for share in (0.0, 0.5)]
        harms += [(f"{file} missing", partial(lose, file))]
    for file in FILES[:3]:
        harms += [(f"{file} of the step before", partial(take_file_of_another_step, file))]
    harms += [
        ("manifest of another step", take_manifest_of_another_step),
        ("all files of another step", take_folder_of_another_step),
        ("state.json edited", edit_state),
    ]
    cases += [damaged(data, straight, name, harm) for name, harm in harms]
    whole = [
        ("a half-written folder of a dead process", partial(leave_half_written, 999_999_999)),
        ("a checkpoint set aside for its replacement", set_aside),
    ]
    cases += [damaged(data, straight, name, harm, back_to=STOPPED_AT) for name, harm in whole]
    cases += [cut_while_written(file, 5, data, straight) for file in FILES]
    for harm in (harm_all, lose_manifests):
        cases.append(refused(data, harm.__name__.replace("_", " "), harm))
    for harm in (cut_log, lose_log, harm_config):
        cases.append(refused(data, harm.__name__.replace("_", " "), harm, "the run's own files"))
    return [*cases, read_only(data)]
