"""Uploads to a stand-in for the Hub: what is there afterwards, and errors of one line."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import modernbert
from hub_server import READER, WRITER, Hub, serve_hub
from torch import nn

from modernbert import ModernBert
from modernbert.checkpoints.folder import ModelFolder
from modernbert.model.embedding_config import EmbeddingConfig

LOAD = """
import sys
import numpy as np
from modernbert import ModernBert
bert = ModernBert.load(sys.argv[1], device="cpu", dtype="float32", engine="torch", revision=sys.argv[2] or None)
np.save(sys.argv[3], bert.embed("a city"))
"""


@pytest.fixture(scope="module")
def start(small_bert: ModernBert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "model"
    small_bert.save(folder)
    return folder


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as found:
        yield found


def env_of(hub: Hub, home: Path, token: str = WRITER) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip


def push(hub: Hub, home: Path, *words: object, token: str = WRITER) -> subprocess.CompletedProcess[str]:
    return modernbert("push", *map(str, words), **env_of(hub, home, token))


def refused(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    return done.stderr.splitlines()[-1].removeprefix("modernbert: ")


def test_a_pushed_model_loads_by_its_name(hub: Hub, start: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(start, tmp_path / "model")
    for name in ("optimizer.pt", "log.jsonl", ".env", "training_args.bin"):
        (folder / name).write_text("secret")
    done = push(hub, tmp_path, folder, "me/mine", "--private", "--message", "The first")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{hub.endpoint}/me/mine" and "HTTP Request" not in done.stderr
    repository = hub.repositories["me/mine"]
    assert repository.private and sorted(repository.branches["main"]) == sorted(path.name for path in start.iterdir())
    assert [(branch, message) for branch, message, _ in repository.commits] == [("main", "The first")]
    card = repository.branches["main"]["README.md"].decode()
    assert 'ModernBert.load("me/mine")' in card and "path/to/model" not in card
    assert "path/to/model" in (folder / "README.md").read_text()
    words = [sys.executable, "-c", LOAD, "me/mine", "", str(tmp_path / "found.npy")]
    subprocess.run(words, env=os.environ | env_of(hub, tmp_path / "reader"), check=True, capture_output=True)
    bert = ModernBert.load(start, device="cpu", dtype="float32", engine="torch")
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), bert.embed("a city"))


def test_a_second_push_replaces_the_model_and_keeps_other_files(hub: Hub, start: Path, tmp_path: Path) -> None:
    assert push(hub, tmp_path, start, "me/mine").returncode == 0
    files = hub.repositories["me/mine"].branches["main"]
    files |= {"modules.json": b"[]", "1_Pooling/config.json": b"{}", "picture.png": b"p", "docs/config.json": b"{}"}
    folder = shutil.copytree(start, tmp_path / "model")
    (folder / "README.md").write_text("# Mine\n")
    assert push(hub, tmp_path, folder, "me/mine").returncode == 0
    after = hub.repositories["me/mine"].branches["main"]
    assert set(after) == {*(path.name for path in start.iterdir()), "picture.png", "docs/config.json"}
    assert after["README.md"] == b"# Mine\n"


def test_the_modules_of_an_embedding_model_are_pushed(hub: Hub, small_bert: ModernBert, tmp_path: Path) -> None:
    torch.manual_seed(0)
    projection = nn.Linear(64, 16, bias=False)
    folder = tmp_path / "model"
    ModelFolder.save(
        folder, small_bert.model.encoder, small_bert.tokenizer, vectors=EmbeddingConfig(), projection=projection
    )
    (folder / "2_Dense").rename(folder / "dense")
    listed = (folder / "modules.json").read_text()
    (folder / "modules.json").write_text(listed.replace("2_Dense", "dense"))
    done = push(hub, tmp_path, folder, "me/mine")
    assert done.returncode == 0, done.stderr
    assert {"dense/config.json", "dense/model.safetensors"} < set(hub.repositories["me/mine"].branches["main"])


def test_a_branch_is_made_and_main_stays(hub: Hub, start: Path, tmp_path: Path) -> None:
    assert push(hub, tmp_path, start, "me/mine").returncode == 0
    folder = shutil.copytree(start, tmp_path / "model")
    (folder / "README.md").write_text("# Mine\n")
    done = push(hub, tmp_path, folder, "me/mine", "--revision", "trial")
    assert done.stdout.splitlines()[-1] == f"{hub.endpoint}/me/mine/tree/trial", done.stderr
    branches = hub.repositories["me/mine"].branches
    assert branches["trial"]["README.md"] == b"# Mine\n" != branches["main"]["README.md"]


def test_folders_that_are_no_model_are_refused_before_a_request(hub: Hub, start: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(start, run / "model")
    (run / "config.yaml").write_text("")
    assert refused(push(hub, tmp_path, run, "me/mine")) == f"{run}: is a run folder; use {run / 'model'}"
    unverified = shutil.copytree(start, tmp_path / "model.unverified")
    assert "failed its check when it was written" in refused(push(hub, tmp_path, unverified, "me/mine"))
    assert "no such folder" in refused(push(hub, tmp_path, tmp_path / "none", "me/mine"))
    for name in ("mine", "a/b/c", "me/", "../me", "me/my model"):
        assert refused(push(hub, tmp_path, start, name)).endswith("expected OWNER/NAME (for example me/my-model)")
    broken = shutil.copytree(start, tmp_path / "broken")
    (broken / "config.json").write_text(json.dumps({"model_type": "modernbert"}))
    assert str(broken) in refused(push(hub, tmp_path, broken, "me/mine"))
    linked = shutil.copytree(start, tmp_path / "linked")
    (linked / "vocab.txt").symlink_to("/etc/hostname")
    assert f"{linked / 'vocab.txt'}: is a link" in refused(push(hub, tmp_path, linked, "me/mine"))
    assert hub.repositories == {}


def test_refusals_of_the_hub_are_one_line(hub: Hub, start: Path, tmp_path: Path) -> None:
    assert "log in with `hf auth login`, or set HF_TOKEN" in refused(push(hub, tmp_path, start, "me/mine", token="no"))
    assert "may not write there" in refused(push(hub, tmp_path, start, "me/mine", token=READER))
    assert "may not write there" in refused(push(hub, tmp_path, start, "others/theirs"))
    hub.breaks_at = "/commit/"
    assert "me/mine: no commit was made. The Hub refused it (" in refused(push(hub, tmp_path, start, "me/mine"))
    assert hub.repositories["me/mine"].branches["main"] == {}
    hub.breaks_at = ""
    said = refused(push(hub, tmp_path, start, "me/mine", "--private"))
    assert said == "me/mine: exists and is public, expected private; change it in its settings on the Hub"
    assert push(hub, tmp_path, start, "me/mine", "--no-private").returncode == 0


def test_a_hub_that_cannot_be_reached_is_one_line(start: Path, tmp_path: Path) -> None:
    with serve_hub() as hub:
        pass
    assert "me/mine: no commit was made. The Hub cannot be reached (" in refused(push(hub, tmp_path, start, "me/mine"))
    done = modernbert("push", str(start), "me/mine", HF_HUB_OFFLINE="1")
    assert "The Hub cannot be reached (" in refused(done)
