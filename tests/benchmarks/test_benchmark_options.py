"""Each option of a benchmark is read, and a wrong value is refused before anything runs."""

import importlib
import sys

import pytest

from benchmarks.command import run_command

REFUSED = [
    ("throughput", ["--models", "none"], "models: found 'none'"),
    ("throughput", ["--sets", "none"], "sets: found 'none'"),
    ("throughput", ["--documents", "0"], "documents: found 0"),
    ("throughput", ["--batch", "0"], "batch: found 0"),
    ("throughput", ["--runs", "0"], "runs: found 0"),
    ("throughput", ["--rounds", "0"], "rounds: found 0"),
    ("throughput", ["--texts", "a"], "sets: real needs texts and a tokenizer"),
    ("throughput", ["--tokenizer", "a"], "sets: real needs texts and a tokenizer"),
    ("throughput", ["--device", "nowhere"], "device: found"),
    ("throughput", ["--dtypes", "int4"], "dtype: found 'int4'"),
    ("serving", ["--engines", "none"], "engines: found 'none'"),
    ("serving", ["--sets", "none"], "sets: found 'none'"),
    ("serving", ["--preset", "none"], "preset: found 'none'"),
    ("serving", ["--tokens", "0"], "tokens: found 0"),
    ("serving", ["--calls", "0"], "calls: found 0"),
    ("serving", ["--rounds", "0"], "rounds: found 0"),
    ("serving", ["--texts", "a"], "sets: real needs texts and a tokenizer"),
    ("serving", ["--tokenizer", "a"], "sets: real needs texts and a tokenizer"),
    ("contention", ["--engines", "none"], "engines: found 'none'"),
    ("contention", ["--neighbors", "none"], "neighbors: found 'none'"),
    ("contention", ["--preset", "none"], "preset: found 'none'"),
    ("contention", ["--calls", "0"], "calls: found 0"),
    ("contention", ["--rounds", "0"], "rounds: found 0"),
    ("finetuning_steps", ["--systems", "none"], "systems: found 'none'"),
    ("finetuning_steps", ["--sets", "none"], "sets: found 'none'"),
    ("finetuning_steps", ["--preset", "none"], "preset: found 'none'"),
    ("finetuning_steps", ["--batch", "0"], "batch: found 0"),
    ("finetuning_steps", ["--steps", "0"], "steps: found 0"),
    ("finetuning_steps", ["--rounds", "0"], "rounds: found 0"),
    ("finetuning_steps", ["--device", "nowhere"], "device: found"),
    ("finetuning_steps", ["--dtype", "int4"], "dtype: found 'int4'"),
    ("training_steps", ["--systems", "none"], "systems: found 'none'"),
    ("training_steps", ["--preset", "none"], "preset: found 'none'"),
    ("training_steps", ["--tokens", "0"], "tokens: found 0"),
    ("training_steps", ["--longest", "0"], "longest: found 0"),
    ("training_steps", ["--steps", "0"], "steps: found 0"),
    ("training_steps", ["--rounds", "0"], "rounds: found 0"),
    ("training_steps", ["--device", "nowhere"], "device: found"),
    ("training_steps", ["--dtype", "int4"], "dtype: found 'int4'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "words", "said"), REFUSED, ids=[f"{name} {' '.join(words)}" for name, words, _ in REFUSED]
)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(
    name: str, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    (config_type,) = (value for value in map(vars(module).get, module.__all__) if isinstance(value, type))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    with pytest.raises(SystemExit, match="2"):
        run_command(config_type, module.run)
    stderr = capsys.readouterr().err
    assert stderr.startswith(f"python -m benchmarks.{name}: ") and said in stderr and stderr.count("\n") == 1
