"""Means of checkpoints, chosen by held-out loss."""

import math
import shutil

import pytest
import torch
from safetensors.torch import load_file
from test_pretraining import config_of, data, rows, straight  # noqa: F401 (fixtures)

from modernbert.errors import InputError
from modernbert.training import average_checkpoints as average
from modernbert.training import pretraining as pretrain
from modernbert.training.average_checkpoints import AverageConfig
from modernbert.training.run_checkpoint import checkpoints, save


@pytest.fixture(scope="module")
def scored(data, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("scored") / "run"
    pretrain.run(config_of(data, out, evaluation__every_steps=1, checkpoint__keep=20))
    return out


def test_the_best_of_the_decay_and_the_last(scored, tmp_path, capsys):
    average.run(AverageConfig(output=str(tmp_path / "mean"), run=str(scored), best=2))
    losses = {row["step"]: row["loss"] for row in rows(scored) if row["kind"] == "heldout"}
    # Extension and decay have one shape, so their checkpoints may be averaged.
    steps = {*sorted(range(8, 13), key=lambda step: losses[step])[:2], 12}
    said = capsys.readouterr().out
    assert all(f"step {step}: held-out loss {losses[step]:.4f}" in said for step in steps)
    chosen = [each.tensors("model") for each in checkpoints(scored / "checkpoints") if each.step in steps]
    assert len(chosen) == len(steps)
    for name, found in load_file(tmp_path / "mean" / "model.safetensors").items():
        expected = torch.stack([weights[name].double() for weights in chosen]).mean(dim=0)
        torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-7)


def test_the_mean_of_equal_models_is_the_model(scored, tmp_path):
    average.run(AverageConfig(output=str(tmp_path / "mean"), models=[str(scored / "model")] * 3))
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "mean", scored / "model"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_single_best_is_that_checkpoint(scored, tmp_path):
    average.run(AverageConfig(output=str(tmp_path / "best"), run=str(scored), best=1, last=False))
    losses = {row["step"]: row["loss"] for row in rows(scored) if row["kind"] == "heldout" and row["step"] > 7}
    best = min(losses, key=lambda step: losses[step])
    (expected,) = (each.tensors("model") for each in checkpoints(scored / "checkpoints") if each.step == best)
    found = load_file(tmp_path / "best" / "model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("loss", [None, math.nan])  # as it is written, and as it was
def test_a_checkpoint_whose_loss_is_not_finite_is_not_the_best(scored, tmp_path, capsys, loss):
    run = tmp_path / "run"
    shutil.copytree(scored, run)
    losses = {row["step"]: row["loss"] for row in rows(scored) if row["kind"] == "heldout" and row["step"] > 7}
    first, second = sorted(losses, key=lambda step: losses[step])[:2]
    (best,) = (each for each in checkpoints(run / "checkpoints") if each.step == first)
    tensors = {stem: best.tensors(stem) for stem in ("model", "optimizer")}
    kept = [each.step for each in checkpoints(run / "checkpoints")]
    others = [each for each in checkpoints(run / "checkpoints") if each.step > first]
    save(run / "checkpoints", first, tensors, best.state | {"heldout": {"step": first, "loss": loss}}, keep=20)
    for other in others:
        shutil.copytree(scored / "checkpoints" / other.folder.name, other.folder)
    assert [each.step for each in checkpoints(run / "checkpoints")] == kept
    average.run(AverageConfig(output=str(tmp_path / "mean"), run=str(run), best=1, last=False))
    said = capsys.readouterr().out
    assert f"step {second}: held-out loss" in said
    assert said.count("step ") == 1, "the last checkpoint is left out"


def test_what_cannot_be_averaged_is_refused(straight, scored, tmp_path):  # noqa: F811
    def refused(message, **settings):
        with pytest.raises(InputError, match=message) as caught:
            average.run(AverageConfig(output=str(tmp_path / "mean"), **settings))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "mean").exists()

    refused("expected either `run=RUN` or models")
    refused(r"best: found \d checkpoints with a held-out loss", run=str(scored), best=50)
    refused("holds no checkpoint", run=str(tmp_path))
    stable = str(scored / "checkpoints" / "step-00000007")
    refused("has another config than", models=[str(scored / "model"), stable])
