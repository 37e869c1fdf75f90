import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import modernbert

from modernbert.config_files import resolve
from modernbert.data import prepare
from modernbert.data import tokenizer_training as tokenizer
from modernbert.data.shards import Shards
from modernbert.errors import InputError
from modernbert.tokenizer.tokenizer import Tokenizer


@pytest.fixture
def corpus(make_texts: Any, tmp_path: Path) -> Path:
    texts = make_texts(400, seed=5)
    rows = [{"text": text} for text in [*texts, *texts[:50], " "]]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "corpus.jsonl"


def prepare_config(corpus: Path, tokenizer_folder: Path, **changes: object) -> prepare.PrepareConfig:
    given = {"input": corpus, "tokenizer": tokenizer_folder, "output": corpus.parent / "out", "processes": 1}
    return resolve(prepare.PrepareConfig, given | changes)


def test_a_vocabulary_is_learned_from_files(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"input": corpus, "output": tmp_path / "tokenizer", "vocab_size": 512, "max_length": 2048}
    folder = tokenizer.run(resolve(tokenizer.TokenizerConfig, given))
    loaded = Tokenizer.load(folder)
    assert loaded.vocab_size == 512
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 2048
    printed = capsys.readouterr()
    assert f"512 entries, fingerprint {loaded.fingerprint}" in printed.out
    assert "450 documents read, 1 empty document left out" in printed.err


def test_learning_and_adapting_exclude_each_other(tmp_path: Path) -> None:
    for given in ({}, {"adapt": "x.json", "input": "x.txt"}):
        config = resolve(tokenizer.TokenizerConfig, {"output": tmp_path / "out"} | given)
        with pytest.raises(InputError, match=r"expected one of --input \(text to learn from\) and --adapt"):
            tokenizer.run(config)
    assert list(tmp_path.iterdir()) == []


def test_a_length_that_holds_no_token_is_refused(corpus: Path, tmp_path: Path) -> None:
    given = {"input": corpus, "output": tmp_path / "out", "max_length": -1}
    with pytest.raises(InputError, match="max_length: found -1, expected at least 3"):
        tokenizer.run(resolve(tokenizer.TokenizerConfig, given))
    assert not (tmp_path / "out").exists()


def test_documents_are_split_by_their_text(
    corpus: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = prepare.run(prepare_config(corpus, tokenizer_folder, heldout=0.2))
    used = Tokenizer.load(tokenizer_folder)
    printed = capsys.readouterr().out
    texts = {}
    for split in ("train", "heldout"):
        shards = Shards.open(out / split)
        texts[split] = [used.decode(shards.tokens(doc).astype(int).tolist()) for doc in range(shards.num_docs)]
        assert f"{out / split}: {shards.num_docs} documents, {shards.num_tokens:,} tokens" in printed
    read = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    assert sorted(texts["train"] + texts["heldout"]) == sorted(text for text in read if text.strip())
    assert not set(texts["train"]) & set(texts["heldout"]), "copies must fall on one side"
    assert 0.1 < len(texts["heldout"]) / 450 < 0.3
    index = json.loads((out / "train" / "index.json").read_text())
    assert (index["corpus"]["documents"], index["corpus"]["empty"]) == (450, 1)


def test_without_heldout_everything_is_for_training(
    corpus: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = prepare.run(prepare_config(corpus, tokenizer_folder))
    assert sorted(path.name for path in out.iterdir()) == ["prepare.json", "train"]
    printed = capsys.readouterr().out
    assert "450 documents read, 1 empty document left out" in printed
    assert f"{out / 'train'}: 450 documents, {Shards.open(out / 'train').num_tokens:,} tokens" in printed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heldout": 1.0}, "heldout: found 1.0"),
        ({"processes": -1}, "processes: found -1"),
        ({"heldout": 1e-9}, "^heldout: the share 1e-09 of 450 documents holds none out, expected a larger share"),
        ({"heldout": 1 - 1e-9}, "^heldout: the share 0.9+ of 450 documents leaves none for train, expected a smaller"),
        ({"text_field": "body"}, r"corpus\.jsonl:1: no field 'body'"),
        ({"tokenizer": "nowhere"}, "nowhere: no such tokenizer file"),
    ],
)
def test_bad_settings_leave_nothing_behind(
    corpus: Path, tokenizer_folder: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepare.run(prepare_config(corpus, tokenizer_folder, **changes))
    assert [path.name for path in corpus.parent.iterdir()] == ["corpus.jsonl"]


def test_the_command_line_prepares_with_two_processes(corpus: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    words = ["--input", str(corpus), "--tokenizer", str(tokenizer_folder), "--output", str(tmp_path / "out")]
    words += ["--processes", "2"]
    command = [sys.executable, "-m", "modernbert", "prepare", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "450 documents read" in done.stdout
    again = modernbert("prepare", *words)
    assert again.returncode == 0 and "is finished and intact" in again.stdout
    other = modernbert("prepare", *words, "--invalid", "refuse")
    assert other.returncode == 2
    assert other.stderr.strip().count("\n") == 0 and "exists already, prepared with another invalid" in other.stderr


def test_skipped_files_are_counted(
    make_texts: Any, tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "texts"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "a.txt").write_text(make_texts(1, seed=2)[0])
    (folder / "below" / "b.pdf").write_text("x")
    (folder / "linked").symlink_to(folder / "below")
    (folder / ".hidden").write_text("x")
    out = prepare.run(prepare_config(folder, tokenizer_folder))
    assert "1 document read" in (printed := capsys.readouterr().out)
    assert "2 files of other formats or linked folders ignored" in printed
    assert json.loads((out / "train" / "index.json").read_text())["corpus"]["passed_over"] == 2


def test_a_failed_write_names_the_requested_folder(corpus: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limit[1]))
    try:
        with pytest.raises(InputError, match=rf"^{tmp_path / 'out'}: cannot be written \(File too large\)"):
            prepare.run(prepare_config(corpus, tokenizer_folder))
        given = {"input": corpus, "output": tmp_path / "learned", "vocab_size": 512}
        with pytest.raises(InputError, match=rf"^{tmp_path / 'learned'}: cannot be written \(File too large\)"):
            tokenizer.run(resolve(tokenizer.TokenizerConfig, given))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == [corpus]


def workers_of(process: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == process and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue  # gone since it was listed
    return found


def is_running(process: int) -> bool:
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_end_with_a_killed_parent(make_texts: Any, tokenizer_folder: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "big.txt"
    corpus.write_text("\n".join(make_texts(2_000, seed=7)) * 60)
    words = ["--input", str(corpus), "--tokenizer", str(tokenizer_folder), "--output", str(tmp_path / "out")]
    command = [sys.executable, "-m", "modernbert", "prepare", *words, "--txt-unit", "line", "--processes", "2"]
    parent = subprocess.Popen(command, env=os.environ, stderr=subprocess.DEVNULL)
    workers: list[int] = []
    try:
        deadline = time.monotonic() + 30
        while len(workers) < 2 and parent.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
            workers = workers_of(parent.pid)
        time.sleep(1.5)  # the workers have started and hold work or wait for it
        assert parent.poll() is None and len(workers) == 2
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 10
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [worker for worker in workers if is_running(worker)]


def test_a_folder_of_texts_is_prepared_once(
    make_texts: Any, tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(make_texts(40, seed=5)):
        (tmp_path / "texts" / f"{number}.txt").write_text(text)

    def folder(**changes: Any) -> Path:
        return prepare.run(prepare_config(tmp_path / "texts", tokenizer_folder, **{"heldout": 0.2} | changes))

    found = folder()
    assert found == tmp_path / "out"
    assert sum(Shards.open(found / split).num_docs for split in ("train", "heldout")) == 40
    written = (tmp_path / "out" / "train" / "index.json").stat().st_mtime_ns
    capsys.readouterr()
    assert folder() == found and "is finished and intact" in capsys.readouterr().out
    assert (tmp_path / "out" / "train" / "index.json").stat().st_mtime_ns == written
    with pytest.raises(InputError, match="exists already, prepared with another heldout"):
        folder(heldout=0.0)
    (tmp_path / "texts" / "more.txt").write_text("one more")
    with pytest.raises(InputError, match="exists already, prepared from other files"):
        folder()
