"""The commands as functions of the package: each has the effect and the options of its command."""

import inspect
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import modernbert
from modernbert import InputError, ModernBert, Tokenizer
from modernbert.cli.verbs import VERBS
from modernbert.data.shards import Shards

QUICK: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
VERB_OF = {
    "embed_files": "embed",
    "prepare": "prepare",
    "pretrain": "pretrain",
    "serve": "serve",
    "train_tokenizer": "tokenizer",
}


@pytest.fixture(scope="module")
def start(small_bert: ModernBert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "model"
    small_bert.save(folder)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.tsv"
    lines = [f"{'the city' if number % 2 else 'a river'} of country {number}\t{number % 2}" for number in range(40)]
    path.write_text("\n".join(["text\tlabel", *lines]) + "\n")
    return path


def test_a_tokenizer_is_trained_and_text_is_prepared_with_it(make_texts: Any, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("\n".join(make_texts(400, seed=5)))
    folder = modernbert.train_tokenizer(
        input=tmp_path / "corpus.txt", output=tmp_path / "tokenizer", vocab_size=512, txt_unit="line"
    )
    assert Tokenizer.load(folder).vocab_size == 512
    shards = modernbert.prepare(
        input=[str(tmp_path / "corpus.txt")], tokenizer=str(folder), output=tmp_path / "shards", heldout=0.2,
        txt_unit="line", processes=1,
    )  # fmt: skip
    assert sum(Shards.open(shards / split).num_docs for split in ("train", "heldout")) == 400


def test_a_model_is_pretrained_on_text(start: Path, make_texts: Any, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("\n\n".join(make_texts(60, seed=5)))
    phase = {"tokens": 1_024, "max_len": 64, "micro_batch_tokens": 256, "max_micro_batches": 1, "warmup_tokens": 0}
    folder = modernbert.pretrain(
        config="pretrain/adapt", init_from=str(start), text=str(tmp_path / "corpus.txt"), output=tmp_path / "run",
        phases={"adapt": phase}, log_every=2, **QUICK,
    )  # fmt: skip
    assert folder == tmp_path / "run" / "model" and len(ModernBert.load(folder).fill_mask("a [MASK]")) == 1
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log if row["kind"] == "step"] == [2, 4]


def test_a_model_is_fine_tuned_and_swept(start: Path, rows: Path, tmp_path: Path) -> None:
    given = {"task": "classify", "train": rows, "dev": [rows], "batch": 8, "epochs": 1, **QUICK}
    folder = modernbert.finetune(start, output=tmp_path / "run", lr=1e-3, **given)
    assert set(ModernBert.load(folder).classify(["the city"])[0]) == {"0", "1"}
    best = modernbert.sweep(start, output=tmp_path / "sweep", sweep={"lr": [1e-9, 1e-3]}, **given)
    assert best.parent.parent == tmp_path / "sweep" and len(list((tmp_path / "sweep").glob("lr*"))) == 2


def test_a_retriever_is_fine_tuned_and_evaluated(
    start: Path, write_collection: Callable[..., Path], tmp_path: Path
) -> None:
    collection = write_collection(tmp_path / "collection")
    (tmp_path / "mine.yaml").write_text("task: embed\nbatch: 4\n")
    folder = modernbert.finetune(
        start, config=tmp_path / "mine.yaml", train=collection, output=tmp_path / "run", epochs=1,
        vectors={"query_length": 16}, **QUICK,
    )  # fmt: skip
    assert ModernBert.load(folder).vectors.query_length == 16
    (row,) = modernbert.evaluate("retrieval", folder, collections=[collection], **QUICK)
    assert 0 <= row["ndcg_10"] <= 1


def test_glue_is_evaluated(start: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "glue" / "sst2").mkdir(parents=True)
    for split in ("train", "dev"):
        (tmp_path / "glue" / "sst2" / f"{split}.tsv").write_text(rows.read_text().replace("text", "sentence", 1))
    found = modernbert.evaluate(
        "glue", start, data=tmp_path / "glue", output=tmp_path / "out", epochs=[1], seeds=[0], **QUICK
    )
    assert 0 <= found["sst2"]["best"] <= 1


def test_files_are_embedded(start: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a city\nrivers of a land\n")
    output = tmp_path / "v.npy"
    assert modernbert.embed_files(start, input=tmp_path / "texts.txt", output=output, pooling="cls", **QUICK) == output
    expected = ModernBert.load(start, engine="cpu", **QUICK).embed(["a city", "rivers of a land"], pooling="cls")
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-6)


def test_a_model_is_served(start: Path) -> None:
    code = "import sys; from modernbert import serve; serve(sys.argv[1], port=0, device='cpu', dtype='float32')"
    command = [sys.executable, "-c", code, str(start)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = next(line for line in process.stderr if "http://" in line).split()[1].rstrip(",")
        answer = httpx.post(f"{url}/embed", json={"inputs": "a text"}, timeout=60)
        process.send_signal(signal.SIGTERM)
    assert len(answer.json()[0]) == 64


def test_arguments_are_checked_like_options(start: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="^max_length: found 1, expected at least 3"):
        modernbert.train_tokenizer(output=tmp_path / "x", max_length=1)
    with pytest.raises(InputError, match="^vocab_sise: unknown option. Did you mean vocab_size"):
        modernbert.train_tokenizer(output=tmp_path / "x", vocab_sise=512)  # type: ignore[call-overload]
    with pytest.raises(InputError, match="^Missing required option task"):
        modernbert.finetune(start, train="x.tsv", output=tmp_path / "x")
    with pytest.raises(InputError, match="^negatives: unknown option"):
        modernbert.finetune(start, task="classify", train="x.tsv", output=tmp_path / "x", negatives=3)
    with pytest.raises(InputError, match="^benchmark: found 'glu', expected 'retrieval' or 'glue'"):
        modernbert.evaluate("glu", start)
    with pytest.raises(TypeError, match="too many positional arguments"):
        modernbert.prepare("corpus/", "tokenizer")  # type: ignore[call-overload]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", VERB_OF)
def test_a_function_has_the_options_of_its_command(name: str) -> None:
    schema = VERBS[VERB_OF[name]].load_options()
    function = getattr(modernbert, name)
    options = inspect.signature(schema).parameters
    assert list(inspect.signature(function).parameters) == [*options, "config"]
    assert all(f"\n    {option}" in function.__doc__ for option in options)


def test_functions_are_imported_when_they_are_used() -> None:
    code = "import sys, modernbert; modernbert.finetune; modernbert.serve; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_function_shows_its_options() -> None:
    for function in (modernbert.finetune, modernbert.sweep):
        shown = inspect.signature(function).parameters
        assert {"model", "output", "lr", "columns", "negatives", "config"} <= shown.keys()
        assert shown["model"].default is shown["output"].default is inspect.Parameter.empty
        # 3 for classify, 1 for embed.
        assert (shown["lr"].default, shown["epochs"].default) == (8e-5, ...)
        assert "    negatives: Number of hard negatives" in (inspect.getdoc(function) or "")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: modernbert.finetune("m", task="classify"), "Missing required option output."),
        (lambda: modernbert.finetune(task="classify", train="t", output="o"), "Missing required option model."),
        (lambda: modernbert.embed_files(output=Path("a.npy")), "Missing required option model."),
        (lambda: modernbert.evaluate("retrieval"), "Missing required option model."),
    ],
)
def test_a_missing_option_is_an_input_error(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        call()


def test_a_config_that_is_no_file_is_an_input_error() -> None:
    """In a new process, where no types are checked."""
    code = "import modernbert; modernbert.pretrain(config={'seed': 3})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "InputError: config: found dict, expected a YAML file or the name of a shipped config" in done.stderr
