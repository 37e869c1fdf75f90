"""The demo as a user runs it: killed in the middle, started again, and everything it promises is there."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import modernbert
from transformers import AutoModelForMaskedLM, AutoTokenizer

from modernbert import ModernBert
from modernbert.demo.collect import Record
from modernbert.demo.masks import mask_words
from modernbert.tokenizer.tokenizer import Tokenizer


def start(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "modernbert", "demo", "--quick", "--output", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def saved(out: Path) -> bool:
    return any(folder.name.removeprefix("step-").isdigit() for folder in out.glob("checkpoints/*"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Kill a demo once it has trained for a while, start it again, and return its folder and its output."""
    out = tmp_path_factory.mktemp("demo") / "run"
    first = start(out)
    deadline = time.monotonic() + 240
    while not saved(out) and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.05)
    assert first.poll() is None, first.communicate()
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert not (out / "model").exists()
    tokenizer = (out / "tokenizer" / "tokenizer.json").read_bytes()
    second = start(out)
    printed, errors = second.communicate(timeout=400)
    assert second.returncode == 0, errors
    assert "tokenize: done before" in errors and "resuming after step" in printed
    assert (out / "tokenizer" / "tokenizer.json").read_bytes() == tokenizer
    return out, printed


def test_every_file_it_names_is_there(finished: tuple[Path, str]) -> None:
    out, printed = finished
    for name in ("report.html", "model", "retrieval/model", "tokenizer", "log.jsonl"):
        assert (out / name).exists() and str(out / name) in printed.replace("\n", "")
    assert not list(out.rglob("*.partial-*"))


def test_the_log_has_every_step_once_through_three_phases(finished: tuple[Path, str]) -> None:
    rows = [json.loads(line) for line in (finished[0] / "log.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "step"]
    assert [row["step"] for row in steps] == list(range(1, len(steps) + 1))
    assert list(dict.fromkeys(row["phase"] for row in steps)) == ["stable", "extension", "decay"]
    heldout = [row for row in rows if row["kind"] == "heldout"]
    assert [row["step"] > 0 for row in heldout] == [False, True, True, True]
    assert heldout[-1]["loss"] < heldout[0]["loss"] - 0.5
    assert min(row["fill"] for row in steps) > 0.9


def test_the_model_is_one_that_transformers_loads(finished: tuple[Path, str]) -> None:
    folder = finished[0] / "model"
    text = "def area(radius):\n    return pi * radius ** 2"
    ours = ModernBert.load(folder, device="cpu", dtype="float32", engine="torch")
    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    theirs = AutoModelForMaskedLM.from_pretrained(folder).eval()
    hidden = theirs.model(**inputs).last_hidden_state[0].detach().numpy()
    np.testing.assert_allclose(ours.embed_tokens(text)[0], hidden, atol=1e-5)


def test_the_page_is_one_file_with_the_results(finished: tuple[Path, str]) -> None:
    page = (finished[0] / "report.html").read_text()
    after = json.loads((finished[0] / "after.json").read_text())
    assert f"{after['model']['ndcg']:.3f}" in page and "BM25" in page
    assert page.count("<svg") >= 2
    assert "http://" not in page.replace("http://www.w3.org", "") and "src=" not in page


def test_a_finished_demo_only_shows_its_results(finished: tuple[Path, str]) -> None:
    out, _ = finished
    before = (out / "log.jsonl").read_bytes()
    again = modernbert("demo", "--quick", "--output", str(out))
    assert again.returncode == 0 and again.stderr.count("done before") == 8
    assert (out / "log.jsonl").read_bytes() == before and "nDCG@10" in again.stdout


def test_a_folder_of_another_run_is_refused_unchanged(finished: tuple[Path, str]) -> None:
    out, _ = finished
    done = modernbert("demo", "--output", str(out))
    assert done.returncode == 2
    assert "this run was started with" in done.stderr.splitlines()[-1]


def test_hidden_words_are_whole_single_tokens(finished: tuple[Path, str]) -> None:
    tokenizer = Tokenizer.load(finished[0] / "tokenizer")
    text = "\n".join(f"this line number {n} is the same as that of the other file" for n in range(50))
    hidden = mask_words([Record(text, "a.txt", "a")], tokenizer, number=20, seed=0)
    assert len(hidden) == 20
    for line in hidden:
        assert f"{line.before}{line.word}{line.after}" in text
        masked = tokenizer.encode([line.masked("[MASK]")])[0]
        whole = tokenizer.encode([f"{line.before}{line.word}{line.after}"])[0]
        (place,) = (masked != whole).nonzero()[0]
        assert masked[place] == tokenizer.mask_id and tokenizer.text_of(int(whole[place])) == f" {line.word}"
