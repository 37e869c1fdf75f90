"""`modernbert embed` on files: every kind holds the same vectors, and a stop loses nothing."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modernbert import InputError, ModernBert
from modernbert.jobs import embed
from modernbert.jobs.embed import EmbedConfig, run

TEXTS = [f"the capital of country {n}" + " word" * (n % 37) for n in range(50)] + ["", "naïve ✓ \u2028 x"]


@pytest.fixture(scope="module")
def folder(small_bert: ModernBert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("embed") / "model"
    small_bert.save(path)
    return path


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> EmbedConfig:
    with gzip.open(tmp_path / "texts.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"body": text}) + "\n" for text in TEXTS)
    return EmbedConfig(
        str(folder), files=[tmp_path / "texts.jsonl.gz"], text_field="body", out=tmp_path / "v.npy", devices=("cpu",),
        dtype="float32", backend="banded",
    )  # fmt: skip


@pytest.fixture
def expected(folder: Path) -> np.ndarray:
    return ModernBert.load(folder, device="cpu", dtype="float32", backend="banded").embed(TEXTS)


@pytest.mark.parametrize("part_texts", [7, 4_000])
def test_every_kind_of_file_holds_the_same(
    part_texts: int, config: EmbedConfig, expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lancedb
    import pyarrow.parquet

    monkeypatch.setattr(embed, "PART_CHARACTERS", part_texts * 500)
    for name in ("v.npy", "v.jsonl", "v.parquet", "v.lance"):
        run(replace(config, out=tmp_path / name))
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-6)
    lines = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(lines, expected, atol=1e-6)
    table = pyarrow.parquet.read_table(tmp_path / "v.parquet")
    assert table["text"].to_pylist() == TEXTS and table["number"].to_pylist() == list(range(len(TEXTS)))
    np.testing.assert_allclose(np.array(table["vector"].to_pylist()), expected, atol=1e-6)
    rows = lancedb.connect(tmp_path / "v.lance").open_table("vectors")
    nearest = rows.search(expected[5]).limit(1).to_list()[0]
    assert (rows.count_rows(), nearest["text"]) == (len(TEXTS), TEXTS[5])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "texts.jsonl.gz", "v.jsonl", "v.lance", "v.npy", "v.parquet"
    ]  # fmt: skip


@pytest.mark.parametrize(("precision", "width"), [("float16", 64), ("int8", 64), ("binary", 8)])
def test_fewer_bytes_are_written_as_they_are(
    precision: str, width: int, config: EmbedConfig, tmp_path: Path, folder: Path
) -> None:
    run(replace(config, precision=precision))
    bert = ModernBert.load(folder, device="cpu", dtype="float32", backend="banded")
    found, whole = np.load(tmp_path / "v.npy"), bert.embed(TEXTS, precision=precision)
    assert found.dtype == whole.dtype and found.shape == (len(TEXTS), width)
    assert (found == whole).mean() > 0.99


def test_several_processes_give_the_same_rows(
    config: EmbedConfig, expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "PART_CHARACTERS", 11 * 500)
    run(replace(config, devices=("cpu", "cpu")))
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-5)


def test_a_stop_loses_nothing_and_nothing_is_made_twice(
    config: EmbedConfig, expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "PART_CHARACTERS", 10 * 500)
    real, made = embed._embed, []

    def stopped(bert: ModernBert, part: Any, config: EmbedConfig) -> tuple[int, np.ndarray]:
        if len(made) == 3:
            made.append(0)
            raise KeyboardInterrupt
        made.append(len(part[1]))
        return real(bert, part, config)

    monkeypatch.setattr(embed, "_embed", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert not (tmp_path / "v.npy").exists()
    with pytest.raises(InputError, match="v.npy.parts: was begun with pooling=None, found 'cls'; remove it"):
        run(replace(config, pooling="cls"))
    run(config)
    assert sum(made) == len(TEXTS), "each text once"
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-6)
    assert not (tmp_path / "v.npy.parts").exists()


def test_a_killed_command_goes_on(config: EmbedConfig, tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("".join(f"line {n}\n" for n in range(12_000)))
    words = ["embed", config.model, "--file", str(tmp_path / "many.txt"), "--out", str(tmp_path / "m.npy"),
             "--device", "cpu", "--dtype", "float32"]  # fmt: skip
    running = subprocess.Popen([sys.executable, "-m", "modernbert.cli", *words], stderr=subprocess.DEVNULL)
    while not (tmp_path / "m.npy.parts" / "00000000.npy").exists():
        assert running.poll() is None
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "m.npy").exists()
    done = subprocess.run([sys.executable, "-m", "modernbert.cli", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "m.npy")
    bert = ModernBert.load(config.model, device="cpu", dtype="float32")
    np.testing.assert_allclose(found[[0, 5_000, 11_999]], bert.embed(["line 0", "line 5000", "line 11999"]), atol=1e-5)
    assert len(found) == 12_000


@pytest.mark.parametrize(
    ("content", "changes", "said"),
    [
        (b'{"body": "a"}\n{"body": 3}\n', {}, "t.jsonl:2: body is int, expected text"),
        (b'{"body": "a"}\n{"text": "b"}\n', {}, "t.jsonl:2: no column 'body', found 'text'"),
        (b'{"body": "a"}\n{"body": "\\ud800"}\n', {}, "t.jsonl:2: body has half of a character"),
        (b'{"body": "a"}\n\n{"body": "' + b"word " * 3000 + b'"}\n', {}, r"t.jsonl:3: has [\d,]+ tokens, expected at"),
        (b"", {}, "t.jsonl: found no text"),
        (b'{"body": "a"}\n', {"precision": "int4"}, "precision: found 'int4'"),
        (b'{"body": "a"}\n', {"devices": ("cpu", "nope")}, "device: found 'nope'"),
    ],
)
def test_what_cannot_be_embedded_is_named_by_its_line(
    content: bytes, changes: dict[str, Any], said: str, config: EmbedConfig, tmp_path: Path
) -> None:
    (tmp_path / "t.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=said):
        run(replace(config, files=[tmp_path / "t.jsonl"], **changes))
    assert not (tmp_path / "v.npy").exists()


def test_a_file_that_is_not_there_is_one_line(config: EmbedConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent.jsonl: cannot be read"):
        run(replace(config, files=[tmp_path / "absent.jsonl"]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.jsonl.gz"]


def test_a_table_that_is_there_is_not_written_over(config: EmbedConfig, tmp_path: Path) -> None:
    run(replace(config, out=tmp_path / "v.lance"))
    with pytest.raises(InputError, match="v.lance: exists already"):
        run(replace(config, out=tmp_path / "v.lance"))
