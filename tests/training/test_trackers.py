"""Experiment trackers: the values they store are read back, and a tracker that fails does not end the run."""

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modernbert.errors import InputError
from modernbert.training.trackers import check_trackers, numbers_of, open_trackers

CONFIG = {"seed": 17, "model": {"preset": "tiny"}, "phases": {"stable": {"tokens": 4096}}}


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"needs {name}")


def step_row(step: int, loss: float) -> dict[str, Any]:
    return {
        "kind": "step", "phase": "stable", "step": step, "tokens": 256 * step, "lr": 1e-3, "micro_batches": 1,
        "loss": loss, "grad_norm": 0.5, "fill": 0.99, "masked": 77, "source_tokens": {"prose": 200, "code": 56},
        "epochs": {"prose": 0.1, "code": 0.2},
    }  # fmt: skip


HELDOUT = {
    "kind": "heldout", "phase": "stable", "step": 2, "tokens": 512, "source": "prose", "max_len": 2048, "loss": 3.0,
    "accuracy": 0.4, "perplexity": 20.1, "masked": 300,
    "positions": {"0-1023": {"loss": 3.1, "masked": 150}, "1024-2047": {"loss": 2.9, "masked": 150}},
}  # fmt: skip
TIMING = {"step": 2, "seconds": 0.1, "tokens_per_s": 2560.0, "elapsed": 0.2, "mfu": None}
SKIPPED = {"kind": "skipped", "phase": "stable", "step": 3, "loss": None, "grad_norm": 4.0, "reason": "the loss is nan"}
ROLLBACK = {"kind": "rollback", "phase": "stable", "step": 4, "to_step": 2, "reason": "the loss is nan"}
START = {"kind": "start", "world_size": 2, "device": "cpu"}


def test_rows_of_every_kind_have_names_of_their_own() -> None:
    names = [set(numbers_of(row)) for row in (step_row(1, 2.0), HELDOUT, TIMING, SKIPPED, ROLLBACK, START)]
    assert names[0] >= {"train/loss", "train/lr", "train/source_tokens/prose", "train/epochs/code"}
    assert names[1] >= {"heldout/prose/2048/loss", "heldout/prose/2048/positions/1024-2047/loss"}
    # Values that were not measured are missing.
    assert names[2] == {"timing/seconds", "timing/tokens_per_s", "timing/elapsed"}
    assert names[3:] == [
        {"skipped/times", "skipped/grad_norm"},
        {"rollback/times", "rollback/to_step"},
        {"start/world_size"},
    ]
    older = {"kind": "heldout", "phase": "stable", "step": 2, "tokens": 512, "loss": 3.0}
    assert numbers_of(older) == {"heldout/loss": 3.0, "heldout/tokens": 512.0}


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Read the events back as TensorBoard does."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "watch" / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    found = {tag: board.Scalars(tag) for tag in board.Tags()["scalars"]}
    return {tag: [(event.step, round(event.value, 5)) for event in events] for tag, events in found.items()}


@needs("tensorboard")
def test_tensorboard_shows_what_was_written(tmp_path: Path) -> None:
    with open_trackers(["tensorboard"], tmp_path, CONFIG, 0) as sinks:
        for row in (START, step_row(1, 6.0), step_row(2, 5.0), HELDOUT, TIMING, SKIPPED):
            sinks.write(row)
    found = scalars(tmp_path)
    assert found["train/loss"] == [(1, 6.0), (2, 5.0)]
    assert found["heldout/prose/2048/positions/1024-2047/loss"] == [(2, 2.9)]
    assert found["timing/tokens_per_s"] == [(2, 2560.0)]
    assert found["skipped/times"] == [(3, 1.0)]
    assert found["start/world_size"] == [(0, 2.0)]


@needs("tensorboard")
def test_tensorboard_goes_on_where_the_checkpoint_was(tmp_path: Path) -> None:
    with open_trackers(["tensorboard"], tmp_path, CONFIG, 0) as sinks:
        for step in range(1, 7):
            sinks.write(step_row(step, 7.0 - step))
    # The checkpoint was taken after step 3.
    with open_trackers(["tensorboard"], tmp_path, CONFIG, 4) as sinks:
        for step in (4, 5):
            sinks.write(step_row(step, 0.5))
    assert scalars(tmp_path)["train/loss"] == [(1, 6.0), (2, 5.0), (3, 4.0), (4, 0.5), (5, 0.5)]


@needs("tensorboard")
def test_tensorboard_shows_the_way_taken_after_a_rollback(tmp_path: Path) -> None:
    with open_trackers(["tensorboard"], tmp_path, CONFIG, 0) as sinks:
        for row in (step_row(1, 6.0), step_row(2, 5.0), step_row(3, 9.0), ROLLBACK, step_row(3, 4.0)):
            sinks.write(row)
    found = scalars(tmp_path)
    assert found["train/loss"] == [(1, 6.0), (2, 5.0), (3, 4.0)]
    assert found["rollback/to_step"] == [(4, 2.0)]


@needs("tensorboard")
def test_a_board_that_fails_is_named_once_and_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "watch").write_text("a file where the folder of the boards should be")
    with open_trackers(["tensorboard"], tmp_path, CONFIG, 0) as sinks:
        for step in (1, 2):
            sinks.write(step_row(step, 1.0))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("trackers: tensorboard failed, training continues without it (")


@needs("tensorboard")
def test_a_board_that_fails_in_mid_run_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_trackers(["tensorboard"], tmp_path, CONFIG, 0) as sinks:
        sinks.write(step_row(1, 1.0))
        # Not a number to any board, and so an error inside of it.
        sinks.write({"kind": "step", "step": "three", "loss": 2.0})
        sinks.write(step_row(2, 1.0))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("trackers: tensorboard failed")
    assert scalars(tmp_path)["train/loss"] == [(1, 1.0)]


def test_an_unknown_board_and_an_absent_library_are_told_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="trackers: found 'mlflow', expected tensorboard, wandb, trackio"):
        check_trackers(["mlflow"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"trackers: wandb is not installed: pip install 'modernbert\[trackers\]'"):
        open_trackers(["wandb"], tmp_path / "run", CONFIG, 0)
    assert not (tmp_path / "run").exists()


def test_without_names_nothing_is_written(tmp_path: Path) -> None:
    with open_trackers([], tmp_path, CONFIG, 0) as sinks:
        sinks.write(step_row(1, 1.0))
    assert list(tmp_path.iterdir()) == []


# The two below start services and threads that outlive a test: each runs in a child process.
RUN_TWICE = """
import json, sys
from pathlib import Path
from modernbert.training.trackers import open_trackers
name, folder, rows = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
for first_step in (0, 2):
    with open_trackers([name], folder, {"seed": 17, "model": {"preset": "tiny"}}, first_step) as sinks:
        for row in rows:
            if row["step"] >= first_step:
                sinks.write(row)
"""


def run_twice(name: str, folder: Path, **environment: str) -> None:
    rows = json.dumps([step_row(1, 6.0), step_row(2, 5.0), TIMING, HELDOUT, SKIPPED])
    done = subprocess.run(
        [sys.executable, "-c", RUN_TWICE, name, str(folder), rows],
        capture_output=True, text=True, timeout=120, env=os.environ | environment, cwd=folder.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stderr


@needs("wandb")
def test_wandb_keeps_one_run_over_two_starts(tmp_path: Path) -> None:
    run_twice("wandb", tmp_path / "run", WANDB_MODE="offline", WANDB_SILENT="true")
    identity = (tmp_path / "run" / "watch" / "id").read_text()
    parts = sorted((tmp_path / "run" / "watch" / "wandb").glob("offline-run-*"))
    files = [file for part in parts for file in part.glob("*.wandb")]
    assert len(files) == 2 and {file.name for file in files} == {f"run-{identity}.wandb"}
    written = b"".join(path.read_bytes() for path in files)
    for name in (b"heldout/prose/2048/loss", b"train/source_tokens/prose", b"timing/tokens_per_s", b"skipped/times"):
        assert name in written


@needs("trackio")
def test_trackio_keeps_one_run_over_two_starts(tmp_path: Path) -> None:
    run_twice("trackio", tmp_path / "run", TRACKIO_DIR=str(tmp_path / "trackio"))
    identity = (tmp_path / "run" / "watch" / "id").read_text()
    (path,) = (tmp_path / "trackio").rglob("*.db")
    with sqlite3.connect(path) as database:
        rows = database.execute("select run_name, step, metrics from metrics").fetchall()
    assert {name for name, _, _ in rows} == {f"run-{identity}"}
    assert any(step == 2 and "heldout/prose/2048/loss" in str(metrics) for _, step, metrics in rows)
