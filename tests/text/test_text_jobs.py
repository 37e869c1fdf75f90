import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modernbert import config as configs
from modernbert.errors import InputError
from modernbert.jobs import prepare, tokenizer
from modernbert.text.shards import Shards
from modernbert.text.tokenizer import Tokenizer


@pytest.fixture
def corpus(make_texts: Any, tmp_path: Path) -> Path:
    texts = make_texts(400, seed=5)
    rows = [{"text": text} for text in [*texts, *texts[:50], " "]]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "corpus.jsonl"


def prepare_config(corpus: Path, tokenizer_folder: Path, **changes: object) -> prepare.PrepareConfig:
    words = [f"{key}={value}" for key, value in changes.items()]
    given = [f"sources=[{corpus}]", f"tokenizer={tokenizer_folder}", f"out={corpus.parent / 'out'}", "processes=1"]
    return configs.load(prepare.PrepareConfig, None, [*given, *words])


def test_a_vocabulary_is_learned_from_files(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"sources=[{corpus}]", f"out={tmp_path / 'tokenizer'}", "vocab_size=512", "max_length=2048"]
    folder = tokenizer.run(configs.load(tokenizer.TokenizerConfig, None, words))
    loaded = Tokenizer.load(folder)
    assert loaded.vocab_size == 512
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 2048
    printed = capsys.readouterr()
    assert f"512 entries, fingerprint {loaded.fingerprint}" in printed.out
    assert "450 documents, 1 empty ones left out, 0 repaired" in printed.err


def test_learning_and_adapting_exclude_each_other(tmp_path: Path) -> None:
    for words in ([], ["adapt=x.json", "sources=[x.txt]"]):
        given = configs.load(tokenizer.TokenizerConfig, None, [f"out={tmp_path / 'out'}", *words])
        with pytest.raises(InputError, match="expected either sources to learn from or adapt"):
            tokenizer.run(given)
    assert list(tmp_path.iterdir()) == []


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
    assert [path.name for path in out.iterdir()] == ["train"]
    printed = capsys.readouterr().out
    assert "450 documents read, 1 empty ones left out, 0 repaired" in printed
    assert f"{out / 'train'}: 450 documents, {Shards.open(out / 'train').num_tokens:,} tokens" in printed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heldout": 1.0}, "heldout: found 1.0"),
        ({"processes": -1}, "processes: found -1"),
        ({"heldout": 1e-9}, "no document to write"),
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
    words = [f"sources=[{corpus}]", f"tokenizer={tokenizer_folder}", f"out={tmp_path / 'out'}", "processes=2"]
    command = [sys.executable, "-m", "modernbert.cli", "prepare", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "450 documents read" in done.stdout
    again = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert again.returncode == 2
    assert again.stderr.strip().count("\n") == 0 and "exists already" in again.stderr
