"""Small training runs in forked processes with injected faults, and the comparison of their end states.

Each run is a fork of a parent that has imported everything and computed nothing, so that it starts in milliseconds.
"""

import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from modernbert.data.corpus import Document, Tally
from modernbert.data.shards import write_shards
from modernbert.errors import InputError
from modernbert.tokenizer.bpe_training import train_tokenizer
from modernbert.training import pretraining as pretrain
from modernbert.training.pretraining_config import Phase, PretrainConfig, SpikeGuardConfig

WORDS = "the river runs down from cold hills and old mills turn where children swim in warm summer light".split()
LONGEST_S = 100
"""A run takes a second; after this time its process hangs and is killed."""

Prepare = Callable[[], None]


@dataclass
class Outcome:
    """The end of a process: 0 finished, 1 an unexpected exception, 2 one line for the user, below 0 a signal."""

    status: int
    said: str

    @property
    def was_killed(self) -> bool:
        return self.status == -signal.SIGKILL

    @property
    def resumed_from(self) -> int:
        """The step of the checkpoint that the run resumed from; 0 is none."""
        lines = [line for line in self.said.splitlines() if line.startswith("resuming after step ")]
        return int(lines[-1].split()[-1].replace(",", "")) if lines else 0

    @property
    def last_line(self) -> str:
        return (self.said.strip().splitlines() or [""])[-1]


@dataclass
class Case:
    """One fault: its row in the table, and `act`, which injects it in an empty folder and returns the failures."""

    part: str
    point: str
    name: str
    act: Callable[[Path], list[str]]
    facts: dict[str, Any] = field(default_factory=dict)


def make_data(root: Path) -> None:
    """Write a tokenizer and shards of two sources and of held-out text."""

    def texts(seed: str, number: int) -> Iterable[str]:
        rng = random.Random(seed)
        return (" ".join(rng.choices(WORDS, k=rng.randint(5, 300))) for _ in range(number))

    train_tokenizer((f"{text} {number}" for number, text in enumerate(texts("t", 200))), 384).save(root / "tokenizer")
    for name, number in (("prose", 60), ("code", 20), ("heldout", 4)):
        documents = (Document(text, str(n)) for n, text in enumerate(texts(name, number)))
        write_shards(documents, root / "tokenizer" / "tokenizer.json", root / name, tally=Tally())


def changed(config: PretrainConfig, **changes: Any) -> PretrainConfig:
    """Return a config with other values; `group__field` names a field of a group."""
    for name, value in changes.items():
        group, _, field_name = name.rpartition("__")
        if group:
            name, value = group, replace(getattr(config, group), **{field_name: value})
        config = replace(config, **{name: value})
    return config


def config_of(data: Path, out: Path, **changes: Any) -> PretrainConfig:
    """Return a config of three short phases, 14 steps, with one global and one local layer."""
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 1}
    late = {"max_len": 128, "micro_batch_tokens": 128, "global_rope_theta": 160_000.0}
    phases = {
        "stable": Phase(tokens=2048, lr=5e-3, max_len=64, micro_batch_tokens=128, warmup_tokens=512,
                        max_micro_batches=3, batch_warmup_tokens=768),
        "extension": Phase(tokens=384, lr=2e-3, **late),
        "decay": Phase(tokens=512, lr=2e-3, decay="one_minus_sqrt", weights={"prose": 1.0, "code": 3.0}, **late),
    }  # fmt: skip
    settings = {
        "output": str(out), "tokenizer": str(data / "tokenizer"),
        "data__sources": {"prose": str(data / "prose"), "code": str(data / "code")},
        "data__heldout": {"mix": str(data / "heldout")}, "model": {"preset": "tiny", **shape}, "phases": phases,
        "device": "cpu", "dtype": "float32", "evaluation__every_steps": 4,
        "checkpoint__every_steps": 1, "checkpoint__every_s": 0.0,
    }  # fmt: skip
    return changed(PretrainConfig(), **(settings | changes))


def guarded_config(data: Path, out: Path, **changes: Any) -> PretrainConfig:
    """Return a config of two phases of 30 and 15 steps of one micro-batch, with a guard that triggers early."""
    steps = {"max_len": 64, "micro_batch_tokens": 64}
    phases = {"first": Phase(tokens=64 * 30, lr=2e-3, **steps), "second": Phase(tokens=64 * 15, lr=1e-3, **steps)}
    guard = SpikeGuardConfig(window=8, patience=3, max_rollbacks=3)
    return config_of(
        data,
        out,
        **(
            {
                "phases": phases,
                "guard": guard,
                "checkpoint__every_steps": 4,
                "data__heldout": {},
                "evaluation__every_steps": 0,
            }
            | changes
        ),
    )


def in_fork(act: Prepare, log: Path) -> Outcome:
    """Run a function in a fork whose output goes to a file, and wait for its end."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            signal.alarm(LONGEST_S)
            try:
                act()
                status = 0
            except InputError as error:
                print(f"error: {error}")
                status = 2
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)
    _, code = os.waitpid(child, 0)
    return Outcome(os.waitstatus_to_exitcode(code), log.read_text(errors="replace"))


def run(config: PretrainConfig, *prepare: Prepare) -> Outcome:
    """Start or resume the run in a process that first calls `prepare`."""

    def act() -> None:
        for each in prepare:
            each()
        pretrain.run(config)

    folder = Path(config.output).parent
    folder.mkdir(parents=True, exist_ok=True)
    return in_fork(act, folder / "said.txt")


def committed(out: Path) -> int:
    """Return the newest step with a manifest, under its name or as a backup; 0 for none."""
    names = [path.parent.name for path in (out / "checkpoints").glob("step-*/manifest.json")]
    whole = [name.split(".")[0] for name in names if ".partial-" not in name or ".partial-previous-" in name]
    return max((int(name.removeprefix("step-")) for name in whole), default=0)


def end_state(out: Path) -> dict[str, str]:
    """Return the SHA-256 of all files that must not depend on the number of restarts."""
    last = sorted((out / "checkpoints").glob("step-????????"))[-1]
    files = {"log.jsonl": out / "log.jsonl", "model/model.safetensors": out / "model" / "model.safetensors"}
    files |= {f"{last.name}/{path.name}": path for path in last.glob("*.safetensors")}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def differences(out: Path, straight: dict[str, str]) -> list[str]:
    """Return the differences between a finished run and the run without faults."""
    if not (out / "model").is_dir():
        return ["there is no model"]
    found = end_state(out)
    wrong = [f"{name} differs" for name in sorted({*found, *straight}) if found.get(name) != straight.get(name)]
    return wrong + [f"{path.relative_to(out)} is left over" for path in out.rglob("*.partial-*")]


def unfinished(outcome: Outcome, what: str) -> list[str]:
    """Return how a run ended that should have finished."""
    return [] if outcome.status == 0 else [f"{what} ended with {outcome.status}: {outcome.last_line[-300:]}"]


def untyped(outcome: Outcome) -> list[str]:
    """Return the failures of an error message: one readable line is correct."""
    lines = [line for line in outcome.said.splitlines() if line.startswith("error: ")]
    if outcome.status == 2 and len(lines) == 1 and outcome.last_line == lines[0]:
        return []
    return [f"no one-line error, but status {outcome.status}: {outcome.last_line[-300:]}"]


def straight_run(config: PretrainConfig, *prepare: Prepare) -> dict[str, str]:
    """Return the end state of a run without faults."""
    outcome = run(config, *prepare)
    assert outcome.status == 0, outcome.said
    return end_state(Path(config.output))


def run_cases(cases: Sequence[Case], num_workers: int) -> Iterable[dict[str, Any]]:
    """Run cases, several at once, each in a fork and in an empty folder, and yield a row for each."""
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        os.chmod(scratch, 0o755)  # a case may switch to another user
        waiting, running = list(enumerate(cases)), dict[int, tuple[Case, Path, float]]()
        while waiting or running:
            while waiting and len(running) < num_workers:
                number, case = waiting.pop(0)
                folder = Path(scratch) / str(number)
                folder.mkdir()
                running[_start(case, folder)] = (case, folder, time.monotonic())
            child, _ = os.wait()
            case, folder, started = running.pop(child)
            result = folder / "result.json"
            wrong = json.loads(result.read_text()) if result.exists() else ["the case itself ended early"]
            facts_file = folder / "facts.json"
            facts = case.facts | (json.loads(facts_file.read_text()) if facts_file.exists() else {})
            seconds = round(time.monotonic() - started, 2)
            yield {"part": case.part, "point": case.point, "name": case.name, "wrong": wrong, "s": seconds, **facts}
            _remove(folder)


def note(folder: Path, **facts: Any) -> None:
    """Add facts to the row of the case that runs in a folder."""
    (folder / "facts.json").write_text(json.dumps(facts))


def _start(case: Case, folder: Path) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        try:
            wrong = case.act(folder)
        except BaseException:
            wrong = [f"the case itself: {traceback.format_exc()[-600:]}"]
        (folder / "result.json").write_text(json.dumps(wrong))
    finally:
        os._exit(0)


def _remove(folder: Path) -> None:
    import shutil

    for path in [folder, *folder.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder, ignore_errors=True)
