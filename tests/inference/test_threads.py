"""One `ModernBert` in many threads and on several processes: the same answers as alone."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modernbert import InputError, ModernBert
from modernbert.checkpoints.folder import ModelFolder
from modernbert.engines.cpu.build import unavailable_reason
from modernbert.inference import replicas as spread
from modernbert.tasks.task import start_classifier

LABELS = {"classify": ["no", "yes", "maybe"], "tag": ["O", "B-x", "I-x"], "rerank": ["score"]}
THREADS = 8


@pytest.fixture(scope="module")
def folders(small_bert: ModernBert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    start = tmp_path_factory.mktemp("threads")
    small_bert.save(start / "fill")
    for task, labels in LABELS.items():
        model = start_classifier(ModelFolder(start / "fill").load_model(), task, labels, seed=3)
        torch.nn.init.normal_(model.classifier.weight, std=0.5)
        ModelFolder.save(start / task, model, small_bert.tokenizer, 1_000)
    return start


def texts_of(number: int) -> list[str]:
    """Texts of one thread, unlike the others' in words and lengths."""
    return [f"city {number} of land {n} [MASK]" + " rivers" * ((n * (number + 3)) % 60) for n in range(5)]


def answers_of(berts: dict[str, ModernBert], number: int) -> list[Any]:
    """Return what every method says of the texts of a thread; each thread begins with another method."""
    texts = texts_of(number)
    asked: list[Callable[[], Any]] = [
        lambda: berts["fill"].embed(texts).tobytes(),
        lambda: berts["fill"].fill_mask(texts),
        lambda: [vectors.tobytes() for vectors in berts["fill"].embed_tokens(texts)],
        lambda: berts["fill"].similarity(texts[:2], texts).tobytes(),
        lambda: berts["fill"].embed(texts * 2, pooling="cls", overflow="split-mean", prompt="a ").tobytes(),
        lambda: berts["classify"].classify(texts),
        lambda: berts["classify"].classify([(text, "b") for text in texts]),
        lambda: berts["tag"].tag(texts),
        lambda: berts["rerank"].rerank("what", texts),
        lambda: berts["fill"].count_tokens(texts),
    ]
    order = [(number + n) % len(asked) for n in range(len(asked))]
    found = {place: asked[place]() for place in order}
    return [found[place] for place in range(len(asked))]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_threads_at_once_get_the_bits_they_get_alone(dtype: str, folders: Path) -> None:
    engine = "cpu" if unavailable_reason() is None else "torch"
    berts = {
        task: ModernBert.load(folders / task, device="cpu", dtype=dtype, engine=engine) for task in ("fill", *LABELS)
    }
    alone = [answers_of(berts, number) for number in range(THREADS)]
    assert len({str(each) for each in alone}) == THREADS, "no two threads ask for the same"
    gate = threading.Barrier(THREADS)

    def ask(number: int) -> list[Any]:
        gate.wait()
        return answers_of(berts, number)

    with ThreadPoolExecutor(THREADS) as pool:
        for number, found in enumerate(pool.map(ask, range(THREADS))):
            assert found == alone[number]


def test_several_processes_answer_as_one_does(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "_FEWEST_CHARACTERS", 500)
    texts = [f"city {n} of land {n % 5} [MASK]" + " rivers" * (n % 60) for n in range(140)]
    bert = ModernBert.load(folders / "fill", device="cpu", dtype="float32", engine="torch")
    bert.budget_tokens = 1_000
    with bert.on(["cpu", "cpu"]) as many:
        np.testing.assert_allclose(many.embed(texts, pooling="cls", truncate_dim=9),
                                   bert.embed(texts, pooling="cls", truncate_dim=9), atol=1e-5)  # fmt: skip
        assert (many.embed(texts, precision="int8") == bert.embed(texts, precision="int8")).mean() > 0.99
        for found, expected in zip(many.embed_tokens(texts), bert.embed_tokens(texts), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(many.similarity(texts[:3], texts), bert.similarity(texts[:3], texts), atol=1e-5)
        ours, theirs = many.fill_mask(texts), bert.fill_mask(texts)
        assert [guesses[0].token for (guesses,) in ours] == [guesses[0].token for (guesses,) in theirs]  # type: ignore
        assert many.embed([]).shape == (0, 64) and many.embed_tokens([]) == [] and many.embed("a").shape == (1, 64)
        with pytest.raises(InputError, match=r"^text 133: has 1,005 tokens, expected at most 1,000"):
            many.embed(texts[:133] + ["city " * 1_000] + texts)
        with pytest.raises(InputError, match="^pooling: found 'max'"):
            many.embed(texts, pooling="max")
    with pytest.raises(InputError, match="^devices: the processes ended with their `with` block"):
        many.embed(texts)
    np.testing.assert_allclose(bert.embed(texts[:3]), bert.embed(texts)[:3], atol=1e-5)


def test_heads_answer_from_another_process(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "_FEWEST_CHARACTERS", 500)
    texts = [f"city {n} of land {n % 5}" + " rivers" * (n % 60) for n in range(140)]
    pairs = [("what", text) for text in texts]
    bert = ModernBert.load(folders / "rerank", device="cpu", dtype="float32", engine="torch")
    with bert.on(["cpu"]) as many:
        for found, expected in zip(many.classify(pairs), bert.classify(pairs), strict=True):
            assert found == pytest.approx(expected, abs=1e-5)
        assert many.classify(pairs[0]) == pytest.approx(bert.classify(pairs[0]), abs=1e-5)
        ours, theirs = many.rerank("what", texts), bert.rerank("what", texts)
        assert [each.score for each in ours] == pytest.approx([each.score for each in theirs], abs=1e-5)
        assert many.rerank("what", []) == []


def test_what_cannot_be_shared_out_is_refused(folders: Path, small_bert: ModernBert) -> None:
    bert = ModernBert.load(folders / "fill", device="cpu")
    made = ModernBert(small_bert.tokenizer, small_bert.model)
    for asked, devices, said in (
        (made, ["cpu"], "this model was made in memory; save it and load it"),
        (bert, ["cpu", "nope"], "device: found 'nope'"),
        (bert, "cpu", "devices: found 'cpu', expected a list of names"),
        (bert, [], r"devices: found \[\], expected a list of names"),
    ):
        with pytest.raises(InputError, match=said), asked.on(devices):  # type: ignore[arg-type]
            raise AssertionError
