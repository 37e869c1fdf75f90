"""The comparison of serving engines: only engines with equal vectors are timed; and the command on a small scale."""

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import serving
from benchmarks.serving import ServingConfig
from benchmarks.serving_engines import ENGINES, Engine, embed_all, load_engine, make_folder
from modernbert import ModernBert
from modernbert.console import p50_and_p95
from modernbert.errors import InputError
from modernbert.model.config import ModelConfig

pytest.importorskip("transformers")


def serving_shape(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.serving", *words]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving") / "model"
    make_folder(folder, ModelConfig.preset("tiny"))
    return folder


@pytest.mark.filterwarnings("ignore")  # what other libraries say of their own future
@pytest.mark.parametrize("name", [name for name in ENGINES if "compiled" not in name])
def test_every_engine_embeds_alike_in_any_batches(name: str, folder: Path, tmp_path: Path) -> None:
    documents = [np.random.default_rng(n).integers(100, 4_000, length) for n, length in enumerate((7, 150, 33, 2))]
    expected = embed_all(load_engine("modernbert-float32", folder, tmp_path), documents, 10_000)
    try:
        engine = load_engine(name, folder, tmp_path)
    except InputError as absent:
        pytest.skip(str(absent))
    for budget in (100, 10_000):
        found = embed_all(engine, documents, budget)
        assert found.shape == (4, 128) and found.dtype == np.float32
        assert serving._least_cosine(found, expected) > 0.999


def test_padded_engines_get_batches_within_the_budget_and_vectors_in_order() -> None:
    seen: list[list[int]] = []

    def embed(documents: list[np.ndarray]) -> np.ndarray:
        seen.append([len(document) for document in documents])
        return np.array([[float(document[0])] for document in documents], dtype=np.float32)

    documents = [np.full(length, number) for number, length in enumerate((3, 50, 4, 60, 1))]
    found = embed_all(Engine("", torch.float32, embed, is_padded=True), documents, budget_tokens=120)
    assert found[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert seen == [[60, 50], [4, 3, 1]]
    seen.clear()
    embed_all(Engine("", torch.float32, embed, is_padded=False), documents, budget_tokens=60)
    assert seen == [[3, 50, 4], [60], [1]]


def test_an_engine_with_other_vectors_is_not_timed(folder: Path) -> None:
    work = serving._Work("modernbert-float32", {"latency-16": [16]}, str(folder), 1, None)
    _, expected = serving._reference(work)
    right = expected["latency-16"]
    for wrong in (right[:, ::-1].copy(), np.full_like(right, np.nan)):
        rows, refused = serving._measure(serving._Work(*[*vars(work).values()][:-1], {"latency-16": wrong}))
        assert not rows
        assert re.fullmatch(r"cosine to float32 is .*, expected at least 0.999", refused["latency-16"])


@pytest.mark.slow
def test_the_command_times_all_engines(tmp_path: Path) -> None:
    done = serving_shape(
        "--preset", "tiny", "--engines", "modernbert", "--engines", "modernbert", "--engines",
        "transformers-float32", "--sets", "short-mix",
        "--sets", "latency-16", "--tokens", "500", "--calls", "3", "--rounds", "1", "--out", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("speed-up of modernbert") == 2 and "first engine" not in done.stdout
    assert len(re.findall(r"speed-up, modernbert to the best other: [\d.]+ .*, transf", done.stdout)) == 2
    assert "modernbert-float32 to the best other" not in done.stdout, "it was not measured"
    kept = json.loads((tmp_path / "serving.json").read_text())
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    assert processor is None or processor[1].strip() in kept["machine"]
    assert all(f"{library} {version(library)}" in kept["machine"] for library in ("torch", "transformers"))
    rows = kept["rows"]
    assert [(row["engine"], row["set"]) for row in rows] == [
        ("modernbert", "short-mix"), ("modernbert", "latency-16"), ("transformers-float32", "short-mix"),
        ("transformers-float32", "latency-16"),
    ]  # fmt: skip
    assert all(row["p50_ms"] <= row["p95_ms"] for row in rows if row["set"] == "latency-16")


def without(library: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shadow a library by a module that cannot be imported, also in the processes of measurements."""
    (folder / f"{library}.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, library, raising=False)


@pytest.mark.slow
def test_a_missing_library_is_named_and_the_rest_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without `transformers` the reference is the package itself; without matplotlib there is no page."""
    without("transformers", tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    engines = ["modernbert-float32", "transformers-float32"]
    serving.run(ServingConfig(engines, ["latency-16"], "tiny", calls=2, rounds=1, out=tmp_path / "out"))
    said = capsys.readouterr().out
    assert "the reference is this package, ragged, reference, float32" in said
    reason = "transformers is not installed: pip install --group peers"
    assert said.endswith(
        f"not measured: transformers-float32: {reason}\n"
        f"{tmp_path / 'out'}: serving.json; no page: report: matplotlib is not installed: "
        "pip install 'modernbert[train]'\n"
    )
    assert "nothing" not in said
    kept = json.loads((tmp_path / "out" / "serving.json").read_text())
    (row,) = kept["rows"]
    assert row["engine"] == "modernbert-float32" and row["cosine"] > 0.9999
    assert kept["absent"] == [{"who": "transformers-float32", "set": None, "reason": reason}]
    assert kept["work"] == {
        "engines": engines, "sets": ["latency-16"], "preset": "tiny", "model": {}, "tokens": 8_192, "calls": 2,
        "rounds": 1, "texts": [], "tokenizer": None,
    }  # fmt: skip


@pytest.mark.parametrize("calls", [1, 2, 3, 20])
def test_p95_of_few_calls_is_not_below_the_median(calls: int) -> None:
    waits = iter(range(1_000))

    def embed(documents: list[np.ndarray]) -> np.ndarray:
        time.sleep(0.002 * (next(waits) % 3))
        return np.zeros((len(documents), 1), dtype=np.float32)

    engine = Engine("", torch.float32, embed, is_padded=False)
    found = serving._latency(engine, [np.zeros(4)], calls)
    assert found["p50_ms"] <= found["p95_ms"]
    assert p50_and_p95([0.1] * 19 + [0.3])["p95_ms"] == pytest.approx(110)


def test_real_texts_are_as_long_as_their_tokens_and_as_many_as_fit(tmp_path: Path, small_bert: ModernBert) -> None:
    texts = [" ".join(["word"] * number) for number in (3, 8, 1, 200)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    small_bert.save(tmp_path / "model")
    config = ServingConfig(texts=[str(tmp_path / "texts.jsonl")], tokenizer=str(tmp_path / "model"), tokens=200)
    found = serving._lengths(config, "real")
    assert found == [len(ids) for ids in small_bert.tokenizer.encode(texts[:3])]
    with pytest.raises(InputError, match="texts: found none within 5 tokens"):
        serving._lengths(replace(config, tokens=5), "real")


@pytest.mark.parametrize(
    "config, said",
    [
        (ServingConfig(sets=["real"]), "sets: real needs texts and a tokenizer"),
        (ServingConfig(engines=["jax"]), "engines: found 'jax', expected modernbert"),
        (ServingConfig(sets=["long"]), "sets: found 'long', expected short-mix"),
        (ServingConfig(rounds=0), "rounds: found 0"),
        (ServingConfig(tokens=10**15), "tokens: found 1,000,000,000,000,000, expected at most 100,000,000"),
        (ServingConfig(preset="huge"), "huge"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(config: ServingConfig, said: str) -> None:
    with pytest.raises(InputError, match=said):
        serving.run(config)
