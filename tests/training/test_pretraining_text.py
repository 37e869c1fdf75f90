"""`pretrain --text`: text is tokenized into the run folder, once."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modernbert import ModernBert
from modernbert.data.shards import Shards
from modernbert.errors import InputError
from modernbert.tokenizer.tokenizer import Tokenizer
from modernbert.training.pretraining import Phase, PretrainConfig, run
from modernbert.training.run_options import CheckpointConfig


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


def test_another_tokenizer_may_be_given(config: PretrainConfig, tokenizer_folder: Path, tmp_path: Path) -> None:
    run(replace(config, tokenizer=str(tokenizer_folder), new_vocabulary=True))
    fingerprint = Tokenizer.load(tokenizer_folder).fingerprint
    assert Shards.open(tmp_path / "run" / "shards" / "train").fingerprint == fingerprint


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text": ["absent/"]}, "absent: no such file or folder"),
        ({"text": []}, "Missing required option --text"),
    ],
)
def test_text_that_cannot_be_read_is_named_before_anything_is_written(
    config: PretrainConfig, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        run(replace(config, **changes))
    assert not (tmp_path / "run").exists()
