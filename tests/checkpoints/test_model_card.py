"""Model cards: every written folder has one, whose metadata, code and scores are right."""

import importlib.util
import io
import json
import math
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import metadata_load

import modernbert
from modernbert import ModernBert
from modernbert.checkpoints.folder import ModelFolder
from modernbert.checkpoints.loading_examples import FOLDER
from modernbert.checkpoints.model_card import ModelCard, Scores
from modernbert.cli.main import run as run_command
from modernbert.model.embedding_config import EmbeddingConfig
from modernbert.safe_files import is_one_line
from modernbert.tasks.task import known_tasks, start_classifier

QUICK: dict[str, Any] = {"device": "cpu", "dtype": "float32", "epochs": 1}
# Of the Hub's documentation (model cards; tasks).
RELATIONS = {"adapter", "finetune", "merge", "quantized"}
PIPELINES = {"fill-mask", "feature-extraction", "text-classification", "token-classification", "question-answering",
             "multiple-choice", "sentence-similarity", "text-ranking"}  # fmt: skip
LIBRARIES = {"transformers", "sentence-transformers", "PyLate", None}
HOSTILE = ["a\n---\nlicense: mit", "`` ` ``", "| x | y |", "<script>", "---", "", " ", "\"quotes' #: [", "\u2028\x00"]


@pytest.fixture(scope="module")
def start(small_bert: ModernBert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "model"
    small_bert.save(folder)
    return folder


def rows_of(task: str) -> list[dict[str, Any]]:
    """Return rows of a task, each with the text of one of two classes."""
    texts = [f"the {'city' if number % 2 else 'land'} of country {number}" for number in range(24)]
    labels: dict[str, Any] = {
        "classify": lambda n: {"label": "city" if n % 2 else "land"},
        "multilabel": lambda n: {"label": ["city"] if n % 2 else ["land", "country"]},
        "regress": lambda n: {"label": n % 2 + 0.5},
        "rerank": lambda n: {"passage": "a city", "label": n % 2},
        "tag": lambda n: {"words": texts[n].split(), "tags": ["O", "B-x", "O", "O", "O"]},
        "choose": lambda n: {"choices": ["a city", "a land", "rivers"], "label": n % 2},
        "extract": lambda n: {"context": "it is a city", "answers": {"text": ["city"], "answer_start": [8]}},
        "embed": lambda n: {"positive": f"country {n} is there"},
        "late": lambda n: {"positive": f"country {n} is there"},
    }
    first = "query" if task in ("embed", "late") else "text"
    return [({} if task == "tag" else {first: text}) | labels[task](number) for number, text in enumerate(texts)]


def check_card(folder: Path) -> dict[str, Any]:
    """Check the metadata of a card, run its code, and return the metadata."""
    text = (folder / "README.md").read_text()
    data = metadata_load(folder / "README.md")
    assert data is not None and data["pipeline_tag"] in PIPELINES and data.get("library_name") in LIBRARIES
    assert data.get("base_model_relation") in {*RELATIONS, None} and "license" not in data and "language" not in data
    assert all(isinstance(tag, str) for tag in data["tags"])
    assert str(Path.home()) not in text and "/tmp" not in text and str(folder) not in text
    examples = re.findall(r"^With ([^\n]+):\n\n```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert examples
    for library, code in examples:
        assert FOLDER in code
        module = re.search(r"from (\w+)(?:\.\w+)* import", code.replace("import numpy as np\n", ""))
        assert module, library
        if importlib.util.find_spec(module[1]):
            with redirect_stdout(io.StringIO()):
                exec(compile(code.replace(FOLDER, str(folder)), library, "exec"), {})
    return data


def values_in(data: dict[str, Any], split: str) -> dict[str, float]:
    """Return the scores of a split in the metadata."""
    return {
        metric["name"]: metric["value"]
        for result in data["model-index"][0]["results"]
        if result["dataset"]["split"] == split
        for metric in result["metrics"]
    }


@pytest.mark.parametrize("task", known_tasks())
def test_a_fine_tuned_folder_has_a_card(task: str, start: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows_of(task)))
    options: dict[str, Any] = {"dev": file, "test": file}
    if task in ("embed", "late"):
        options = {"batch": 8, "vectors": {"document_length": 64, "query_length": 16}}
    if task in ("rerank", "extract"):
        options["columns"] = {"pair": "passage" if task == "rerank" else "context"}
    folder = modernbert.finetune(start, task=task, train=file, output=tmp_path / "run", **QUICK, **options)
    data = check_card(folder)
    assert "base_model" not in data  # a local folder
    assert "- Epochs: 1" in (folder / "README.md").read_text()
    if task in ("embed", "late"):
        assert data["pipeline_tag"] == "sentence-similarity"
        return
    scores = json.loads((folder.parent / "scores.json").read_text())
    for split in ("dev", "test"):
        assert values_in(data, split) == {name: value for name, value in scores[split].items() if math.isfinite(value)}


def test_the_command_of_a_card_makes_the_same_folder(start: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of("classify")))
    folder = modernbert.finetune(
        start, task="classify", train="rows.jsonl", output="run", lr=1e-3, class_weights="balanced", **QUICK
    )
    text = (folder / "README.md").read_text()
    (command,) = re.findall(r"```sh\nmodernbert (.*)\n```", text)
    words = [{"OUTPUT": "again", start.name: str(start)}.get(word, word) for word in shlex.split(command)]
    run_command([*words, "--device", "cpu"])
    for path in sorted(folder.iterdir()):
        assert path.read_bytes() == (Path("again/model") / path.name).read_bytes(), path.name


def test_pretraining_growing_averaging_and_saving_write_cards(start: Path, make_texts: Any, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("\n\n".join(make_texts(80, seed=5)))
    phase = {"tokens": 1_024, "max_len": 64, "micro_batch_tokens": 256, "max_micro_batches": 1, "warmup_tokens": 0}
    folder = modernbert.pretrain(
        config="pretrain/adapt", init_from=str(start), text=str(tmp_path / "corpus.txt"), output=tmp_path / "run",
        phases={"adapt": phase}, heldout=0.3, txt_unit="paragraph", device="cpu", dtype="float32",
    )  # fmt: skip
    data = check_card(folder)
    assert data["pipeline_tag"] == "fill-mask" and data["library_name"] == "transformers"
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row for row in log if row["kind"] == "heldout"] and values_in(data, "heldout")["loss"] > 0
    run_command(["average", str(folder), str(folder), "--output", str(tmp_path / "mean")])
    run_command(["grow", str(folder), "--preset", "base", "--shape.hidden-size", "128", "--shape.num-hidden-layers",
                 "5", "--shape.intermediate-size", "128", "--shape.num-attention-heads", "2",
                 "--output", str(tmp_path / "grown")])  # fmt: skip
    for name in ("mean", "grown"):
        check_card(tmp_path / name)


def test_a_card_that_was_edited_is_kept(start: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    ModernBert.load(start).save(folder)
    (folder / "README.md").write_text("# Mine\r\n")
    ModernBert.load(folder).save(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_bytes() == b"# Mine\r\n"
    (folder / "README.md").unlink()
    ModernBert.load(folder).save(tmp_path / "new")
    assert "Started from: `mine` (a local folder)" in (tmp_path / "new" / "README.md").read_text()
    check_card(tmp_path / "new")


def test_the_base_of_a_local_base_is_named(start: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    ModernBert.load(start).save(base)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in rows_of("classify")))
    cards = {
        "good": "---\nbase_model: owner/name\n---\n",
        "broken": "---\na: [\n---\n",
        "odd": "---\nbase_model: [1, '../x y']\n---\n",
    }
    for name, card in cards.items():
        (base / "README.md").write_text(card)
        folder = modernbert.finetune(base, task="classify", train=rows, output=tmp_path / name, **QUICK)
        assert check_card(folder).get("base_model") == ("owner/name" if name == "good" else None)


def test_an_exported_folder_has_a_card(start: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    run_command(["export", str(start), "--output", str(tmp_path / "onnx")])
    assert "onnx" in check_card(tmp_path / "onnx")["tags"]


def test_names_and_labels_of_others_break_neither_metadata_nor_markdown(small_bert: ModernBert, tmp_path: Path) -> None:
    card = ModelCard(
        method="A test.",
        command=shlex.join(["modernbert", *HOSTILE]),
        bases=HOSTILE,
        relation="finetune",
        data=[*HOSTILE, "https://me:secret@host/rows.csv?key=secret"],
        settings=dict.fromkeys(["Setting"], HOSTILE[0]),
        scores=[Scores("dev", {"accuracy": 0.5, "worse": float("nan")}, HOSTILE)],
    )
    labels = [label for label in HOSTILE if label and is_one_line(label)]  # others are refused
    model = start_classifier(small_bert.model, "classify", labels, seed=0)
    vectors = EmbeddingConfig(query_prompt=HOSTILE[0], document_prompt=HOSTILE[1])
    for number, kinds in enumerate(({"model": model}, {"model": small_bert.model, "vectors": vectors})):
        folder = tmp_path / str(number)
        ModelFolder.save(folder, tokenizer=small_bert.tokenizer, card=card, **kinds)  # type: ignore[arg-type]
        data = check_card(folder)
        assert data["model-index"][0]["results"][0]["metrics"] == [
            {"type": "accuracy", "value": 0.5, "name": "accuracy"}
        ]
        text = (folder / "README.md").read_text()
        assert "secret" not in text and "\x00" not in text and len(re.findall("^---$", text, re.MULTILINE)) == 2
        outside = re.sub(r"(`+)[^`].*?(?<!`)\1(?!`)", "", text.split("\n---\n", 1)[1], flags=re.DOTALL)
        assert "<script>" not in outside and "license" not in outside


def test_tokens_and_folders_are_no_part_of_a_command(start: Path, tmp_path: Path) -> None:
    secret = "hf_" + "a" * 34
    file = tmp_path / f"{secret}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows_of("classify")))
    folder = modernbert.finetune(start, task="classify", train=file, output=tmp_path / "run", **QUICK)
    text = (folder / "README.md").read_text()
    assert (
        secret not in text and "--train hf_....jsonl --epochs 1 --output OUTPUT" in text and str(tmp_path) not in text
    )


def test_loading_ignores_the_card(start: Path, tmp_path: Path) -> None:
    before = ModernBert.load(start, device="cpu")
    digest = ModelFolder(start).digest
    (start / "README.md").write_bytes(b"\xff---\nnot: [yaml")
    assert torch.equal(
        *(torch.from_numpy(each.embed("a city")) for each in (before, ModernBert.load(start, device="cpu")))
    )
    assert ModelFolder(start).digest == digest
