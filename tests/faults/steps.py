"""Bad steps: losses and gradients that are not finite or outliers.

A run with bad batches must end with the same bits as a run without them whose guard refuses the same steps. A batch is
identified by its content, so that a resumed run meets the same faults.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from modernbert.batch import Batch
from modernbert.training import pretraining as pretrain
from modernbert.training import training_loop as loop
from modernbert.training.spike_guard import LossSpikeGuard

from . import course, kills
from .course import Case

KINDS = ("nan loss", "+inf loss", "-inf loss", "loss up by 1000", "nan in one gradient", "inf in one gradient",
         "gradient x 1e4")  # fmt: skip
NOT_FINITE = tuple(kind for kind in KINDS if "nan" in kind or "inf" in kind)
PATTERNS = {
    "one step": [12],
    "two in a row": [20, 21],
    "three in a row, as many as the patience": [14, 15, 16],
    "five in a row, the last two after the rollback": [13, 14, 15, 16, 17],
    "the steps before and at a checkpoint": [11, 12],
}


class _Passing(torch.autograd.Function):
    """Identity in the forward pass; `change` is applied to the gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.change(gradients[0]), None


def key_of(batch: Batch) -> str:
    return hashlib.sha256(batch.tokens.numpy().tobytes()).hexdigest()


def spoil(kind: str, keys: Sequence[str]) -> None:
    """Corrupt the loss or the gradient of some batches."""
    original = pretrain.masked_lm

    def spoiled(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        total, num_rows = original(model, batch)
        if key_of(batch) not in keys:
            return total, num_rows
        if "loss" in kind:
            added = {"nan loss": float("nan"), "+inf loss": float("inf"), "-inf loss": float("-inf")}.get(kind)
            return total + (1000.0 * num_rows if added is None else added), num_rows
        if kind == "gradient x 1e4":
            return _Passing.apply(total, lambda gradient: gradient * 1e4), num_rows
        bad = float(kind.split()[0])

        def one_entry(gradient: Tensor) -> Tensor:
            return torch.zeros_like(gradient).index_fill_(0, torch.tensor([3]), bad)

        norm = model.model.final_norm.weight  # type: ignore[union-attr]
        return total + 0.0 * _Passing.apply(norm, one_entry).sum(), num_rows

    pretrain.masked_lm = spoiled


def refuse(keys: Sequence[str]) -> None:
    """Make the guard refuse the steps of some good batches."""
    step, find_fault = loop.train_step, LossSpikeGuard._fault
    now: list[str] = []

    def stepping(objective: nn.Module, micro_batches: Sequence[Batch], *arguments: Any, **named: Any) -> Any:
        now[:] = [key_of(batch) for batch in micro_batches]
        return step(objective, micro_batches, *arguments, **named)

    loop.train_step = stepping
    LossSpikeGuard._fault = lambda self, loss, norm: (
        "asked for" if set(now) & set(keys) else find_fault(self, loss, norm)
    )


def keys_of_run(config: Any, scratch: Path) -> list[str]:
    """Return the key of each batch of a run without faults."""
    keys_file = scratch / "keys.json"

    def act() -> None:
        step, keys = loop.train_step, []

        def stepping(objective: nn.Module, micro_batches: Sequence[Batch], *arguments: Any, **named: Any) -> Any:
            keys.extend(key_of(batch) for batch in micro_batches)
            return step(objective, micro_batches, *arguments, **named)

        loop.train_step = stepping
        pretrain.run(config)
        keys_file.write_text(json.dumps(keys))

    outcome = course.in_fork(act, scratch / "said.txt")
    assert outcome.status == 0, outcome.said
    return json.loads(keys_file.read_text())


def bad_steps(data: Path, kind: str, pattern: str, keys: list[str], kill: kills.Kill | None = None) -> Case:
    """Return the case of some bad steps, optionally with a kill."""

    def act(folder: Path) -> list[str]:
        reference, config = (course.guarded_config(data, folder / name / "run") for name in ("asked", "bad"))
        for each in (reference, config):
            Path(each.output).parent.mkdir()
        asked = course.run(reference, partial(refuse, keys))
        wrong = course.unfinished(asked, "the reference run")
        if kill is not None:
            outcome = course.run(config, partial(spoil, kind, keys), partial(kills.arm, kill))
            wrong += [] if outcome.was_killed else [f"was not killed, ended with {outcome.status}"]
        outcome = course.run(config, partial(spoil, kind, keys))
        wrong += course.unfinished(outcome, "the run")
        if wrong:
            return wrong
        log = [json.loads(line) for line in (Path(config.output) / "log.jsonl").read_text().splitlines()]
        skipped, back = ([row for row in log if row["kind"] == name] for name in ("skipped", "rollback"))
        if len(skipped) != len(keys) or not all(row["reason"] for row in [*skipped, *back]):
            wrong.append(f"{len(keys)} bad steps, but {len(skipped)} skipped in the log")
        patience = config.guard.patience
        if len(back) != len(keys) // patience:
            wrong.append(f"{len(back)} rollbacks in the log, expected {len(keys) // patience}")
        weights = load_file(Path(config.output) / "model" / "model.safetensors")
        if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
            wrong.append("a weight is not finite")
        found, expected = course.end_state(Path(config.output)), course.end_state(Path(reference.output))
        return wrong + [
            f"{name} differs" for name in found if name != "log.jsonl" and found[name] != expected.get(name)
        ]

    name = f"{kind}, {pattern}" + (f", killed {kill}" if kill else "")
    return Case("step", kind, name, act)


def hopeless(data: Path, kind: str, keys: list[str]) -> Case:
    """Return the case of text that is always bad: after some rollbacks one error line, and the checkpoints stay."""

    def act(folder: Path) -> list[str]:
        config = course.guarded_config(data, folder / "run")
        outcome = course.run(config, partial(spoil, kind, keys))
        wrong = course.untyped(outcome)
        if "after 3 rollbacks" not in outcome.last_line:
            wrong.append(outcome.last_line)
        return wrong if course.committed(folder / "run") >= 8 else [*wrong, "no checkpoint stayed"]

    return Case("step", kind, f"{kind}, without end", act)


def step_cases(data: Path, scratch: Path) -> list[Case]:
    """Return about forty cases of bad steps."""
    folder = scratch / "keys"
    folder.mkdir()
    keys = keys_of_run(course.guarded_config(data, folder / "run"), folder)
    cases = []
    for kind in KINDS:
        for pattern, steps in PATTERNS.items():
            cases.append(bad_steps(data, kind, pattern, [keys[step - 1] for step in steps]))
    for kind in NOT_FINITE[:3]:
        cases.append(bad_steps(data, kind, "the first two of a phase", keys[30:32]))
    points = [("CheckpointWriter.save", n, when) for n in (4, 5) for when in ("before", "after")] + [
        ("_restore", 2, "after")
    ]
    for number, (point, n, when) in enumerate(points):
        kind = KINDS[number % len(KINDS)]
        chosen = [keys[step - 1] for step in PATTERNS["five in a row, the last two after the rollback"]]
        cases.append(bad_steps(data, kind, "five in a row", chosen, kills.Kill(point, n, when)))
    return [*cases, hopeless(data, "nan loss", keys[10:]), hopeless(data, "gradient x 1e4", keys[10:])]
