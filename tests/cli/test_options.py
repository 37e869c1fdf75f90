"""Each option of a command takes effect: its change is visible from outside, through the command line."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from commands import modernbert, run_here

from benchmarks.paper import PaperConfig
from benchmarks.paper import run as run_paper
from cli.conftest import succeed
from modernbert import ModernBert
from modernbert.checkpoints.folder import ModelFolder
from modernbert.model.heads import MaskedLM
from modernbert.serving.request_guard import Limits
from modernbert.serving.serve import ServeConfig
from modernbert.serving.serve import run as serve
from modernbert.tasks.task import start_classifier

CPU = ["--device", "cpu", "--dtype", "float32", "--engine", "torch"]
TEXTS = ["The capital of country 3", "rivers", "a city " * 20]
# Longer than the 1,000 tokens that the model takes.
TOO_LONG = "city " * 1_500


@pytest.fixture(scope="session")
def lines(folder: Path) -> Path:
    """A file of texts in rows, the last of which is too long."""
    (folder / "lines.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS, TOO_LONG]))
    return folder / "lines.jsonl"


@pytest.fixture(scope="session")
def heads(folder: Path, small_bert: ModernBert) -> dict[str, Path]:
    """Model folders of a reranker and a tagger with random heads."""
    assert isinstance(small_bert.model, MaskedLM)
    made = {}
    for task, labels in (("rerank", ["score"]), ("tag", ["O", "B-place", "I-place"])):
        made[task] = folder / task
        model = start_classifier(small_bert.model, task, labels, seed=3)
        ModelFolder.save(made[task], model, small_bert.tokenizer, 1_000)
    return made


def load(folder: Path) -> ModernBert:
    return ModernBert.load(folder, device="cpu", dtype="float32", engine="torch")


def json_lines(printed: str) -> list[Any]:
    return [json.loads(line) for line in printed.splitlines()]


# What shows a config, and stops.


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["tokenizer", "--input", "a.txt", "--output", "out", "--vocab-size", "512", "--print"], {"vocab_size": 512}),
        (["prepare", "--input", "a.txt", "--tokenizer", "t", "--output", "out", "--executor", "ray", "--print"],
         {"executor": "ray", "input": ["a.txt"]}),
        (["pretrain", "--output", "out", "--tokenizer", "t", "--data.sources.a", "b", "--phases.x.tokens", "9",
          "--phases.x.lr", "1", "--print"], {"data": {"sources": {"a": "b"}, "heldout": {}, "verify": True}}),
        (["finetune", "m", "--task", "late", "--train", "t", "--output", "out", "--lr", "3", "--print"],
         {"lr": 3.0, "task": "late"}),
        (["grow", "s", "--output", "out", "--shape.hidden-size", "96", "--print"], {"shape": {"hidden_size": 96}}),
        (["average", "--output", "out", "--run", "r", "--best", "7", "--no-last", "--print"],
         {"best": 7, "last": False}),
        (["embed", "m", "--config", "embed.yaml", "--print"], {"pooling": "cls", "output": "out"}),
    ],
)  # fmt: skip
def test_print_shows_the_whole_config_and_does_nothing(
    words: list[str], shown: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "embed.yaml").write_text("pooling: cls\noutput: out\n")
    printed = yaml.safe_load(succeed(*words))
    assert shown.items() <= printed.items() and printed["output"] == "out"
    assert list(tmp_path.iterdir()) == [tmp_path / "embed.yaml"]


# An error names the option.

REFUSED = [
    (["fill-mask", "{bert}", "a [MASK]", "--device", "nowhere"], "device: found 'nowhere'"),
    (["fill-mask", "{bert}", "a [MASK]", "--dtype", "int4"], "--dtype: found 'int4'"),
    (["fill-mask", "{bert}", "a [MASK]", "--engine", "none"], "--engine: found 'none'"),
    (["embed", "{bert}", "a", "--device", "nowhere"], "device: found 'nowhere'"),
    (["embed", "{bert}", "a", "--dtype", "int4"], "--dtype: found 'int4'"),
    (["embed", "{bert}", "a", "--engine", "none"], "--engine: found 'none'"),
    (["classify", "{bert}", "a", "--device", "nowhere"], "device: found 'nowhere'"),
    (["classify", "{bert}", "a", "--dtype", "int4"], "--dtype: found 'int4'"),
    (["classify", "{bert}", "a", "--engine", "none"], "--engine: found 'none'"),
    (["tag", "{bert}", "a", "--device", "nowhere"], "device: found 'nowhere'"),
    (["tag", "{bert}", "a", "--dtype", "int4"], "--dtype: found 'int4'"),
    (["tag", "{bert}", "a", "--engine", "none"], "--engine: found 'none'"),
    (["rerank", "{bert}", "a", "b", "--device", "nowhere"], "device: found 'nowhere'"),
    (["rerank", "{bert}", "a", "b", "--dtype", "int4"], "--dtype: found 'int4'"),
    (["rerank", "{bert}", "a", "b", "--engine", "none"], "--engine: found 'none'"),
    (["index", "{bert}", "--input", "{texts}", "--output", "out", "--device", "nowhere"], "device: found 'nowhere'"),
    (["index", "{bert}", "--input", "{texts}", "--output", "out", "--dtype", "int4"], "--dtype: found 'int4'"),
    (["index", "{bert}", "--input", "{texts}", "--output", "out", "--engine", "none"], "--engine: found 'none'"),
    (["serve", "{bert}", "--port", "0", "--device", "nowhere"], "device: found 'nowhere'"),
    (["serve", "{bert}", "--port", "0", "--dtype", "int4"], "--dtype: found 'int4'"),
    (["serve", "{bert}", "--port", "0", "--engine", "none"], "--engine: found 'none'"),
    (["fill-mask", "{bert}", "--input", "{rows}", "--text-field", "other"], "no field 'other', found 'body'"),
    (["fill-mask", "{bert}", "--input", "{texts}/some.txt", "--on-error", "pass"], "--on-error: found 'pass'"),
    (["embed", "{bert}", "--input", "{rows}", "--text-field", "other"], "no field 'other', found 'body'"),
    (["embed", "{bert}", "--input", "{texts}/some.txt", "--on-error", "pass"], "--on-error: found 'pass'"),
    (["classify", "{bert}", "--input", "{rows}", "--text-field", "other"], "no field 'other', found 'body'"),
    (["classify", "{bert}", "--input", "{texts}/some.txt", "--on-error", "pass"], "--on-error: found 'pass'"),
    (["tag", "{bert}", "--input", "{rows}", "--text-field", "other"], "no field 'other', found 'body'"),
    (["tag", "{bert}", "--input", "{texts}/some.txt", "--on-error", "pass"], "--on-error: found 'pass'"),
    (["rerank", "{bert}", "what", "--input", "{rows}", "--text-field", "other"], "no field 'other', found 'body'"),
    (["rerank", "{bert}", "what", "--input", "{texts}/some.txt", "--on-error", "pass"], "--on-error: found 'pass'"),
    (["embed", "{bert}", "a", "--processes", "0"], "--processes: found '0'"),
    (["embed", "{bert}", "a", "--executor", "spark"], "--executor: found 'spark'"),
    (["embed", "{bert}", "a", "--overflow", "fold"], "--overflow: found 'fold'"),
    (["classify", "{classifier}", "a", "--overflow", "fold"], "--overflow: found 'fold'"),
    (["serve", "{bert}", "--port", "0", "--host", ""], "host: is empty"),
    (["prepare", "--input", "{texts}", "--tokenizer", "{bert}", "--output", "out", "--executor", "spark"],
     "--executor: found 'spark', expected 'local' or 'ray'"),
    (["prepare", "--input", "{texts}", "--tokenizer", "{bert}", "--output", "out", "--heldout", "1"],
     "--heldout: found '1', expected less than 1"),
    (["prepare", "--input", "{texts}", "--tokenizer", "{bert}", "--output", "out", "--processes", "0"],
     "--processes: found '0', expected at least 1"),
    (["tokenizer", "--input", "{texts}", "--output", "out", "--vocab-size", "500"],
     "--vocab-size: found '500', expected a multiple of 64"),
    (["evaluate", "retrieval", "{bert}", "{collection}", "--device", "nowhere"], "device: found 'nowhere'"),
    (["evaluate", "retrieval", "{bert}", "{collection}", "--dtype", "int4"], "--dtype: found 'int4'"),
    (["evaluate", "retrieval", "{bert}", "{collection}", "--split", "none"], "none.tsv"),
    (["evaluate", "retrieval", "{bert}", "{collection}", "--index", "{texts}/some.txt"], "some.txt"),
    (["evaluate", "glue", "{bert}", "{texts}", "--output", "out", "--grid", "all"], "--grid: found 'all'"),
    (["search", "{texts}", "a", "--top-k", "0"], "--top-k"),
    (["search", "{texts}", "a", "--how", "foo"], "--how: found 'foo'"),
    (["search", "{texts}", "a"], "is not an index"),
    (["plan", "--count", "0"], "--count: found '0', expected at least 1"),
    (["plan", "--length", "2"], "--length: found '2', expected at least 3"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_a_wrong_value_is_refused_by_the_name_of_its_field(
    words: list[str], said: str, bert: Path, classifier_run: Path, collection: Path, folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (folder / "texts").mkdir(exist_ok=True)
    (folder / "texts" / "some.txt").write_text("a text\n")
    (folder / "rows.jsonl").write_text('{"body": "a text"}\n')
    names = {
        "bert": bert,
        "classifier": classifier_run / "model",
        "collection": collection,
        "texts": folder / "texts",
        "rows": folder / "rows.jsonl",
    }
    words = [word.format(**names) for word in words]
    if words[0] == "serve":  # it listens already
        served = modernbert(*words)
        status, stderr = served.returncode, served.stderr
    else:  # in this process, for there are many
        done = run_here(*words)
        status, stderr = done.returncode, done.stderr
    assert status == 2 and said in stderr, stderr
    assert list(tmp_path.iterdir()) == []


# Commands for texts.


def test_options_of_embed(bert: Path, lines: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(lines.read_text().replace('"text"', '"body"'))
    out = tmp_path / "v.npy"
    succeed(
        "embed", bert, "--input", tmp_path / "rows.jsonl", "--text-field", "body", "--output", out, "--pooling", "cls",
        "--no-normalize", "--prompt", "query: ", "--truncate-dim", 8, "--overflow", "truncate", "--precision",
        "float16", "--processes", 1, *CPU,
    )  # fmt: skip
    found, model = np.load(out), load(bert)
    asked: dict[str, Any] = {
        "pooling": "cls", "normalize": False, "prompt": "query: ", "truncate_dim": 8, "overflow": "truncate",
        "precision": "float16",
    }  # fmt: skip
    expected = model.embed([*TEXTS, TOO_LONG], **asked)
    assert found.dtype == np.float16 and found.shape == (4, 8)
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), atol=2e-3)
    # Each of them is heard: without one, the vectors are others.
    for name, usual in (("pooling", "mean"), ("normalize", True), ("prompt", "")):
        other = model.embed([*TEXTS, TOO_LONG], **asked | {name: usual})
        assert not np.allclose(other.astype(np.float32), found.astype(np.float32), atol=2e-3), name
    printed = succeed("embed", bert, *TEXTS[:2], "--prompt", "query: ", "--normalize", *CPU)
    np.testing.assert_allclose(json_lines(printed), model.embed(TEXTS[:2], prompt="query: "), atol=1e-5)


def test_options_of_fill_mask(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "masks.txt").write_text("The [MASK] of country 3\nA [MASK] of [MASK]\n")
    printed = json_lines(succeed("fill-mask", bert, "--input", tmp_path / "masks.txt", "--top-k", 2, "--json", *CPU))
    assert [[len(guesses) for guesses in row["masks"]] for row in printed] == [[2], [2, 2]]


def test_options_of_classify(classifier_run: Path, lines: Path) -> None:
    model = classifier_run / "model"
    printed = succeed("classify", model, "--input", lines, "--json", "--overflow", "truncate", *CPU)
    expected = load(model).classify([*TEXTS, TOO_LONG], overflow="truncate")
    assert [row["labels"] for row in json_lines(printed)] == [pytest.approx(each, abs=1e-5) for each in expected]
    shown = succeed("classify", model, TEXTS[0], "--top-k", 2, *CPU)
    assert "yes" in shown and "no" in shown and not shown.startswith("{")
    assert ("yes" in (one := succeed("classify", model, TEXTS[0], *CPU))) is not ("no" in one)
    # Without --overflow the last text is refused.
    assert modernbert("classify", str(model), "--input", str(lines), *CPU).returncode == 2


def test_options_of_tag(heads: dict[str, Path], lines: Path) -> None:
    printed = json_lines(succeed("tag", heads["tag"], "--input", lines, "--json", "--overflow", "truncate", *CPU))
    expected = load(heads["tag"]).tag([*TEXTS, TOO_LONG], overflow="truncate")
    assert [len(row["spans"]) for row in printed] == [len(row) for row in expected]
    assert modernbert("tag", str(heads["tag"]), "--input", str(lines), *CPU).returncode == 2


def test_options_of_rerank(heads: dict[str, Path], lines: Path) -> None:
    printed = json_lines(
        succeed(
            "rerank", heads["rerank"], "what", "--input", lines, "--top-k", 2, "--json", "--overflow", "truncate", *CPU
        )
    )
    expected = load(heads["rerank"]).rerank("what", [*TEXTS, TOO_LONG], overflow="truncate")
    assert [row["score"] for row in printed] == pytest.approx([each.score for each in expected[:2]], abs=1e-5)
    assert len(printed) == 2
    assert modernbert("rerank", str(heads["rerank"]), "what", "--input", str(lines), *CPU).returncode == 2


# Indexing and searching.


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    rows = [{"body": f"The country {n} has {n} rivers. " * 8} for n in range(6)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.jsonl").write_text(text + '{"body": 3}\n')
    return tmp_path / "notes"


def test_options_of_index_and_search(bert: Path, heads: dict[str, Path], notes: Path, tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    model = shutil.copytree(bert, tmp_path / "model")
    out, fine = tmp_path / "index", tmp_path / "fine"
    refused = modernbert("index", str(model), "--input", str(notes), "--output", str(out), "--text-field", "body", *CPU)
    assert refused.returncode == 2 and "a.jsonl:7" in refused.stderr
    said = succeed(
        "index", model, "--input", notes, "--output", out, "--text-field", "body", "--on-error", "skip", *CPU
    )
    assert "1 broken skipped" in said and "6 new or changed" in said
    more = succeed("index", model, "--input", notes, "--output", fine, "--text-field", "body", "--on-error", "skip",
                   "--passage-tokens", 16, *CPU)  # fmt: skip
    passages = [int(re.search(r": (\d+) passages", line)[1]) for line in (said, more)]  # type: ignore[index]
    assert passages[0] == 6 and passages[1] > 12
    model.rename(tmp_path / "moved")
    asked = ["search", str(out), "rivers of country 3", "--device", "cpu", "--dtype", "float32"]
    assert "if the model was moved, name its folder with --model" in modernbert(*asked).stderr
    asked += ["--model", str(tmp_path / "moved"), "--json"]
    (first, *rest) = json_lines(succeed(*asked, "--top-k", 2))
    assert len(rest) == 1 and first["origin"].endswith("a.jsonl:4")
    ranked = [json_lines(run_here(*map(str, asked), "--how", how).stdout) for how in ("hybrid", "vectors", "words")]
    assert len({tuple(hit["score"] for hit in hits) for hits in ranked}) == 3
    again = json_lines(succeed(*asked, "--top-k", 3, "--rerank", heads["rerank"], "--how", "words"))
    judged = load(heads["rerank"]).rerank("rivers of country 3", [hit["text"] for hit in again])
    assert [hit["score"] for hit in again] == pytest.approx([each.score for each in judged], abs=1e-4)
    assert len(again) == 3 and [hit["score"] for hit in again][:2] != [first["score"], rest[0]["score"]]
    asked = ["search", str(out), "a", "--model", str(tmp_path / "moved")]
    for wrong, said in (
        (["--how", "foo"], "--how: found 'foo'"),
        (["--rerank", "none"], "none"),
        (["--device", "nowhere"], "device: found 'nowhere'"),
        (["--dtype", "int4"], "--dtype: found 'int4'"),
    ):  # in this process, which imports lancedb once
        done = run_here(*asked, *wrong)
        assert done.returncode == 2 and said in done.stderr, done.stderr


# Scoring.


def test_options_of_evaluate_retrieval(bert: Path, collection: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "out.json", load(bert)
    (tmp_path / "some").mkdir()
    other = shutil.copytree(collection, tmp_path / "some" / "other")
    judged = (other / "qrels" / "train.tsv").read_text().splitlines(keepends=True)
    (other / "qrels" / "train.tsv").write_text("".join(judged[:4]))
    succeed(
        "evaluate", "retrieval", bert, other, "--split", "train", "--pooling", "cls", "--query-prompt", "q: ",
        "--document-prompt", "d: ", "--query-length", 9, "--document-length", 11, "--output", out, "--bm25", "--device",
        "cpu", "--dtype", "float32",
    )  # fmt: skip
    said = json.loads(out.read_text())
    assert [row["split"] for row in said["rows"]] == ["train", "train"]
    assert [row["system"] for row in said["rows"]] == [str(bert), "BM25"]
    assert said["rows"][0]["num_queries"] == 3
    prompts = {"query_prompt": "q: ", "document_prompt": "d: "}
    asked = {"pooling": "cls", "query_length": 9, "document_length": 11, **prompts}
    assert asked.items() <= said["settings"]["vectors"].items()
    # Documents of 11 tokens are cut at 11, and queries at 9.
    assert said["rows"][0]["num_truncated"] > 30 and model.vectors.pooling == "mean"


def test_options_of_evaluate_glue(bert: Path, rows: dict[str, Path], tmp_path: Path) -> None:
    for task in ("cola", "sst2"):
        (tmp_path / "glue" / task).mkdir(parents=True)
        for name in ("train", "dev"):
            text = rows[name].read_text().replace("text\t", "sentence\t", 1).replace("\tyes\t", "\t1\t")
            (tmp_path / "glue" / task / f"{name}.tsv").write_text(text.replace("\tno\t", "\t0\t"))
    succeed(
        "evaluate", "glue", bert, tmp_path / "glue", "--output", tmp_path / "results" / "mine", "--tasks", "cola",
        "--grid", "paper", "--lrs", "1e-3", "--weight-decays", "0.25", "--epochs", "2", "--seeds", "7",
        "--max-len", "12", "--patience", "1", "--device", "cpu", "--dtype", "float32",
    )  # fmt: skip
    mine = tmp_path / "results" / "mine"
    assert [path.name for path in mine.iterdir() if path.is_dir()] == ["cola"]
    (run,) = (path for path in (mine / "cola").iterdir() if path.is_dir())
    assert run.name == "lr0.001-wd0.25-ep2-seed7"
    config = yaml.safe_load((run / "config.yaml").read_text())
    asked = {"max_len": 12, "patience": 1, "device": "cpu", "dtype": "float32", "seed": 7}
    assert asked.items() <= config.items()
    best = json.loads((mine / "glue.json").read_text())["cola"]["best"]
    # The table of the paper reads these files.
    assert list(run_paper(PaperConfig(tmp_path / "results"))) == ["mine"] and 0 <= best <= 1


def test_options_of_sweep(bert: Path, rows: dict[str, Path], tmp_path: Path) -> None:
    succeed(
        "sweep", bert, "--task", "classify", "--train", rows["train"], "--dev", rows["dev"], "--batch", 32, "--output",
        tmp_path / "sweep", "--dtype", "float32", "--dropout", "0.0", "--sweep.lr", "1e-3", "--sweep.lr", "1e-4",
        "--sweep.weight-decay", "0.25", "--sweep.epochs", "1", "--sweep.seed", "5", "--sweep.device", "cpu",
    )  # fmt: skip
    said = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    tried = [[run[key] for key in ("lr", "weight_decay", "epochs", "seed")] for run in said["runs"]]
    assert tried == [[1e-3, 0.25, 1, 5], [1e-4, 0.25, 1, 5]]
    configs = [yaml.safe_load(path.read_text()) for path in (tmp_path / "sweep").glob("lr*/config.yaml")]
    assert [config["device"] for config in configs] == ["cpu", "cpu"]


# Planning, exporting.


def test_options_of_plan(tmp_path: Path) -> None:
    config = ["--phases.one.tokens", "100000000", "--phases.one.lr", "1e-3", "--phases.one.max-len", "1024",
              "--phases.one.max-micro-batches", "48", "--model.preset", "base"]  # fmt: skip
    found = [
        json.loads(succeed("plan", *config, "--device", "a100", "--json", *more))["devices"]["a100"]
        for more in ([], ["--count", "2"], ["--length", "128"])
    ]
    assert [each["count"] for each in found] == [8, 2, 8]
    forecasts = [each["phases"]["one"] for each in found]
    assert [each["length"] for each in forecasts] == [1_024, 1_024, 128]
    assert forecasts[1]["hours"] == pytest.approx(forecasts[0]["hours"] * 4, rel=0.3)
    assert forecasts[1]["device_hours"] == pytest.approx(forecasts[0]["device_hours"], rel=0.3)
    assert succeed("plan", *config, "--count", "3", "--length", "128").count("3 x H100") == 1
    shapes = json.loads(succeed("plan", *config, "--device", "a100", "--json", "--shapes"))["shapes"]
    assert shapes and not json.loads(succeed("plan", *config, "--device", "a100", "--json"))["shapes"]


def test_options_of_export(bert: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "texts.txt").write_text("a city\nrivers of a land\n")
    assert "int8" not in succeed("export", bert, "--output", tmp_path / "plain")
    said = succeed("export", bert, "--output", tmp_path / "both", "--int8", "--input", tmp_path / "texts.txt")
    assert "int8: least cosine" in said
    counted = [
        json.loads((tmp_path / name / "export.json").read_text())["verified"]["documents"] for name in ("plain", "both")
    ]
    assert counted[1] == counted[0] + 2


# Serving.


@pytest.fixture
def server(bert: Path) -> Iterator[tuple[str, httpx.Client]]:
    command = [
        "-m", "modernbert", "serve", str(bert), "--host", "localhost", "--port", "0", "--api-key", "secret",
        "--batch-tokens", "64", "--queue-tokens", "300", "--max-requests", "7", "--max-bytes", "2000", "--timeout",
        "2", "--max-wait", "50", "--batch-seconds", "0.25", *CPU,
    ]  # fmt: skip
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    url = next(found[0] for line in process.stderr if (found := re.search(r"http://\S+:\d+", line)))
    client = httpx.Client(base_url=url, headers={"Authorization": "Bearer secret"}, timeout=60)
    for _ in range(300):
        if client.get("/ready").status_code == 200:
            break
        time.sleep(0.1)
    yield url, client
    client.close()
    process.kill()
    process.wait()
    process.stderr.close()


def test_options_of_serve(server: tuple[str, httpx.Client]) -> None:
    url, client = server
    assert httpx.post(f"{url}/embed", json={"inputs": "a"}).status_code == 401  # --api-key
    assert client.post("/embed", json={"inputs": "a"}).status_code == 200
    info = client.get("/info").json()
    assert info["max_concurrent_requests"] == 7 and info["max_batch_tokens"] == 64
    assert info["model_dtype"] == "float32"
    assert client.post("/embed", json={"inputs": "a" * 3000}).status_code == 413  # --max-bytes
    body = {"inputs": ["city " * 60] * 6}
    with ThreadPoolExecutor(6) as pool:  # more than may wait: --queue-tokens
        answers = list(pool.map(lambda _: client.post("/embed", json=body), range(12)))
    assert {answer.status_code for answer in answers} == {200, 429}


def test_limits_of_serve_reach_the_scheduler_and_the_guard(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[Any] = []

    class Stop(Exception):
        """Raised where the server would begin."""

    def make_app(model: ModernBert, scheduler: Any, settings: Any) -> None:
        received.append(settings.limits)
        raise Stop

    def make_scheduler(*given: Any, **named: Any) -> None:
        received.append((given, named))

    monkeypatch.setattr("modernbert.serving.serve._listen", lambda host, port: None)
    monkeypatch.setattr("modernbert.serving.app.make_app", make_app)
    monkeypatch.setattr("modernbert.serving.scheduler.Scheduler", make_scheduler)
    config = ServeConfig(
        str(bert), port=0, device="cpu", batch_tokens=64, queue_tokens=300, max_wait=0.75, batch_seconds=0.25,
        max_requests=7, max_bytes=2_000, timeout=2.0, api_key="secret",
    )  # fmt: skip
    with pytest.raises(Stop):
        serve(config)
    (given, named), limits = received
    assert given[1:] == (64, 300) and named == {"wait_s": 0.75, "batch_s": 0.25}
    assert limits == Limits(7, 2_000, 2.0, "secret")


def test_null_is_a_choice_where_it_is_one_and_no_value_elsewhere() -> None:
    done = modernbert("embed", "x", "--on-error", "null", "--prompt", "null", "--print")
    assert "on_error: 'null'\n" in done.stdout and "prompt: null\n" in done.stdout
