"""Shipped configs, models and tokenizers go by their names."""

from pathlib import Path

import pytest
from commands import modernbert
from hub_cache import add_to_cache

from modernbert import ModernBert
from modernbert.config_files import nested, resolve, to_yaml
from modernbert.options import option_name
from modernbert.training.pretraining import PretrainConfig
from modernbert.training.retriever_finetuning import RetrieverConfig

HUB_NAME = "answerdotai/ModernBERT-base"


@pytest.fixture
def elsewhere(tmp_path: Path, small_bert: ModernBert, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a corpus, and a cache of the hub in which a small model goes by its published name."""
    (tmp_path / "work" / "corpus").mkdir(parents=True)
    for number in range(30):
        lines = [
            f"The capital of country {n} is city {n * 7}, in a land of {n % 11} rivers."
            for n in range(number * 100, number * 100 + 100)
        ]
        (tmp_path / "work" / "corpus" / f"{number}.txt").write_text("\n".join(lines))
    add_to_cache(tmp_path / "hub", HUB_NAME, small_bert.save)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


SCHEMAS = {"pretrain": PretrainConfig, "finetune": RetrieverConfig}
GIVEN = {
    "pretrain": {"output": "x", "tokenizer": "x", "init_from": "x", "data.sources.a": "x"},
    "finetune": {"model": "x", "output": "x", "train": "x", "dev": "x"},
}
CONFIGS = Path(__file__).parents[1] / "modernbert" / "configs"


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.yaml")), ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_shipped_configs_go_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.chdir(tmp_path)
    verb, name = file.parent.name, f"{file.parent.name}/{file.stem}"
    given = nested(GIVEN[verb] | ({"phases.adapt.tokens": 65536} if file.stem == "adapt" else {}))
    found = [to_yaml(resolve(SCHEMAS[verb], given, each)) for each in (name, f"{name}.yaml", file)]
    assert found[0] == found[1] == found[2]


def test_commands_take_the_names_of_configs(elsewhere: Path) -> None:
    for verb, name, line in (
        ("pretrain", "pretrain/demo", "preset: tiny\n"),
        ("finetune", "finetune/msmarco-single", "batch: 512\n"),
    ):
        words = [word for key, value in GIVEN[verb].items() for word in (option_name(key), value) if word != "--model"]
        done = modernbert(verb, *words, "--config", name, "--print")
        assert done.returncode == 0 and line in done.stdout, done.stderr


def test_a_file_of_that_name_comes_first_and_an_unknown_name_lists_the_shipped(elsewhere: Path) -> None:
    (elsewhere / "pretrain").mkdir()
    (elsewhere / "pretrain" / "demo").write_text("seed: 123\n")
    assert "seed: 123\n" in modernbert("pretrain", "--config", "pretrain/demo", "--output", "x", "--print").stdout
    for words in (
        ["pretrain", "--config", "pretrain/dmo"],
        ["finetune", "--config", "mine.yaml"],
        ["plan", "--config", "pretrain/dmo"],
    ):
        done = modernbert(*words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert f"{words[-1]}: no such config file; the shipped configs are finetune/code, " in done.stderr
        assert "pretrain/adapt, pretrain/base, pretrain/demo" in done.stderr


def test_a_plan_takes_the_names_of_configs_and_of_models(elsewhere: Path) -> None:
    words = ["plan", "--config", "pretrain/adapt", "--init-from", HUB_NAME, "--device", "h100"]
    done = modernbert(*words, "--phases.adapt.tokens", "5000000")
    assert done.returncode == 0, done.stderr
    done = modernbert(*words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "Missing required option --phases.adapt.tokens" in done.stderr


def test_a_tokenizer_that_is_nowhere_is_named(elsewhere: Path) -> None:
    for words in (
        ["prepare", "--input", "corpus/", "--output", "x", "--tokenizer", "owner/absent"],
        ["pretrain", "--data.sources.a", "x", "--output", "x", "--phases.a.tokens", "65536", "--phases.a.lr", "1e-3",
         "--tokenizer", "owner/absent"],
    ):  # fmt: skip
        done = modernbert(*words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "owner/absent: no such tokenizer file or folder, and not on the hub" in done.stderr
        assert not (elsewhere / "x").exists()
