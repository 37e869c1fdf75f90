"""Columns that look like something to learn from are read, or are an error that names them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import modernbert

from modernbert import ModernBert
from modernbert.data.rows import Row
from modernbert.errors import InputError
from modernbert.tasks.columns import Columns
from modernbert.tasks.retrieval_examples import examples_of_rows
from modernbert.tasks.task import retrieval_task
from modernbert.training.finetuning import FinetuneConfig, check_inputs, finetune
from modernbert.training.retriever_finetuning import RetrieverConfig, finetune_retriever

QUESTION = {"query": "a city", "positive": "the capital"}
ROWS: dict[str, dict[str, Any]] = {
    "classify": {"text": "a city", "label": "x"},
    "multilabel": {"text": "a city", "label": ["x"]},
    "regress": {"text": "a city", "label": 1.5},
    "rerank": {"text": "a city", "passage": "a land", "label": 1},
    "choose": {"text": "a city", "choices": ["a land", "rivers"], "label": 1},
    "extract": {"text": "a city", "context": "a land", "answers": {"text": ["land"], "answer_start": [2]}},
    "tag": {"words": ["a", "city"], "tags": ["O", "B-x"]},
    "embed": QUESTION,
    "late": QUESTION,
}
HARMLESS = {"id": 1, "source": "x", "title": "A city", "url": "x", "query_id": "q", "positive_id": 7, "lang": "en",
            "label_text": "good", "negative_ids": [1], "split": "train", "date": None}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path, small_bert: ModernBert) -> str:
    small_bert.save(tmp_path / "model")
    return str(tmp_path / "model")


def write(path: Path, *rows: dict[str, Any]) -> list[str]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(path)]


def read(task: str, model: str, folder: Path, more: dict[str, Any], **changes: Any) -> None:
    """Read two rows of a task with more columns, as a run does first."""
    row = ROWS[task] | more
    other = {**row, "label": "y"} if task == "classify" else row
    train = write(folder / "rows.jsonl", row, other)
    common = {"model": model, "task": task, "train": train, "output": str(folder / "run"), "epochs": 1, "device": "cpu",
              "dtype": "float32", "engine": "torch", **changes}  # fmt: skip
    if task in ("embed", "late"):
        finetune_retriever(RetrieverConfig(**common))
        return
    pair = {"pair": "passage"} if task == "rerank" else {}
    check_inputs(FinetuneConfig(columns=changes.pop("columns", Columns(**pair)), **common))


@pytest.mark.parametrize("task", ROWS)
def test_columns_that_are_nothing_to_learn_from_pass(task: str, model: str, tmp_path: Path) -> None:
    read(task, model, tmp_path, HARMLESS)


@pytest.mark.parametrize(
    "task, column, value",
    [
        *[("embed", name, "a land") for name in
          ("neg", "negative_a", "negatives_1", "hard_negative", "hard_negative_1", "Hard-Negatives", "positive_2",
           "positives", "pos", "negative1", "instruction")],
        *[("embed", name, 0.5) for name in ("score", "label", "labels", "margin", "teacher_scores", "negative_score")],
        ("late", "hard_negatives", ["a land"]), ("late", "score", 1),
        ("rerank", "scores", [1.0, 2.0]), ("rerank", "neg", "a land"), ("rerank", "negative_score", 1),
        ("rerank", "positive_1", "a land"),
        ("classify", "text_pair", "a land"), ("classify", "sentence2", "a land"), ("classify", "labels", ["x"]),
        ("multilabel", "hypothesis", "a land"), ("regress", "sentence2", "a land"), ("regress", "score", 2.0),
        ("choose", "scores", [1, 2]), ("tag", "label", "x"), ("extract", "label", 1),
    ],
)  # fmt: skip
def test_what_looks_like_something_to_learn_from_is_refused(
    task: str, column: str, value: Any, model: str, tmp_path: Path
) -> None:
    said = f"rows.jsonl:1: found the column '{column}', which `task={task}` does not read, expected "
    with pytest.raises(InputError, match=said) as caught:
        read(task, model, tmp_path, {column: value})
    assert f"`ignore_columns={column}`" in str(caught.value) and not (tmp_path / "run").exists()
    read(task, model, tmp_path, {column: value}, ignore_columns=[column])
    read(task, model, tmp_path, {column: None}, output=str(tmp_path / "other"))


def test_a_second_text_is_read_where_it_is_named(model: str, tmp_path: Path) -> None:
    config = FinetuneConfig(
        model=model, task="classify", output=str(tmp_path / "run"), device="cpu", columns=Columns(text="sentence1"),
        train=write(tmp_path / "a.jsonl", *({"sentence1": "a", "sentence2": "b", "label": n} for n in (0, 1))),
    )  # fmt: skip
    with pytest.raises(InputError, match="found the column 'sentence2'.*or read it with `columns.pair=sentence2`"):
        finetune(config)
    check_inputs(replace(config, columns=Columns(text="sentence1", pair="sentence2")))


def test_negatives_are_read_in_their_order() -> None:
    row = {**QUESTION, "negative_10": "f", "negative_2": "d", "negative": "a", "negative_1": "c", "negative_3": None}
    (example,) = examples_of_rows([Row(row, "f:1")], retrieval_task("embed"))
    assert example.others == ["a", "c", "d", "f"]
    (example,) = examples_of_rows(
        [Row({**QUESTION, "negatives": ["x", "y"], "scores": [3, 2, 1]}, "f:1")], retrieval_task("embed")
    )
    assert example.others == ["x", "y"] and example.scores is not None
    (example,) = examples_of_rows([Row({**row, "scores": [5, 4, 3, 2, 1]}, "f:1")], retrieval_task("embed"))
    assert example.scores is not None and len(example.scores) == 5
    for change, said in (
        ({"negatives": ["x"]}, "f:1: found negatives and negative, expected one of them"),
        ({"negative_1": " "}, "f:1: negative_1 is empty, expected text"),
        ({"negative_2": ["x"]}, "f:1: negative_2 is list, expected text"),
        ({"scores": [2, 1]}, "f:1: found 2 scores, expected 5"),
    ):
        with pytest.raises(InputError, match=said):
            examples_of_rows([Row({**row, **change}, "f:1")], retrieval_task("embed"))


def test_a_run_learns_from_every_negative(model: str, tmp_path: Path) -> None:
    lines = ["query,positive,negative_1,negative_2,id", "a,b,c,d,1", "e,f,g,h,2"]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    words = [
        model, "--task", "embed", "--train", str(tmp_path / "rows.csv"), "--output", str(tmp_path / "run"),
        "--device", "cpu",
    ]  # fmt: skip
    done = modernbert("finetune", *words)
    assert done.returncode == 0 and "passages: 6 texts" in done.stdout, done.stderr


def test_rows_with_negatives_are_pairs_to_rerank(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**QUESTION, "negative_1": "a land", "negative_2": "rivers"}, {**QUESTION, "negative": "a land"}]
    config = FinetuneConfig(
        model=model, task="rerank", output=str(tmp_path / "run"), device="cpu", dtype="float32", engine="torch",
        epochs=1, train=write(tmp_path / "rows.jsonl", *rows), columns=Columns(text="query", pair="positive"),
    )  # fmt: skip
    finetune(replace(config, test=config.train))
    assert "train: 5 rows" in capsys.readouterr().out
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())["test"]
    assert set(scores) == {"average_precision", "roc_auc", "accuracy"}
    for row, said in (
        ({**rows[0], "label": 1}, "rows.jsonl:1: found label and negatives, expected one of them"),
        ({**rows[0], "scores": [1, 0, 0]}, "rows.jsonl:1: found the column 'scores'"),
        ({**rows[0], "positive": ""}, "rows.jsonl:1: positive is empty"),
    ):
        with pytest.raises(InputError, match=said):
            finetune(replace(config, output=str(tmp_path / "other"), train=write(tmp_path / "rows.jsonl", row)))


@pytest.mark.parametrize(
    "task, columns, said",
    [
        ("tag", Columns(pair="b"), "columns.pair: found 'b', but tag reads words, tags, text, spans"),
        ("choose", Columns(pair="b"), "columns.pair: found 'b', but choose reads text, choices, label"),
        ("classify", Columns(answers="b"), "columns.answers: found 'b', but classify reads text, pair, label"),
        ("extract", Columns(label="b"), "columns.label: found 'b', but extract reads text, pair, answers"),
    ],
)
def test_a_column_that_the_task_does_not_read_is_not_named(
    task: str, columns: Columns, said: str, model: str, tmp_path: Path
) -> None:
    config = FinetuneConfig(model=model, task=task, train=["x.tsv"], output=str(tmp_path / "run"), columns=columns)
    with pytest.raises(InputError, match=said):
        finetune(config)
