"""A small model and runs of it, each made once by the command line itself."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import modernbert

from modernbert import ModernBert

WORDS = ["capital", "country", "city", "land", "rivers"]
QUICK = ["--device", "cpu", "--dtype", "float32", "--dropout", "0.0"]


def succeed(*words: object) -> str:
    """Run a command that must succeed, and return its output."""
    done = modernbert(*map(str, words))
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_rows(path: Path, number: int, seed: int) -> Path:
    """Write texts, whether they name a city, and how many rivers they have."""
    rng = np.random.default_rng(seed)
    lines = ["text\tlabel\trivers"]
    for _ in range(number):
        words = list(rng.choice(WORDS, int(rng.integers(2, 12))))
        lines.append(f"{' '.join(words)}\t{'yes' if 'city' in words else 'no'}\t{words.count('rivers')}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the files that several tests read."""
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="session")
def bert(folder: Path, small_bert: ModernBert) -> Path:
    """A model folder with a masked-LM head."""
    small_bert.save(folder / "bert")
    return folder / "bert"


@pytest.fixture(scope="session")
def rows(folder: Path) -> dict[str, Path]:
    """Files of rows with labels and numbers: train, dev, test."""
    return {
        name: write_rows(folder / f"{name}.tsv", number, seed)
        for seed, (name, number) in enumerate((("train", 120), ("dev", 40), ("test", 30)))
    }


@pytest.fixture(scope="session")
def classifier_run(folder: Path, bert: Path, rows: dict[str, Path]) -> Path:
    """A finished run of `finetune --task classify` with dev and test rows."""
    succeed(
        "finetune", bert, "--task", "classify", "--output", folder / "classifier", "--train", rows["train"], "--dev",
        rows["dev"], "--test", rows["test"], "--epochs", 3, "--batch", 16, "--lr", "1e-3", *QUICK,
    )  # fmt: skip
    return folder / "classifier"


@pytest.fixture(scope="session")
def regressor_run(folder: Path, bert: Path, rows: dict[str, Path]) -> Path:
    """A finished run of `finetune --task regress` without dev rows."""
    succeed(
        "finetune", bert, "--task", "regress", "--output", folder / "regressor", "--train", rows["train"],
        "--columns.label", "rivers", "--epochs", 1, "--batch", 16, *QUICK,
    )  # fmt: skip
    return folder / "regressor"


@pytest.fixture(scope="session")
def collection(folder: Path, write_collection: Callable[..., Path]) -> Path:
    """A small collection in BEIR's form."""
    return write_collection(folder / "collection")


@pytest.fixture(scope="session")
def embedder_run(folder: Path, bert: Path, collection: Path) -> Path:
    """A finished run of `finetune --task embed`, scored on two collections."""
    succeed(
        "finetune", bert, "--task", "embed", "--output", folder / "embedder", "--train", collection, "--dev",
        collection, "--dev-split", "test", "--test", collection, "--epochs", 2, "--batch", 4, *QUICK,
    )  # fmt: skip
    return folder / "embedder"


@pytest.fixture(scope="session")
def pretraining_run(folder: Path, bert: Path) -> Path:
    """A finished run of `pretrain` with held-out text."""
    lines = [f"The capital of country {n} is city {n * 7}, in a land of {n % 11} rivers." for n in range(400)]
    (folder / "corpus.txt").write_text("\n".join(lines) + "\n")
    succeed("prepare", "--input", folder / "corpus.txt", "--tokenizer", bert, "--output", folder / "shards",
            "--txt-unit", "line", "--heldout", "0.1", "--processes", 1)  # fmt: skip
    config = {
        "output": str(folder / "pretrained"), "tokenizer": str(bert), "init_from": str(bert),
        "data": {
            "sources": {"prose": str(folder / "shards" / "train")},
            "heldout": {"prose": str(folder / "shards" / "heldout")},
        },
        "phases": {
            "stable": {"tokens": 2048, "lr": 1e-3, "max_len": 64, "micro_batch_tokens": 256},
            "decay": {"tokens": 1024, "lr": 1e-3, "max_len": 64, "micro_batch_tokens": 256,
                      "decay": "one_minus_sqrt"},
        },
        "device": "cpu", "dtype": "float32", "evaluation": {"every_steps": 4},
    }  # fmt: skip
    (folder / "pretrain.yaml").write_text(json.dumps(config))  # JSON is YAML
    succeed("pretrain", "--config", folder / "pretrain.yaml")
    return folder / "pretrained"
