"""The commands of the README: pretraining runs as printed, and every option that a page names exists."""

import re
import shlex
from pathlib import Path

import pytest
from commands import modernbert

from modernbert import ModernBert
from modernbert.checkpoints.folder import ModelFolder
from modernbert.cli.option_names import option_name
from modernbert.cli.verbs import VERBS
from modernbert.config_files import nested, resolve, to_yaml
from modernbert.data.shards import Shards
from modernbert.options import options_of
from modernbert.tokenizer.tokenizer import Tokenizer
from modernbert.training.pretraining import PretrainConfig
from modernbert.training.retriever_finetuning import RetrieverConfig

README = Path(__file__).parents[1] / "README.md"
HUB_NAME, COMMIT = "answerdotai/ModernBERT-base", "0123456789abcdef0123456789abcdef01234567"
# What makes each command one of seconds: sizes, and nothing else.
SHORTER = {
    "tokenizer": "--vocab-size 512",
    "prepare": "--heldout 0.2 --processes 1",
    "pretrain/demo": (
        "--phases.stable.tokens 2048 --phases.stable.warmup-tokens 0 --phases.stable.batch-warmup-tokens 0 "
        "--phases.stable.max-micro-batches 1 --phases.extension.tokens 1024 --phases.extension.max-len 1024 "
        "--phases.extension.micro-batch-tokens 1024 --phases.decay.tokens 1024 --phases.decay.max-len 1024 "
        "--phases.decay.micro-batch-tokens 1024 --evaluation.max-tokens 512 --no-data.verify"
    ),
    "pretrain/adapt": (
        "--phases.adapt.tokens 2048 --phases.adapt.warmup-tokens 0 --phases.adapt.max-micro-batches 1 "
        "--phases.adapt.micro-batch-tokens 1024 --phases.adapt.max-len 512"
    ),
}


def commands_of(section: str) -> list[list[str]]:
    """Return the words of every command in the code blocks of a section of the README."""
    text = README.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def without(words: list[str], others: list[str]) -> list[str]:
    """Return words without the options, and their values, that are also in others."""
    return [
        word
        for word, before in zip(words, ["", *words], strict=False)
        if not any(each.startswith("--") and each in others for each in (word, before))
    ]


@pytest.fixture
def elsewhere(tmp_path: Path, small_bert: ModernBert, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a corpus, and a cache of the hub in which a small model goes by the name in the README."""
    (tmp_path / "work" / "corpus").mkdir(parents=True)
    for number in range(30):
        lines = [
            f"The capital of country {n} is city {n * 7}, in a land of {n % 11} rivers."
            for n in range(number * 100, number * 100 + 100)
        ]
        (tmp_path / "work" / "corpus" / f"{number}.txt").write_text("\n".join(lines))
    kept = tmp_path / "hub" / f"models--{HUB_NAME.replace('/', '--')}"
    small_bert.save(kept / "snapshots" / COMMIT)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(COMMIT)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_pretraining_and_continued_pretraining_work_as_printed(elsewhere: Path, small_bert: ModernBert) -> None:
    said = ""
    wanted = [words for words in commands_of("Train") if words[0] == "modernbert"]
    for words in wanted[: [words[3] for words in wanted].index("pretrain/adapt") + 1]:
        verb, *rest = words[1:]
        shorter = SHORTER[rest[1] if verb == "pretrain" else verb].split()
        done = modernbert(verb, *without(rest, shorter), *shorter)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        said += done.stdout + done.stderr
    assert f"starting from {HUB_NAME}" in said
    mine = ModernBert.load(elsewhere / "runs" / "mine" / "model", device="cpu")
    assert mine.tokenizer.fingerprint == Tokenizer.load(elsewhere / "tokenizer").fingerprint
    adapted = ModernBert.load(elsewhere / "runs" / "adapted" / "model", device="cpu")
    theirs = small_bert.tokenizer.fingerprint
    assert (
        adapted.tokenizer.fingerprint
        == theirs
        == Shards.open(elsewhere / "runs" / "adapted" / "shards" / "train").fingerprint
    )
    assert ModelFolder(elsewhere / "runs" / "adapted" / "model").config.hidden_size == 64
    assert adapted.fill_mask("The capital of [MASK].", top_k=1)[0]


SCHEMAS = {"pretrain": PretrainConfig, "finetune": RetrieverConfig}
GIVEN = {
    "pretrain": {"output": "x", "tokenizer": "x", "init_from": "x", "data.sources.a": "x"},
    "finetune": {"model": "x", "output": "x", "train": "x", "dev": "x"},
}
CONFIGS = Path(__file__).parents[1] / "modernbert" / "configs"
# Options of torchrun, of the benchmarks, and of the example in CONTRIBUTING.md.
OTHER_PROGRAMS = ("--nproc-per-node", "--rounds", "--out", "--models", "--sets", "--engines", "--documents",
                  "--phases.NAME.warmup-share")  # fmt: skip


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


def test_options_that_are_named_in_prose_exist() -> None:
    schemas = [VERBS[verb].load_options(task) for verb in VERBS for task in (None, "embed")]
    known = {option_name(each.key) for schema in schemas for each in options_of(schema)}
    known |= {"--config", "--print", "--help", *OTHER_PROGRAMS}
    for page in (README, README.with_name("CONTRIBUTING.md"), *CONFIGS.rglob("*.yaml")):
        for name in re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", page.read_text()):
            patterns = (re.escape(each).replace("NAME", "[^.]+") for each in known)
            assert any(re.fullmatch(pattern, name.replace("--no-", "--")) for pattern in patterns), (
                f"{page.name}: {name}"
            )
