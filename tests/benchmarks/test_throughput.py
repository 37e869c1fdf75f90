"""The efficiency table: its sets, its models, and the command on a small scale."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import finetuning_steps, peers, throughput, training_steps
from benchmarks import finetuning_systems as finetuning
from benchmarks import training_systems as training
from benchmarks.finetuning_steps import FinetuningConfig
from benchmarks.finetuning_systems import lengths_of
from benchmarks.gte import Gte, GteShape
from benchmarks.peers import MODELS, load
from benchmarks.process import in_new_process
from benchmarks.throughput import ThroughputConfig
from benchmarks.throughput_row import largest_that
from benchmarks.training_steps import TrainingConfig
from benchmarks.training_systems import TrainingRow, TrainingWork, mixed_lengths
from modernbert.batch import Batch
from modernbert.engines.registry import PORTABLE
from modernbert.errors import InputError
from modernbert.model.config import ModelConfig
from modernbert.planning.length_sets import LENGTH_SETS, set_documents

transformers = pytest.importorskip("transformers")
CPU = torch.device("cpu")


def bench(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *words], capture_output=True, text=True)


@pytest.mark.parametrize(
    "name, tokens, shortest, longest",
    [
        ("short-fixed", 4_194_304, 512, 512), ("short-variable", 2_096_510, 32, 476),
        ("long-fixed", 67_108_864, 8_192, 8_192), ("long-variable", 33_604_913, 171, 7_624),
    ],
)  # fmt: skip
def test_sets_are_those_of_the_paper(name: str, tokens: int, shortest: int, longest: int) -> None:
    """Appendix F has 8,192 documents; smaller sets are their first ones."""
    lengths = LENGTH_SETS[name].lengths(8_192)
    assert (sum(lengths), min(lengths), max(lengths)) == (tokens, shortest, longest)
    assert LENGTH_SETS[name].lengths(20) == lengths[:20] and len(LENGTH_SETS[name].lengths(9_000)) == 9_000


def test_documents_of_a_set_are_the_same_each_time() -> None:
    assert [len(ids) for ids in set_documents("short-variable", 5)] == LENGTH_SETS["short-variable"].lengths(5)
    assert all(100 <= ids.min() and ids.max() < 16_000 for ids in set_documents("long-fixed", 2))
    assert np.array_equal(set_documents("short-fixed", 2)[1], set_documents("short-fixed", 2)[1])


@pytest.mark.parametrize(
    "name, millions",
    [
        ("modernbert-base", 149.0), ("modernbert-large", 394.8), ("bert-base", 109.5), ("bert-large", 335.1),
        ("roberta-base", 124.6), ("roberta-large", 355.4), ("deberta-v3-base", 183.8), ("deberta-v3-large", 434.0),
        ("nomic-bert", 136.7), ("gte-en-mlm-base", 136.8), ("gte-en-mlm-large", 434.1),
        ("gte-en-mlm-base-unpadded", 136.8), ("gte-en-mlm-large-unpadded", 434.1),
        ("modernbert-base-transformers", 149.0), ("modernbert-large-transformers", 394.8),
    ],
)  # fmt: skip
def test_every_model_has_its_published_size(name: str, millions: float) -> None:
    with torch.device("meta"):
        try:
            loaded = load(name, torch.device("meta"), torch.float32)
        except peers.Absent as absent:
            pytest.skip(str(absent))
    assert loaded.num_parameters / 1e6 == pytest.approx(millions, abs=0.6)


def test_gte_without_padding_equals_the_published_code() -> None:
    if not hasattr(transformers, "GteModel"):
        pytest.skip("this transformers has no GteModel")
    config = transformers.GteConfig(
        vocab_size=300, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256,
        type_vocab_size=0, pad_token_id=0, max_position_embeddings=256,
    )  # fmt: skip
    theirs = transformers.GteModel(config).eval()
    ours = Gte(GteShape(2, 128, 256, vocab_size=300), PORTABLE).eval()
    ours.load(theirs.state_dict())
    documents = [np.random.default_rng(n).integers(1, 300, length) for n, length in enumerate((7, 200, 1))]
    batch = Batch.from_documents(documents)
    with torch.no_grad():
        parts = ours(batch.tokens, batch.layout).split(list(batch.layout.lengths))
        for part, document in zip(parts, documents, strict=True):
            expected = theirs(torch.from_numpy(document)[None]).last_hidden_state[0]
            torch.testing.assert_close(part, expected, atol=2e-5, rtol=0)


def test_padded_and_ragged_models_compute_every_document(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the benchmark, a document has the same hidden states in a batch and alone."""
    documents = [document[:length] for document, length in zip(set_documents("short-fixed", 2), (40, 70), strict=True)]
    for name in ("modernbert-base", "bert-base"):
        loaded = load(name, CPU, torch.float32)
        with torch.inference_mode():
            together, alone = loaded.encode(documents), loaded.encode(documents[:1])
        flat = together.reshape(-1, together.shape[-1])[: len(documents[0])]
        torch.testing.assert_close(flat, alone.reshape(-1, alone.shape[-1]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("guess", [1, 8, 120, 3_900, 50_000])
def test_the_largest_batch_is_found_about_a_guess(guess: int) -> None:
    for limit in (0, 1, 5, 130, 4_000):
        asked: list[int] = []

        def fits(size: int, limit: int = limit, asked: list[int] = asked) -> bool:
            asked.append(size)
            return size <= limit

        found = largest_that(fits, guess)
        assert found <= limit <= found + max(1, found // 40)
        assert 0 < min(asked) and len(asked) < (8 if 0.9 * limit < guess < 1.1 * limit else 25)


def _ends_itself(_: None) -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_one_line() -> None:
    with pytest.raises(InputError, match="ended with signal 9"):
        in_new_process(_ends_itself, None)


@pytest.mark.slow
def test_the_command_measures_and_names_failures(tmp_path: Path) -> None:
    done = bench(
        "throughput", "--models", "bert-base", "--sets", "long-variable", "--sets", "short-variable", "--documents",
        "1", "--runs", "1", "--dtype", "float32", "--device", "cpu", "--out", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "reduced from the paper's" in done.stdout
    assert "bert-base on long-variable in float32: takes 512 tokens" in done.stdout
    result = json.loads((tmp_path / "throughput.json").read_text())
    ((model, set_name, rates),) = [(row["model"], row["set"], row["tokens_per_s"]) for row in result["rows"]]
    assert (model, set_name) == ("bert-base", "short-variable") and rates[0] > 0
    assert [gone["set"] for gone in result["absent"]] == ["long-variable"]
    assert "not measured: bert-base on long-variable: takes 512 tokens" in done.stdout
    assert result["work"]["runs"] == 1 and result["work"]["batch"] == {"long-variable": 1, "short-variable": 8}
    assert f"transformers {transformers.__version__}" in result["machine"]
    assert "bert-base" in (tmp_path / "throughput.html").read_text()


@pytest.mark.slow
def test_training_is_measured_against_the_trainer(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    # A system that is named twice is measured once.
    names = ("modernbert", "modernbert", "trainer-best")
    named = [word for name in names for word in ("--systems", name)]
    done = bench(
        "training_steps", "--preset", "tiny", *named, "--tokens", "600", "--longest", "256", "--steps", "1",
        "--rounds", "1", "--device", "cpu", "--dtype", "float32", "--out", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "train_runtime" not in done.stdout and "speed-up of modernbert" in done.stdout
    kept = json.loads((tmp_path / "training.json").read_text())
    assert kept["work"]["tokens"] == 600 and kept["work"]["dtype"] == "float32" and not kept["absent"]
    rows = kept["rows"]
    assert [row["system"] for row in rows] == ["modernbert", "trainer-best"]
    assert rows[0]["real_share"] == 1.0 and rows[1]["real_share"] > 0.95, "rows of one length make a batch"


def test_concatenated_documents_are_full_rows() -> None:
    work = TrainingWork("trainer-concatenated", ModelConfig.preset("tiny"), [100, 40, 60], 2, "cpu", "float32")
    rows, batch_rows = training._rows(work)
    assert {len(row["input_ids"]) for row in rows} == {100} and batch_rows == 2


@pytest.mark.slow
def test_fine_tuning_is_measured_against_the_trainer(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    done = bench(
        "finetuning_steps", "--preset", "tiny", "--sets", "stsb", "--steps", "3", "--rounds", "1", "--batch", "8",
        "--systems", "modernbert", "--systems", "trainer-best", "--device", "cpu", "--dtype", "float32",
        "--out", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "finetuning.json").read_text())["rows"]
    assert [row["system"] for row in rows] == ["modernbert", "trainer-best"]
    ours, grouped = (row["real_share"] for row in rows)
    assert ours == 1.0 and grouped > 0.9, "rows of one length make a batch"
    assert all(row["tokens_per_s"] > 0 for row in rows)


def test_an_interrupted_benchmark_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = training_steps.measure_training

    def stopped(work: TrainingWork) -> TrainingRow:
        if work.seed == 1:  # of the second round
            raise KeyboardInterrupt
        return measure(work)

    monkeypatch.setattr(training_steps, "measure_training", stopped)
    with pytest.raises(KeyboardInterrupt):
        training_steps.run(
            TrainingConfig(["modernbert"], "tiny", tokens=200, steps=1, device="cpu", dtype="float32", out=tmp_path)
        )
    (row,) = json.loads((tmp_path / "training.json").read_text())["rows"]
    assert row["round"] == 1 and row["system"] == "modernbert"


@pytest.mark.parametrize("name", finetuning.SETS)
def test_lengths_lie_between_the_deciles_of_a_set(name: str) -> None:
    lengths, deciles = lengths_of(name, 20_000, seed=3), finetuning.SETS[name]
    assert min(lengths) >= deciles[0] and max(lengths) <= deciles[-1]
    found = np.percentile(lengths, range(10, 91, 10))
    assert np.abs(found - deciles[1:-1]).max() <= 1


def test_lengths_of_a_mix_sum_to_the_tokens() -> None:
    lengths = mixed_lengths(8_192)
    assert sum(lengths) == 8_192 and max(lengths) <= 1024 and min(lengths) < 64


@pytest.mark.parametrize(
    "config, said",
    [
        (ThroughputConfig(models=["gpt"]), "models: found 'gpt', expected modernbert-base"),
        (ThroughputConfig(sets=["medium"]), "sets: found 'medium', expected short-fixed"),
        (ThroughputConfig(documents=0), "documents: found 0"),
        (ThroughputConfig(documents=99_999_999_999_999), "documents: found 99,999,999,999,999, expected at most"),
        (ThroughputConfig(documents=1_000_000, sets=["long-fixed"]), "documents: .* at most 12,207 of long-fixed"),
        (TrainingConfig(tokens=10**14), "tokens: found 100,000,000,000,000, expected at most 100,000,000"),
        (TrainingConfig(tokens=10**5, steps=10**5), "steps: found 100,000 of 100,000 tokens, expected at most"),
        (TrainingConfig(steps=10**5, device="cpu"), "steps: found 100,000 of 8,192 tokens, expected at most"),
        (FinetuningConfig(steps=10**7), "batch: found 32 in 10,000,000 steps, expected at most"),
        (ThroughputConfig(sets=["real"]), "sets: real needs texts and a tokenizer"),
        (ThroughputConfig(device="cuda:7"), "cuda:7"),
        (ThroughputConfig(dtypes=["int8"]), "int8"),
        (TrainingConfig(systems=["jax"]), "systems: found 'jax'"),
        (TrainingConfig(steps=0), "steps: found 0"),
        (TrainingConfig(longest=3), "longest: found 3"),
        (TrainingConfig(preset="huge"), "huge"),
        (FinetuningConfig(systems=["jax"]), "systems: found 'jax'"),
        (FinetuningConfig(sets=["mnli"]), "sets: found 'mnli', expected cola, sst2"),
        (FinetuningConfig(batch=0), "batch: found 0"),
        (FinetuningConfig(device="cuda:7"), "cuda:7"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(
    config: ThroughputConfig | TrainingConfig | FinetuningConfig, said: str
) -> None:
    runs: dict[type, Any] = {
        ThroughputConfig: throughput.run, TrainingConfig: training_steps.run,
        FinetuningConfig: finetuning_steps.run,
    }  # fmt: skip
    with pytest.raises(InputError, match=said):
        runs[type(config)](config)


def test_a_bad_argument_is_one_line_of_the_command() -> None:
    done = bench("throughput", "--models", "gpt")
    assert done.returncode == 2 and done.stderr.startswith("python -m benchmarks.throughput: models: found 'gpt'")
    assert done.stderr.count("\n") == 1


def test_every_model_is_named_once_in_the_help_of_an_error() -> None:
    with pytest.raises(InputError, match="modernbert-base, modernbert-base-transformers, bert-base"):
        load("none", CPU, torch.float32)
    assert len(set(MODELS)) == 15


@pytest.mark.slow
def test_the_script_for_gpus_runs_on_a_small_scale(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path), "--device", "cpu", "--small"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads((tmp_path / "gpu.json").read_text())
    assert all(row["holds"] for row in said["parity"]) and len(said["parity"]) == 7
    assert said["training"][0]["tokens_per_s"] > 0 and said["inference"][0]["tokens_per_s"] > 0
    assert 0 < said["inference"][-1]["p50_ms"] <= said["inference"][-1]["p95_ms"]
