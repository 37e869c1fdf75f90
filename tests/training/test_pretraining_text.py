"""`pretrain --text`: text is tokenized into the run folder, once."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import run_here

from modernbert import ModernBert, pretrain
from modernbert.config_files import resolve
from modernbert.data.shards import Shards
from modernbert.errors import InputError
from modernbert.tokenizer.tokenizer import Tokenizer
from modernbert.training.pretraining import Phase, PretrainConfig, run
from modernbert.training.run_options import CheckpointConfig, DistributedConfig


@pytest.fixture
def config(small_bert: ModernBert, make_texts: Any, tmp_path: Path) -> PretrainConfig:
    small_bert.save(tmp_path / "start")
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(make_texts(40, seed=5)):
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    phase = Phase(tokens=2_048, lr=1e-3, max_len=128, micro_batch_tokens=256)
    return PretrainConfig(
        output=str(tmp_path / "run"), init_from=str(tmp_path / "start"), text=[str(tmp_path / "texts")], heldout=0.2,
        phases={"adapt": phase}, device="cpu", dtype="float32", checkpoint=CheckpointConfig(every_steps=2, keep=9),
    )  # fmt: skip


def rows(folder: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def test_text_is_a_source_with_the_tokenizer_of_the_model(
    config: PretrainConfig, small_bert: ModernBert, tmp_path: Path
) -> None:
    run(config)
    shards = [Shards.open(tmp_path / "run" / "shards" / split) for split in ("train", "heldout")]
    assert sum(each.num_docs for each in shards) == 40 and shards[1].num_docs > 2
    assert {each.fingerprint for each in shards} == {small_bert.tokenizer.fingerprint}
    log = rows(config.output)
    assert {row["source"] for row in log if row["kind"] == "heldout"} == {"text"}
    assert all(row["source_tokens"].keys() == {"text"} for row in log if row["kind"] == "step")
    # The same text that was prepared before gives the same run.
    sources = replace(
        config, text=[], heldout=0.0, output=str(tmp_path / "prepared"),
        data=replace(config.data, sources={"text": str(tmp_path / "run" / "shards" / "train")},
                     heldout={"text": str(tmp_path / "run" / "shards" / "heldout")}),
    )  # fmt: skip
    run(sources)
    assert rows(sources.output) == log


def test_a_run_continues_without_its_text(config: PretrainConfig, tmp_path: Path) -> None:
    run(config)
    log, weights = rows(config.output), (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    for path in (tmp_path / "run" / "checkpoints").glob("step-*"):
        if path.name != "step-00000004":
            shutil.rmtree(path)
    for name in ("run/model", "texts", "start"):
        shutil.rmtree(tmp_path / name)
    run(config)
    assert rows(config.output) == log
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_does_not_continue_with_changed_text(
    config: PretrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], finished: bool
) -> None:
    run(config)
    if not finished:
        shutil.rmtree(tmp_path / "run" / "model")
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000008")
    first, texts = tmp_path / "texts" / "0.txt", tmp_path / "texts"
    content = first.read_text()
    changes = {
        f"{first}: has changed": lambda: first.write_text(content.swapcase()),
        f"{first}: is missing": first.unlink,
        f"{texts / 'more.txt'}: is new": lambda: (texts / "more.txt").write_text("more"),
    }
    for said, change in changes.items():
        change()
        with pytest.raises(InputError, match=f"^{said} since .*/run tokenized its text; .* another --output") as caught:
            run(config)
        assert "\n" not in str(caught.value)
        first.write_text(content)  # later than before
    (texts / "more.txt").unlink()
    capsys.readouterr()
    run(config)
    assert ("this run is finished" if finished else "resuming after step") in capsys.readouterr().out


def test_a_finished_run_does_not_hide_changed_shards(config: PretrainConfig, tmp_path: Path) -> None:
    run(config)
    shards = {"text": str(tmp_path / "shards")}
    shutil.copytree(tmp_path / "run" / "shards" / "train", tmp_path / "shards")
    prepared = replace(
        config, text=[], heldout=0.0, output=str(tmp_path / "prepared"), data=replace(config.data, sources=shards)
    )
    run(prepared)
    shutil.rmtree(tmp_path / "shards")
    shutil.copytree(tmp_path / "run" / "shards" / "heldout", tmp_path / "shards")
    with pytest.raises(InputError, match="^data.sources.text: found other shards than this run began with"):
        run(prepared)


def test_text_may_change_until_there_is_a_checkpoint(
    config: PretrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diverging = replace(config, phases={"adapt": replace(config.phases["adapt"], lr=1e30, tokens=10_000)})
    with pytest.raises(InputError, match="5 steps in a row were skipped"):
        run(replace(diverging, checkpoint=CheckpointConfig()))
    (tmp_path / "texts" / "more.txt").write_text("one more document of text")
    capsys.readouterr()
    run(config)
    said = capsys.readouterr().out
    assert f"was prepared from other files ({tmp_path / 'texts' / 'more.txt'}: is new), starting over" in said
    shards = [Shards.open(tmp_path / "run" / "shards" / split) for split in ("train", "heldout")]
    assert sum(each.num_docs for each in shards) == 41


def test_another_tokenizer_may_be_given(config: PretrainConfig, tokenizer_folder: Path, tmp_path: Path) -> None:
    run(replace(config, tokenizer=str(tokenizer_folder), new_vocabulary=True))
    fingerprint = Tokenizer.load(tokenizer_folder).fingerprint
    assert Shards.open(tmp_path / "run" / "shards" / "train").fingerprint == fingerprint


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text": ["absent/"]}, "absent: no such file or folder"),
        ({"text": []}, "Missing required option `text`"),
        ({"heldout": 1e-9}, "heldout: the share 1e-09 of 40 documents holds none out, .*--txt-unit line"),
    ],
)
def test_text_that_cannot_be_used_is_named_and_nothing_is_left_behind(
    config: PretrainConfig, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        run(replace(config, **changes))
    assert not (tmp_path / "run").exists()


def test_text_becomes_documents_as_in_prepare(config: PretrainConfig, tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("".join(f"one line of many, number {n % 30}\n" for n in range(40)))
    words = ["--tokenizer", str(tokenizer_folder), "--heldout", "0.3", "--txt-unit", "line", "--deduplicate"]
    prepared = run_here("prepare", "--input", str(tmp_path / "lines.txt"), *words, "--output", str(tmp_path / "shards"))
    assert prepared.returncode == 0, prepared.stderr
    run(
        replace(
            config, text=[str(tmp_path / "lines.txt")], tokenizer=str(tokenizer_folder), new_vocabulary=True,
            heldout=0.3, txt_unit="line", deduplicate=True,
        )
    )  # fmt: skip
    for split in ("train", "heldout"):
        ours, theirs = (Shards.open(tmp_path / folder / split) for folder in ("run/shards", "shards"))
        assert (
            0 < ours.num_docs < 30
            and (ours.folder / "index.json").read_bytes() == (theirs.folder / "index.json").read_bytes()
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"evaluation": {"every_steps": 3}}, "evaluation.every_steps: found 3, .*; add --heldout 0.01"),
        ({"evaluation": {"lengths": [64]}}, r"evaluation.lengths: found \[64\], .*; add --heldout 0.01"),
        ({"evaluation": {"mask_rate": 0.2}}, "evaluation.mask_rate: found 0.2, .*; add --heldout 0.01"),
        ({"text": [], "data": {"sources": {"a": "x"}}, "txt_unit": "line"}, "txt_unit: found 'line', .* no `text`"),
        ({"text": [], "data": {"sources": {"a": "x"}}, "heldout": 0.1}, "heldout: found 0.1, .* no `text`"),
        ({"phases": {"adapt": {"lr_floor": 0.1}}}, "phases.adapt.lr_floor: found 0.1, expected a decay"),
        ({"phases": {"adapt": {"batch_growth": 2}}}, "phases.adapt.batch_growth: found 2, expected 1"),
        ({"phases": {"adapt": {"batch_warmup_tokens": 9}}}, "phases.adapt.batch_warmup_tokens: found 9, expected 0"),
        ({"phases": {"adapt": {"tokens": 100}}}, "tokens: found 100, .* lower --phases.adapt.max-micro-batches"),
    ],
)
def test_options_without_effect_are_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    phases = {"adapt": {"tokens": 2_048, "lr": 1e-3, "micro_batch_tokens": 256, "max_len": 128}}
    given = {"text": "absent/", "init_from": "absent/", "output": str(tmp_path / "run"), "device": "cpu"}
    for name, phase in options.pop("phases", {}).items():
        phases[name] |= phase
    with pytest.raises(InputError, match=said):
        pretrain(**(given | options), phases=phases)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["adapt", "base", "demo", "demo-quick", "large"])
def test_shipped_configs_train_on_text(name: str) -> None:
    start = {"init_from": "start"} if name in ("adapt", "large") else {}
    phases = {"phases": {"adapt": {"tokens": 65_536}}} if name == "adapt" else {}
    given = {"text": "corpus/", "heldout": 0.01, "tokenizer": "tokenizer", "output": "out"}
    resolve(PretrainConfig, {**given, **start, **phases}, f"pretrain/{name}").check()


def test_changes_of_the_initial_model_and_settings_without_effect_are_logged(
    config: PretrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    phase = replace(config.phases["adapt"], warmup_tokens=4_096)
    run(replace(config, phases={"adapt": phase}, distributed=DistributedConfig("full")))
    said = capsys.readouterr().out
    assert "max_position_embeddings: changes from 1,000 to 128, the max_len of phases.adapt" in said
    assert (
        "phases.adapt: the learning rate does not reach" in said
        and "2,048 tokens are fewer than 4,096 warmup_tokens" in said
    )
    assert "distributed.sharding: full has no effect in one process" in said
