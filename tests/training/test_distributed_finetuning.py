"""Fine-tuning in two processes on gloo: the losses, the dev scores and the model of one process."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import options
from safetensors.torch import load_file
from torch.testing import assert_close

from modernbert.inference.modernbert import ModernBert

CITIES = "Tallinn Oslo Quito Lima Cairo Accra Perth Hanoi Sofia Bern".split()


@pytest.fixture
def given(tmp_path: Path, small_bert: ModernBert) -> list[str]:
    """A small model without dropout, rows, a collection, and the words that every run has."""
    small_bert.save(tmp_path / "start")
    lines = [
        f"{city} is {'large' if n % 3 else 'small'} by the river {n}\t{n % 3}" for n, city in enumerate(CITIES * 5)
    ]
    (tmp_path / "rows.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n")
    queries = [{"query": f"where is {city}", "positive": f"{city} on a hill {n}"} for n, city in enumerate(CITIES)]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    folder = tmp_path / "collection"
    (folder / "qrels").mkdir(parents=True)
    texts = [{"_id": f"d{n}", "title": "", "text": row["positive"]} for n, row in enumerate(queries)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    asked = [{"_id": f"q{n}", "text": row["query"]} for n, row in enumerate(queries)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    judged = [f"q{n}\td{n}\t1" for n in range(len(queries))]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n")
    return [str(tmp_path / "start"), *options(device="cpu", dtype="float32", engine="torch", dropout=0.0)]


def finetune(words: Sequence[str], output: Path, processes: int = 1) -> list[dict[str, Any]]:
    """Run the command, and return its log."""
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--rdzv-backend=c10d",
              "--rdzv-endpoint=localhost:0"] if processes > 1 else []  # fmt: skip
    command = [sys.executable, *launch, "-m", "modernbert", "finetune", *words, "--output", str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def assert_same_run(ours: Path, theirs: Path, rows: Sequence[Sequence[dict[str, Any]]], rtol: float = 0.0) -> None:
    for mine, other in zip(*rows, strict=True):
        for key in ("kind", "step", "epoch", "tokens", "lr"):
            assert mine.get(key) == other.get(key)
        numbers = [key for key in other if isinstance(other[key], float)]
        np.testing.assert_allclose(
            [mine[key] for key in numbers], [other[key] for key in numbers], rtol=rtol, atol=2e-4
        )
    weights = [load_file(run / "model" / "model.safetensors") for run in (ours, theirs)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert_close(tensor, weights[1][name], rtol=0, atol=2e-4)
    scores = [json.loads((run / "scores.json").read_text()) for run in (ours, theirs)]
    assert scores[0]["best_step"] == scores[1]["best_step"]


@pytest.mark.parametrize("sharding", ["none", pytest.param("full", marks=pytest.mark.slow)])
def test_two_processes_classify_as_one(sharding: str, given: list[str], tmp_path: Path) -> None:
    """Whole batches of 7 and a last one of 1: in the last step, a process has no row."""
    rows = tmp_path / "rows.tsv"
    words = [*given, *options(task="classify", train=rows, dev=rows, test=rows, batch=7, epochs=2, lr=1e-3)]
    alone = finetune(words, tmp_path / "alone")
    both = finetune([*words, "--distributed.sharding", sharding], tmp_path / "both", processes=2)
    assert [row["micro_batches"] for row in both if row["kind"] == "step"] == [2] * 7 + [1] + [2] * 7 + [1]
    for log in (alone, both):
        for row in log:
            row.pop("micro_batches", None)
    assert_same_run(tmp_path / "both", tmp_path / "alone", (both, alone))


@pytest.mark.parametrize(
    ("task", "sharding"), [("embed", "none"), pytest.param("late", "full", marks=pytest.mark.slow)]
)
def test_two_processes_compare_all_passages_of_a_step(
    task: str, sharding: str, given: list[str], tmp_path: Path
) -> None:
    words = [
        *given,
        *options(task=task, train=tmp_path / "queries.jsonl", dev=tmp_path / "collection", dev_split="test"),
        *options(**{"batch": 4, "epochs": 2, "lr": 1e-4, "vectors.query_length": 16, "vectors.document_length": 16}),
    ]
    alone = finetune(words, tmp_path / "alone")
    both = finetune([*words, "--distributed.sharding", sharding], tmp_path / "both", processes=2)
    for log in (alone, both):
        for row in log:
            row.pop("micro_batches", None)
    assert_same_run(tmp_path / "both", tmp_path / "alone", (both, alone), rtol=5e-3)  # MaxSim has ties
