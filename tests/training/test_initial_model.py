"""Runs that begin with a model: a published folder, a checkpoint, an earlier run."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from faults.course import changed
from test_pretraining import (  # noqa: F401 (fixtures)
    Kill,
    assert_same_run,
    config_of,
    data,
    kill_at,
    rows,
    straight,
    texts,
)

from modernbert.checkpoints.folder import ModelFolder
from modernbert.config_files import resolve, to_yaml
from modernbert.data.corpus import Document, Tally
from modernbert.data.shards import write_shards
from modernbert.errors import InputError
from modernbert.tokenizer.tokenizer import Tokenizer
from modernbert.training import pretraining as pretrain
from modernbert.training.initial_model import open_initial_model
from modernbert.training.pretraining import Phase, PretrainConfig
from modernbert.training.pretraining_model import model_config
from modernbert.training.run_checkpoint import latest

DECAY = {"decay": Phase(tokens=512, lr=1e-3, max_len=256, micro_batch_tokens=256, decay="one_minus_sqrt")}


def begun(data, out, source, **changes):  # noqa: F811
    settings = {
        "model": {},
        "phases": DECAY,
        "init_from": str(source),
        "checkpoint__every_steps": 0,
        "evaluation__every_steps": 0,
    }
    return config_of(data, out, **(settings | changes))


def first_loss(out: Path) -> float:
    return rows(out)[0]["loss"]


def test_a_run_starts_from_a_model_folder(data, straight, tmp_path):  # noqa: F811
    pretrain.run(begun(data, tmp_path / "run", straight / "model"))
    # The same text, cut as in the first phase of either run.
    finished = [row for row in rows(straight) if row["kind"] == "heldout"][-1]
    assert finished["max_len"] == 64
    assert first_loss(tmp_path / "run") == pytest.approx(finished["loss"], abs=0.3)
    assert first_loss(tmp_path / "run") < math.log(448) - 0.5
    model = ModelFolder(tmp_path / "run" / "model").load_model()
    assert model.model.config.global_rope_theta == 10_000.0
    assert model.model.config.hidden_size == 32


@pytest.mark.parametrize("kind", ["run", "checkpoint", "folder"])
def test_all_kinds_of_start_give_the_same_weights(data, straight, tmp_path, kind):  # noqa: F811
    source = {
        "run": straight,
        "checkpoint": latest(straight / "checkpoints").folder,
        "folder": straight / "model",
    }[kind]
    pretrain.run(begun(data, tmp_path / "run", source))
    pretrain.run(begun(data, tmp_path / "other", straight / "model"))
    ours, theirs = (latest(tmp_path / name / "checkpoints").tensors("model") for name in ("run", "other"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_decay_begins_at_a_stable_checkpoint_with_its_moments(data, straight, tmp_path):  # noqa: F811
    stable = straight / "checkpoints" / "step-00000007"
    pretrain.run(begun(data, tmp_path / "with", stable, init_optimizer=True))
    pretrain.run(begun(data, tmp_path / "without", stable))
    steps = [int(latest(tmp_path / name / "checkpoints").tensors("optimizer")["step"]) for name in ("with", "without")]
    assert steps == [9, 2]
    losses = [[row["loss"] for row in rows(tmp_path / name) if row["kind"] == "step"] for name in ("with", "without")]
    assert losses[0][0] == losses[1][0]
    assert losses[0][1] != losses[1][1]


def test_context_is_extended_and_far_positions_gain(data, tmp_path, capsys):  # noqa: F811
    short = {"stable": Phase(tokens=8192, lr=5e-3, max_len=64, micro_batch_tokens=256)}
    pretrain.run(config_of(data, tmp_path / "short", phases=short, evaluation__every_steps=0))
    long = {"extension": Phase(
        tokens=2048 * 12, lr=3e-3, max_len=2048, micro_batch_tokens=2048, global_rope_theta=160_000.0
    )}  # fmt: skip
    for name in ("books", "heldout"):
        documents = (Document(" ".join(texts(f"{name} {n}", 12)), str(n)) for n in range(4))
        write_shards(documents, data / "tokenizer" / "tokenizer.json", tmp_path / name, tally=Tally())
    changes = {
        "data__sources": {"books": str(tmp_path / "books")},
        "data__heldout": {"books": str(tmp_path / "heldout")},
    }
    pretrain.run(
        begun(data, tmp_path / "long", tmp_path / "short", phases=long, evaluation__lengths=[64, 2048], **changes)
    )
    scores = [row for row in rows(tmp_path / "long") if row["kind"] == "heldout" and row["max_len"] == 2048]
    first, last = scores[0]["positions"], scores[-1]["positions"]
    assert set(first) == {"0-1023", "1024-2047"}
    assert sum(each["masked"] for each in first.values()) == scores[0]["masked"]
    assert last["1024-2047"]["loss"] < first["1024-2047"]["loss"] - 0.05
    said = capsys.readouterr().out
    assert f"positions    1024-2047: {first['1024-2047']['loss']:.3f} -> {last['1024-2047']['loss']:.3f}" in said


BAD = {
    r"model.hidden_size: found 64, expected 32, as in": {"model": {"hidden_size": 64}},
    r"model.preset: found tiny, but the shape is that of": {"model": {"preset": "tiny"}},
    r"init_optimizer: .* has no optimizer state": {"init_optimizer": True},
    r"absent: no such folder|not a name on the hub": {"init_from": "/absent/folder"},
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_the_start_is_refused(data, straight, tmp_path, message):  # noqa: F811
    config = changed(begun(data, tmp_path / "run", straight / "model"), **BAD[message])
    with pytest.raises(InputError, match=message) as caught:
        pretrain.run(config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_published_model_gets_back_the_dropout_its_folder_lost(data, straight, tmp_path):  # noqa: F811
    changed = begun(data, tmp_path / "run", straight / "model", model={"attention_output_dropout": 0.25})
    pretrain.run(changed)
    assert ModelFolder(tmp_path / "run" / "model").load_model().model.config.attention_output_dropout == 0.25


def test_a_start_is_found_from_wherever_it_is_named(data, straight, tmp_path, monkeypatch):  # noqa: F811
    weights = latest(straight / "checkpoints").tensors("model")

    def is_last(name):
        found = open_initial_model(name).weights
        return all(torch.equal(found[each], weights[each]) for each in weights)

    monkeypatch.chdir(straight / "checkpoints")
    assert is_last("step-00000012")
    monkeypatch.chdir(straight / "checkpoints" / "step-00000012")
    assert is_last(".")
    # Copies: of a checkpoint under another name, beside it and where no run is; of a run, its model alone.
    shutil.copytree(straight, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "checkpoints" / "step-00000012").rename(tmp_path / "run" / "checkpoints" / "best")
    assert is_last("run/checkpoints/best")
    (tmp_path / "run" / "checkpoints" / "best").rename(tmp_path / "run" / "best")
    with pytest.raises(InputError, match=r"^run/best: found no .*config.yaml, expected it in the folder of its run"):
        open_initial_model("run/best")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert is_last("run")
    shutil.rmtree(tmp_path / "run" / "model")
    (tmp_path / "run" / "checkpoints").mkdir()
    with pytest.raises(InputError, match="run: this run has no checkpoint yet"):
        open_initial_model("run")


def test_a_run_goes_on_without_what_it_began_with(data, straight, tmp_path, monkeypatch):  # noqa: F811
    shutil.copytree(straight / "model", tmp_path / "start")
    config = begun(data, tmp_path / "run", tmp_path / "start", checkpoint__every_steps=1, data__heldout={})
    kill_at(monkeypatch, 1, "after")
    with pytest.raises(Kill):
        pretrain.run(config)
    monkeypatch.undo()
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    pretrain.run(config)
    shutil.rmtree(tmp_path / "start")
    pretrain.run(changed(config, output=str(tmp_path / "other")))
    assert_same_run(tmp_path / "other", tmp_path / "run")


def test_a_start_has_the_tokenizer_its_run_learned_with(data, straight, tmp_path, monkeypatch):  # noqa: F811
    (tmp_path / "home").mkdir()
    shutil.copytree(data / "tokenizer", tmp_path / "home" / "tok")
    other = tmp_path / "elsewhere" / "tok" / "tokenizer.json"
    other.parent.mkdir(parents=True)
    spelled = (data / "tokenizer" / "tokenizer.json").read_text()
    other.write_text(spelled.replace("[unused5]", "[domain]"))
    # A run that was started in `home`, where `tok` was its tokenizer.
    run = tmp_path / "home" / "run"
    shutil.copytree(straight, run)
    config = resolve(PretrainConfig, {}, run / "config.yaml")
    (run / "config.yaml").write_text(to_yaml(changed(config, tokenizer="tok")))
    learned = Tokenizer.load(data / "tokenizer").fingerprint
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert open_initial_model("../home/run").tokenizer.fingerprint == learned  # its model has it
    shutil.rmtree(run / "model")
    with pytest.raises(InputError, match=f"run/config.yaml: tokenizer: tok is .*, expected {learned}"):
        open_initial_model("../home/run")
    other.unlink()
    with pytest.raises(InputError, match=r"home/run/config.yaml: tokenizer: tok/tokenizer.json: no such"):
        open_initial_model("../home/run")
    monkeypatch.chdir(tmp_path / "home")
    assert open_initial_model("run").tokenizer.fingerprint == learned


def test_a_model_gets_another_vocabulary(data, straight, tmp_path):  # noqa: F811
    # All entries but one.
    (tmp_path / "tokenizer").mkdir()
    spelled = (data / "tokenizer" / "tokenizer.json").read_text()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(spelled.replace("[unused5]", "[domain]"))
    for name, number in (("prose", 60), ("heldout", 6)):
        documents = (Document(text, str(n)) for n, text in enumerate(texts(name, number)))
        write_shards(documents, tmp_path / "tokenizer" / "tokenizer.json", tmp_path / name, tally=Tally())
    changes = {
        "tokenizer": str(tmp_path / "tokenizer"),
        "data__sources": {"prose": str(tmp_path / "prose")},
        "data__heldout": {"mix": str(tmp_path / "heldout")},
    }
    with pytest.raises(InputError, match="init_from: .* pass `new_vocabulary=True`"):
        pretrain.run(begun(data, tmp_path / "run", straight / "model", **changes))
    small = {"model": {"vocab_size": 384}}
    with pytest.raises(InputError, match="model.vocab_size: found 384, expected at least the 448"):
        pretrain.run(begun(data, tmp_path / "run", straight / "model", new_vocabulary=True, **changes | small))
    wide = config_of(data, tmp_path, init_from="x", new_vocabulary=True, model={"vocab_size": 512}, phases=DECAY)
    start = ModelFolder(straight / "model").load_model().model.config
    assert model_config(wide, Tokenizer.load(tmp_path / "tokenizer"), start).vocab_size == 512
    pretrain.run(begun(data, tmp_path / "run", straight / "model", new_vocabulary=True, **changes))
    model = ModelFolder(tmp_path / "run" / "model").load_model()
    assert model.model.config.vocab_size == 448
    pretrain.run(begun(data, tmp_path / "old", straight / "model"))
    # Random replacements may be others, the rest is the same; a random start would be at ln 448 = 6.1.
    assert first_loss(tmp_path / "run") == pytest.approx(first_loss(tmp_path / "old"), abs=0.03)


def test_the_tokenizer_is_that_of_the_model_to_start_from(data, straight, tmp_path, monkeypatch):  # noqa: F811
    source = Path(shutil.copytree(straight / "model", tmp_path / "source"))
    settings = begun(data, tmp_path / "run", source, tokenizer=None, checkpoint__every_steps=1)
    pretrain.run(begun(data, tmp_path / "named", source, checkpoint__every_steps=1))
    with monkeypatch.context() as patch:
        kill_at(patch, 1, "after")
        with pytest.raises(Kill):
            pretrain.run(settings)
    # The run resumes although its init_from is gone.
    shutil.rmtree(source)
    pretrain.run(settings)
    ours, theirs = (latest(tmp_path / name / "checkpoints").tensors("model") for name in ("run", "named"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    expected = Tokenizer.load(straight / "model").fingerprint
    assert Tokenizer.load(tmp_path / "run" / "model").fingerprint == expected
    # Another run starts from the checkpoint of this one.
    assert open_initial_model(str(tmp_path / "run")).tokenizer.fingerprint == expected


def test_a_run_without_a_tokenizer_or_a_model_is_refused(data, straight, tmp_path):  # noqa: F811
    for changes, message in (
        ({"init_from": None}, "Missing required option `tokenizer` .*, or `init_from=MODEL`"),
        ({"new_vocabulary": True}, "Missing required option `tokenizer` .*, for `new_vocabulary`"),
    ):
        with pytest.raises(InputError, match=message):
            pretrain.run(begun(data, tmp_path / "run", straight / "model", tokenizer=None, **changes))
    assert not (tmp_path / "run").exists()


def test_shards_of_another_tokenizer_than_the_models_are_refused(data, straight, tmp_path):  # noqa: F811
    model = shutil.copytree(straight / "model", tmp_path / "model")
    found = json.loads((Path(model) / "tokenizer_config.json").read_text())
    name = Tokenizer.load(model).id_to_token(300)
    added = {"300": {"content": name, "special": False, "normalized": False}}
    found["added_tokens_decoder"] |= added
    (Path(model) / "tokenizer_config.json").write_text(json.dumps(found))
    with pytest.raises(
        InputError, match=f"sources.* was made with tokenizer .*prepare the text again with --tokenizer {model}"
    ):
        pretrain.run(begun(data, tmp_path / "run", model, tokenizer=None))
    assert not (tmp_path / "run").exists()


def test_a_run_says_which_thetas_change(data, straight, tmp_path, capsys):  # noqa: F811
    slower = {"decay": replace(DECAY["decay"], global_rope_theta=50_000.0)}
    pretrain.run(begun(data, tmp_path / "run", straight / "model", phases=slower))
    line = r"phases.decay.global_rope_theta: changes from [\d,]+, with which the model was trained, to 50,000\n"
    assert re.search(line, capsys.readouterr().out)
