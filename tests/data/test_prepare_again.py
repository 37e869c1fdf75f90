"""`prepare` that is stopped, started again, spread over machines: the same shards byte for byte."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modernbert.data import prepare
from modernbert.data.shards import Shards
from modernbert.errors import InputError


@pytest.fixture
def corpus(make_texts: Any, tmp_path: Path) -> Path:
    texts = make_texts(120, seed=9)
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return tmp_path / "corpus.jsonl"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "SHARD_CHARS", 4_000)


def config(corpus: Path, tokenizer_folder: Path, out: str = "out", **changes: Any) -> prepare.PrepareConfig:
    given = {"input": [corpus], "tokenizer": str(tokenizer_folder), "output": corpus.parent / out}
    return prepare.PrepareConfig(**(given | {"heldout": 0.2, "processes": 1} | changes))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


KILLED = """
import os, signal, sys
from itertools import count
from pathlib import Path
from modernbert import files as storage
from modernbert.data import prepare
from modernbert.data import shards
owner, name, n, when = {"write_shard": shards, "write_file": shards, "move_into_place": prepare, "_rename": storage,
                        "sync_file": shards, "_tell": prepare}[sys.argv[4]], sys.argv[4], int(sys.argv[5]), sys.argv[6]
prepare.SHARD_CHARS = 4_000
original, calls = getattr(owner, name), count(1)
def wrapped(*arguments, **named):
    is_last = next(calls) == n
    if is_last and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*arguments, **named)
    if is_last:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(owner, name, wrapped)
corpus, tokenizer, out = sys.argv[1:4]
config = prepare.PrepareConfig(input=[corpus], tokenizer=tokenizer, output=Path(out), heldout=0.2, processes=1)
prepare.run(config)
"""


def test_work_whose_deletion_was_killed_is_deleted_by_the_next_start(corpus: Path, tokenizer_folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    left = corpus.parent / f"out.unfinished.partial-old-0-{ended.pid}"
    (left / "done").mkdir(parents=True)
    for _ in range(2):
        prepare.run(config(corpus, tokenizer_folder))
        assert not left.exists()
        (left / "done").mkdir(parents=True)


@pytest.mark.parametrize(
    ("point", "n", "when"),
    [("write_shard", 3, "after"), ("sync_file", 6, "before"), ("write_file", 5, "after"), ("_rename", 1, "before"),
     ("move_into_place", 1, "after")],
)  # fmt: skip
def test_a_killed_prepare_resumes_to_the_same_bytes(
    corpus: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str], point: str, n: int, when: str
) -> None:
    straight = prepare.run(config(corpus, tokenizer_folder, "straight"))
    words = [sys.executable, "-c", KILLED, str(corpus), str(tokenizer_folder), str(corpus.parent / "out"), point]
    assert subprocess.run([*words, str(n), when], capture_output=True).returncode == -signal.SIGKILL
    capsys.readouterr()
    out = prepare.run(config(corpus, tokenizer_folder))
    printed = capsys.readouterr().out
    assert "shards are done" in printed or "is finished and intact" in printed
    assert content(out) == content(straight)
    assert not list(corpus.parent.glob("*.unfinished"))


def stop_after(monkeypatch: pytest.MonkeyPatch, num_shards: int) -> None:
    """Let the disk fill up after some shards."""
    from modernbert.data import shards

    write, written = shards._write, []

    def limited(path: Path, values: Any) -> Any:
        written.append(path)
        if len(written) > 2 * num_shards:
            raise OSError(28, os.strerror(28))
        return write(path, values)

    monkeypatch.setattr(shards, "_write", limited)


def test_a_full_disk_keeps_the_shards_that_are_done(
    corpus: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = prepare.run(config(corpus, tokenizer_folder, "straight"))
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(InputError, match=r"out.unfinished: cannot be written \(No space left.* continues with"):
            prepare.run(config(corpus, tokenizer_folder))
    assert not (corpus.parent / "out").exists()
    # One of them is damaged meanwhile: it is made again.
    damaged = corpus.parent / "out.unfinished" / "whole" / "train" / "shard-00001.tokens"
    data = bytearray(damaged.read_bytes())
    data[5] ^= 1
    damaged.write_bytes(data)
    capsys.readouterr()
    out = prepare.run(config(corpus, tokenizer_folder, processes=2))
    assert "continuing, 3 shards are done" in capsys.readouterr().out
    assert content(out) == content(straight)


def test_other_settings_or_files_begin_anew(
    corpus: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for change in ("settings", "files"):
        with monkeypatch.context() as patch:
            stop_after(patch, 3)
            with pytest.raises(InputError, match="No space left"):
                prepare.run(config(corpus, tokenizer_folder, change))
        if change == "files":
            with corpus.open("a") as file:
                file.write(json.dumps({"text": "one more"}) + "\n")
        changes = {"heldout": 0.3} if change == "settings" else {}
        capsys.readouterr()
        out = prepare.run(config(corpus, tokenizer_folder, change, **changes))
        assert "starting over" in capsys.readouterr().out
        assert content(out) == content(prepare.run(config(corpus, tokenizer_folder, f"{change}-straight", **changes)))


def test_a_finished_folder_is_verified(corpus: Path, tokenizer_folder: Path) -> None:
    out = prepare.run(config(corpus, tokenizer_folder))
    before = content(out)
    prepare.run(config(corpus, tokenizer_folder))
    assert content(out) == before
    os.truncate(out / "heldout" / "shard-00000.offsets", 8)
    with pytest.raises(InputError, match=r"heldout/shard-00000\.offsets: has 8 bytes, expected"):
        prepare.run(config(corpus, tokenizer_folder))


def test_the_content_of_files_decides_and_a_changed_file_is_named(corpus: Path, tokenizer_folder: Path) -> None:
    prepare.run(config(corpus, tokenizer_folder))
    os.utime(corpus, (1, 1))
    prepare.run(config(corpus, tokenizer_folder))
    corpus.write_bytes(corpus.read_bytes().swapcase())
    with pytest.raises(InputError, match=rf"out: exists already, prepared from other files \({corpus}: has changed\)"):
        prepare.run(config(corpus, tokenizer_folder))


def test_many_bytes_are_not_hashed_and_a_newer_file_is_another(
    corpus: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "MAX_HASHED_BYTES", corpus.stat().st_size - 1)
    monkeypatch.setattr(prepare, "sha256_of", None)
    for _ in range(2):
        prepare.run(config(corpus, tokenizer_folder))
    os.utime(corpus, (1, 1))
    with pytest.raises(InputError, match=rf"out: exists already, prepared from other files \({corpus}: has changed\)"):
        prepare.run(config(corpus, tokenizer_folder))


def test_a_folder_that_cannot_be_new_is_refused(
    corpus: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(corpus.parent)
    for place in (".", "/"):
        with pytest.raises(InputError, match=f"^{place}: exists already, expected a new folder"):
            prepare.run(replace(config(corpus, tokenizer_folder), output=Path(place)))


def test_copies_are_left_out_wherever_they_are_tokenised(
    corpus: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = corpus.read_text().splitlines(keepends=True)
    doubled = corpus.with_name("doubled.jsonl")
    doubled.write_text("".join([*lines, *lines[::3], lines[0]]))
    straight = prepare.run(config(corpus, tokenizer_folder, "straight"))
    capsys.readouterr()
    for processes in (1, 2):
        words = {"deduplicate": True, "processes": processes}
        out = prepare.run(config(doubled, tokenizer_folder, f"out{processes}", **words))
        assert "41 duplicates left out" in capsys.readouterr().out
        for split in ("train", "heldout"):
            assert Shards.open(out / split).num_docs == Shards.open(straight / split).num_docs
            for path in (out / split).glob("shard-*"):
                assert path.read_bytes() == (straight / split / path.name).read_bytes()


def test_ray_writes_the_same_bytes(corpus: Path, tokenizer_folder: Path) -> None:
    straight = prepare.run(config(corpus, tokenizer_folder, "straight"))
    words = ["prepare", "--input", corpus, "--tokenizer", tokenizer_folder, "--output", corpus.parent / "ray"]
    code = (
        "from modernbert.data import prepare; prepare.SHARD_CHARS = 4_000; from modernbert.cli.main import main; main()"
    )
    command = [
        sys.executable,
        "-c",
        code,
        *map(str, words),
        "--heldout",
        "0.2",
        "--processes",
        "2",
        "--executor",
        "ray",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert content(corpus.parent / "ray") == content(straight)
