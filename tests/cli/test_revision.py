"""`--revision`: the revision of a model on the Hub, for every command that takes the name of one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import modernbert

from modernbert import ModernBert
from modernbert.cli.verbs import VERBS
from modernbert.options import options_of

OLD, NEW = "0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"
CPU = ("--device", "cpu", "--dtype", "float32")


@pytest.fixture
def hub(tmp_path: Path, small_bert: ModernBert, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the Hub with `owner/name` in two revisions: its main branch, and the tag `v1` with other weights."""
    kept = tmp_path / "hub" / "models--owner--name"
    (kept / "refs").mkdir(parents=True)
    for commit, name in ((NEW, "main"), (OLD, "v1")):
        small_bert.save(kept / "snapshots" / commit)
        (kept / "refs" / name).write_text(commit)
    changed = ModernBert.load(kept / "snapshots" / OLD, device="cpu", dtype="float32")
    with torch.no_grad():
        changed.encoder.get_parameter("embeddings.norm.weight").mul_(torch.linspace(0.5, 2, changed.width))
    (kept / "snapshots" / OLD).rename(tmp_path / "unused")
    changed.save(kept / "snapshots" / OLD)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def vectors_of(name: str, *words: str) -> np.ndarray:
    done = modernbert("embed", name, "a text", *words, *CPU, "--output", "v.npy", "--overwrite")
    assert done.returncode == 0, done.stderr
    return np.load("v.npy")


def test_a_revision_is_loaded_by_option_and_by_name(hub: Path) -> None:
    snapshots = hub / "hub" / "models--owner--name" / "snapshots"
    newest, old = (
        ModernBert.load(snapshots / commit, device="cpu", dtype="float32").embed("a text") for commit in (NEW, OLD)
    )
    assert not np.allclose(newest, old, atol=1e-3)
    np.testing.assert_allclose(vectors_of("owner/name"), newest, atol=1e-5)
    for name, words in (("owner/name", ("--revision", "v1")), ("owner/name@v1", ()), (f"owner/name@{OLD}", ())):
        np.testing.assert_allclose(vectors_of(name, *words), old, atol=1e-5)
    done = modernbert("embed", "owner/name", "a text", "--revision", "v9", *CPU)
    assert done.returncode == 2 and "owner/name@v9: no such folder, no earlier download" in done.stderr


def test_an_index_keeps_the_revision_of_its_model(hub: Path) -> None:
    pytest.importorskip("lancedb")
    (hub / "a.txt").write_text("The capital of country 3.\n")
    made = modernbert("index", "owner/name", "--revision", "v1", "--input", "a.txt", "--output", "i", *CPU)
    assert made.returncode == 0, made.stderr
    for words in ((), ("--model", "owner/name", "--revision", "v1")):
        found = modernbert("search", "i", "capital", *words, *CPU)
        assert found.returncode == 0 and "The capital" in found.stdout, found.stderr
    other = modernbert("search", "i", "capital", "--model", "owner/name", *CPU)
    assert other.returncode == 2 and "Traceback" not in other.stderr


ROWS = ("--train", "rows.tsv", "--output", "o")
COMMANDS = {
    "embed": ("{model}", "a"),
    "classify": ("{model}", "a"),
    "tag": ("{model}", "a"),
    "rerank": ("{model}", "a", "b"),
    "fill-mask": ("{model}", "a"),
    "index": ("{model}", "--input", "rows.tsv", "--output", "o"),
    "serve": ("{model}", "--port", "0"),
    "export": ("{model}", "--output", "o"),
    "finetune": ("{model}", "--task", "classify", *ROWS),
    "sweep": ("{model}", "--task", "embed", *ROWS, "--dev", "."),
    "grow": ("{model}", "--output", "o"),
    "evaluate retrieval": ("{model}", "."),
    "evaluate glue": ("{model}", ".", "--output", "o"),
    "bench": ("{model}",),
    "quantize": ("{model}", "--output", "o", "--texts", "rows.tsv"),
    "convert": ("c.pt", "--tokenizer", "{model}", "--output", "o"),
}


def test_every_command_that_takes_the_name_of_a_model_takes_a_revision() -> None:
    found = set()
    for name, verb in VERBS.items():
        options = {option.key: option.help for option in options_of(verb.load_options())}
        if "revision" in options and name != "push":  # the branch that it pushes to
            found.add(name)
        assert "revision" in options or not options.get("model", "").startswith("Model folder, "), name
    assert found == {*COMMANDS, "search"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_has_no_revision(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "rows.tsv").write_text("text\tlabel\na\tb\n")
    (tmp_path / "c.pt").touch()
    done = modernbert(*name.split(), *(word.format(model="model") for word in COMMANDS[name]), "--revision", "v1")
    assert done.returncode == 2 and "revision: found 'v1', but model is a folder, which has none" in done.stderr
