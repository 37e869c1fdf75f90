"""The head of CONTRIBUTING.md: its file alone makes it trainable, saved and loaded."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from modernbert import ModernBert, tasks
from modernbert.batch import SequenceLengths
from modernbert.tasks import task as registry
from modernbert.tasks.task import known_tasks, start_classifier
from modernbert.training.finetune_command import run
from modernbert.training.finetuning import FinetuneConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Add the file of the example to the folder of tasks, for one test."""
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Add a head")[1]
    (code, *_) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "attention_classification.py").write_text(code)
    known_tasks()
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(folder)])
    yield
    sys.modules.pop("modernbert.tasks.attention_classification", None)


def test_a_file_is_a_head(tmp_path: Path, small_bert: ModernBert) -> None:
    small_bert.save(tmp_path / "start")
    rows = [{"text": f"country {n} is {'near' if n % 2 else 'far'}", "label": f"l{n % 2}"} for n in range(24)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = run(FinetuneConfig(
        model=str(tmp_path / "start"), task="classify-attention", train=[str(path)], dev=[str(path)],
        output=str(tmp_path / "run"), epochs=6, batch=8, lr=2e-3, dropout=0.0, device="cpu", dtype="float32",
        engine="torch",
    ))  # fmt: skip
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["dev"]["accuracy"] == 1.0
    assert "token_score.weight" in load_file(folder / "model.safetensors")
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["ModernBertForAttentionClassification"]
    bert = ModernBert.load(folder, device="cpu", dtype="float32", engine="torch")
    answers: Any = bert.classify([row["text"] for row in rows])
    assert [max(answer, key=answer.get) for answer in answers] == [row["label"] for row in rows]


def test_documents_are_pooled_alone(small_bert: ModernBert) -> None:
    model: Any = start_classifier(small_bert.model, "classify-attention", ["a", "b"], seed=3).eval()
    hidden, lengths = torch.randn(5, model.hidden_size), [2, 3]
    with torch.no_grad():
        pooled = model.pool(hidden, SequenceLengths.from_lengths(lengths))
        for part, vector in zip(hidden.split(lengths), pooled, strict=True):
            weights = model.token_score(part).softmax(dim=0)
            torch.testing.assert_close(vector, (weights * part).sum(dim=0))
