"""The task of CONTRIBUTING.md: its file alone makes it trainable, saved, loaded and answered."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from modernbert import InputError, ModernBert, tasks
from modernbert.tasks import task as registry
from modernbert.tasks.regression import Regression
from modernbert.tasks.task import classifier_task, find_task, known_tasks, register
from modernbert.training.command_options import schema_of
from modernbert.training.finetune_command import run
from modernbert.training.finetuning import FinetuneConfig

ROOT = Path(__file__).parents[2]
NINE = ["choose", "classify", "embed", "extract", "late", "multilabel", "regress", "rerank", "tag"]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Remove the tasks that a test registers."""
    known_tasks()
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    yield
    sys.modules.pop("modernbert.tasks.grading", None)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registered: None) -> None:
    """Add the file of the example to the folder of tasks."""
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Add a task")[1]
    (code, *_) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "grading.py").write_text(code)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(folder)])


def config_of(tmp_path: Path, bert: ModernBert, grades: list[float]) -> FinetuneConfig:
    bert.save(tmp_path / "start")
    rows = [{"text": f"country {number} is {'near' if number % 2 else 'far'}", "label": grades[number % 2]}
            for number in range(24)]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert schema_of("grade") is FinetuneConfig
    return FinetuneConfig(
        model=str(tmp_path / "start"), task="grade", train=[str(path)], dev=[str(path)], test=[str(path)],
        output=str(tmp_path / "run"), epochs=6, batch=8, lr=2e-3, dropout=0.0, device="cpu", dtype="float32",
        engine="torch",
    )  # fmt: skip


def test_a_file_is_a_task(tmp_path: Path, small_bert: ModernBert, example: None) -> None:
    folder = run(config_of(tmp_path, small_bert, [1.0, 5.0]))
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["metric"] == "near" and set(scores["test"]) == {"near", "squared_error"}
    lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    predicted = [json.loads(line)["predicted"] for line in lines]
    assert all(1 <= grade <= 5 for grade in predicted) and predicted[1] > predicted[0]
    bert = ModernBert.load(folder, device="cpu", dtype="float32", engine="torch")
    assert bert.model.task == "grade"  # type: ignore[union-attr]
    texts = ["country 0 is far", "country 1 is near"]
    answers = [answer["score"] for answer in bert.classify(texts)]  # type: ignore[index, call-overload]
    assert answers == pytest.approx(predicted[:2], abs=1e-4)
    assert sorted(each.index for each in bert.rerank("country 1", ["is far", "is near"])) == [0, 1]
    bert.save(tmp_path / "again")
    assert ModernBert.load(tmp_path / "again").model.task == "grade"  # type: ignore[union-attr]


def test_its_errors_and_its_folders_name_it(
    tmp_path: Path, small_bert: ModernBert, example: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="rows.jsonl:2: label is 6, expected 1 to 5"):
        run(config_of(tmp_path, small_bert, [1.0, 6.0]))
    model = registry.start_classifier(small_bert.model, "grade", ["score"], seed=0)  # type: ignore[arg-type]
    ModernBert(small_bert.tokenizer, model).save(tmp_path / "graded")
    config = json.loads((tmp_path / "graded" / "config.json").read_text())
    assert config["modernbert_task"] == "grade" and config["problem_type"] == "regression"
    monkeypatch.delitem(registry._REGISTERED, "grade")
    monkeypatch.setattr(tasks, "__path__", tasks.__path__[:1])
    with pytest.raises(InputError, match="config.json: modernbert_task is 'grade', expected choose, classify"):
        ModernBert.load(tmp_path / "graded")


def test_an_unknown_task_names_all(tmp_path: Path) -> None:
    assert list(known_tasks()) == NINE
    with pytest.raises(InputError, match=f"task: found 'embedding', expected {', '.join(NINE)}$"):
        find_task("embedding")
    with pytest.raises(InputError, match="task: found 'embed', expected choose, classify, extract, multilabel"):
        classifier_task("embed")
    with pytest.raises(InputError, match="task: found 'embedding', expected choose, classify, embed"):
        FinetuneConfig(model="m", task="embedding", train=["t"], output="o").check()


def test_a_name_and_a_published_head_belong_to_one_task(registered: None) -> None:
    class Again(Regression):
        name = "regress"

    class Like(Regression):
        name = "like"

    with pytest.raises(ValueError, match="'regress': registered by Regression and Again"):
        register(Again())
    with pytest.raises(ValueError, match="'like': has head and problem_type of 'regress'; set is_published=False"):
        register(Like())
    assert torch.equal(Like().activate(torch.tensor([2.0])), torch.tensor([2.0]))
