"""Mistakes of users are one line that says how to fix them."""

from pathlib import Path

import numpy as np
import pytest
from commands import modernbert, run_here

from modernbert import ModernBert, embed_files


def refused(*words: object) -> str:
    """Run a command that must be refused, and return its line."""
    done = run_here(*map(str, words))
    assert done.returncode == 2, done.stderr
    return done.stderr.splitlines()[-1].removeprefix("modernbert: ")


@pytest.mark.parametrize("words", [["classify", "{run}", "a"], ["embed", "{run}", "a"],
                                   ["finetune", "{run}", "--task", "classify", "--train", "t", "--output", "{out}"]],
                         ids=lambda words: words[0])  # fmt: skip
def test_a_run_folder_in_place_of_its_model(words: list[str], classifier_run: Path, tmp_path: Path) -> None:
    said = refused(*(word.format(run=classifier_run, out=tmp_path / "out") for word in words))
    assert said == f"{classifier_run}: is a run folder; use {classifier_run / 'model'}"


def test_a_run_of_fine_tuning_is_not_pretrained_further(classifier_run: Path, bert: Path, tmp_path: Path) -> None:
    said = refused("grow", classifier_run, "--output", tmp_path / "out")
    assert "is a checkpoint of fine-tuning, expected one of pretraining" in said or "no masked-language-model" in said


def test_a_missing_model_while_offline() -> None:
    done = modernbert("embed", "nobody/none", "a", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert done.stderr.endswith(
        "nobody/none: no such folder, no earlier download, and the Hub cannot be reached (HF_HUB_OFFLINE is set)\n"
    )


def test_an_index_in_place_of_a_file(bert: Path, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("a note\n")
    said = refused("index", bert, "--input", file, "--output", file)
    assert said == f"{file}: is a file, expected a new folder or an index"


def test_a_value_of_a_sweep_given_twice(bert: Path, rows: dict[str, Path], tmp_path: Path) -> None:
    words = ["sweep", bert, "--task", "classify", "--train", rows["train"], "--dev", rows["dev"]]
    said = refused(*words, "--output", tmp_path / "out", "--sweep.lr", "1e-4", "--sweep.lr", "0.0001")
    assert said == "--sweep.lr: found 0.0001, 0.0001, expected each value once"


def test_an_address_without_the_library_that_reads_it(bert: Path) -> None:
    done = modernbert("embed", str(bert), "--input", "http://localhost/a.txt", without=["aiohttp", "requests"])
    assert done.returncode == 2 and done.stderr.endswith(": pip install aiohttp requests\n"), done.stderr


def test_a_dash_in_place_of_standard_input(bert: Path) -> None:
    assert refused("embed", bert, "--input", "-") == "--input: found -; leave it out to read standard input"


def test_a_single_value_is_a_list_of_one(bert: Path, tmp_path: Path) -> None:
    embed_files(str(bert), "hello", output=tmp_path / "one.npy", dtype="float32", device="cpu")
    expected = ModernBert.load(bert, dtype="float32", device="cpu").embed(["hello"])
    np.testing.assert_allclose(np.load(tmp_path / "one.npy"), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["finetune", "--dev-split", "test"], "--dev-split: found 'test', which has no effect without --dev"),
        (["finetune", "--test-split", "a"], "--test-split: found 'a', which has no effect without --test"),
        (["finetune", "--scorings-per-epoch", "2"], "--scorings-per-epoch: found 2, which has no effect without --dev"),
        (["finetune", "--dev", "{train}", "--scorings-per-epoch", "9"],
         "--scorings-per-epoch: found 9, but an epoch has 4 steps of 32 examples (--batch)"),
        (["sweep", "--dev", "{train}", "--lr", "1e-3", "--sweep.lr", "1e-4"],
         "--lr: has no effect beside --sweep.lr; give one of them"),
        (["sweep", "--dev", "{train}", "--epochs", "1", "--sweep.epochs", "2", "--sweep.epochs", "3"],
         "--epochs: has no effect beside --sweep.epochs; give one of them"),
    ],
)  # fmt: skip
def test_an_option_without_effect(
    words: list[str], said: str, bert: Path, rows: dict[str, Path], tmp_path: Path
) -> None:
    verb, *more = (word.format(train=rows["train"]) for word in words)
    common = ["--task", "classify", "--train", rows["train"], "--output", tmp_path / "out", "--device", "cpu"]
    assert refused(verb, bert, *common, *more) == said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["embed", "{bert}", "a", "--truncate-dim", "65"], "--truncate-dim: found 65, expected 1 to 64"),
        (["embed", "{bert}", "--input", "{rows}", "--text-field", "x"], "no column 'x', found 'text'"),
        (["embed", "{bert}", "--input", "{broken}"], "broken.jsonl:1: is not JSON"),
        (["embed", "{bert}", "--input", "{broken}", "--output", "{out}"], "broken.jsonl:1: is not JSON"),
    ],
)
def test_what_can_be_checked_before_a_model_is_loaded(
    words: list[str], said: str, bert: Path, rows: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "broken.jsonl").write_text('{"text": \n')
    names = {"bert": bert, "rows": rows["train"], "broken": tmp_path / "broken.jsonl", "out": tmp_path / "out.npy"}
    done = run_here(*(word.format(**names) for word in words))
    # A loaded model would print its device.
    assert done.returncode == 2 and said in done.stderr and "device" not in done.stderr


def test_the_engine_is_printed_once(bert: Path) -> None:
    done = modernbert("embed", str(bert), "a", "--device", "cpu")
    assert done.returncode == 0 and done.stderr.count("engine") == 1, done.stderr
