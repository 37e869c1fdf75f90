"""Steps that must not be taken, alone and in a run."""

import json
import math

import pytest
import torch
from test_pretraining import config_of, data, rows  # noqa: F401 (a fixture)

from modernbert.errors import InputError
from modernbert.training import pretraining as pretrain
from modernbert.training.losses import masked_lm
from modernbert.training.pretraining import Phase
from modernbert.training.pretraining_config import SpikeGuardConfig
from modernbert.training.run_checkpoint import checkpoints, latest
from modernbert.training.spike_guard import FEWEST, LossSpikeGuard


def settled(**changes):
    guard = LossSpikeGuard(SpikeGuardConfig(**changes))
    for step in range(FEWEST):
        assert guard(3.0 + 0.1 * math.sin(step), 1.0 + 0.1 * math.cos(step)) is None
    return guard


@pytest.mark.parametrize(
    ("loss", "norm", "reason"),
    [
        (math.nan, 1.0, "the loss is nan"),
        (math.inf, 1.0, "the loss is inf"),
        (3.0, math.nan, "the gradient norm is nan"),
        (3.0, math.inf, "the gradient norm is inf"),
        (5.5, 1.0, "the loss is 5.5, usual is"),
        (3.0, 30.0, "the gradient norm is 30, usual is"),
    ],
)
def test_a_far_out_step_is_refused_and_enters_no_statistic(loss, norm, reason):
    guard = settled()
    before = guard.state()
    assert guard(loss, norm).startswith(reason)
    assert guard.state() == before | {"in_a_row": 1}
    assert guard(3.0, 1.0) is None
    assert guard.in_a_row == 0


def test_a_young_phase_is_judged_by_finiteness_alone():
    guard = LossSpikeGuard(SpikeGuardConfig())
    assert guard(10.8, 1.0) is None
    assert guard(100.0, 500.0) is None
    assert guard(math.nan, 1.0) is not None


def test_a_slow_rise_is_not_a_spike():
    guard = settled(window=32)
    assert all(guard(3.0 + step / 20, 1.0 + step / 5) is None for step in range(200))


def test_a_guard_goes_on_from_its_state():
    guard = settled()
    again = LossSpikeGuard(SpikeGuardConfig(), json.loads(json.dumps(guard.state())))
    assert again(9.0, 1.0) == guard(9.0, 1.0) is not None
    assert again.state() == guard.state()


def spoiling(monkeypatch, calls):
    """Spoil the loss of some micro-batches, counted from 0 over the whole process."""
    count = iter(range(10**6))

    def loss(model, batch):
        total, number = masked_lm(model, batch)
        return (total * math.nan if next(count) in calls else total), number

    monkeypatch.setattr(pretrain, "masked_lm", loss)


def phases(tokens=256 * 30):
    return {"stable": Phase(tokens=tokens, lr=2e-3, max_len=64, micro_batch_tokens=256)}


def settings(**changes):
    return {
        "phases": phases(),
        "evaluation__every_steps": 0,
        "checkpoint__every_steps": 4,
        "checkpoint__every_s": 0.0,
    } | changes


def test_one_bad_step_is_skipped_and_the_run_goes_on(data, tmp_path, monkeypatch):  # noqa: F811
    spoiling(monkeypatch, {9})
    pretrain.run(config_of(data, tmp_path / "run", **settings()))
    log = rows(tmp_path / "run")
    (skipped,) = (row for row in log if row["kind"] == "skipped")
    assert (skipped["step"], skipped["loss"], skipped["reason"]) == (10, None, "the loss is nan")
    steps = [row for row in log if row["kind"] == "step"]
    assert [row["step"] for row in steps] == [*range(1, 10), *range(11, 31)]
    found = latest(tmp_path / "run" / "checkpoints")
    assert all(tensor.isfinite().all() for stem in ("model", "optimizer") for tensor in found.tensors(stem).values())
    assert int(found.tensors("optimizer")["step"]) == 29


def test_a_bad_stretch_of_text_is_stepped_over(data, tmp_path, monkeypatch):  # noqa: F811
    spoiling(monkeypatch, set(range(9, 14)))
    pretrain.run(config_of(data, tmp_path / "run", **settings()))
    log = rows(tmp_path / "run")
    assert [row["step"] for row in log if row["kind"] == "skipped"] == [10, 11, 12, 13, 14]
    (back,) = (row for row in log if row["kind"] == "rollback")
    assert (back["step"], back["to_step"], back["reason"]) == (14, 8, "the loss is nan")
    steps = [row["step"] for row in log if row["kind"] == "step"]
    assert steps == [*range(1, 10), *range(9, 31)]
    # The text of steps 9 to 14 is behind: 14 bins were taken when step 9 is made again.
    again = [row for row in log if row["kind"] == "step"][9]
    assert sum(again["source_tokens"].values()) > 14.5 * 250
    kept = latest(tmp_path / "run" / "checkpoints")
    assert kept.state["position"]["tokens"] == pytest.approx(30 * 256, rel=0.01)


def test_a_return_to_the_phase_before_leaves_its_checkpoint_the_shape_it_has(data, tmp_path, monkeypatch):  # noqa: F811
    two = phases(256 * 4) | {
        "extension": Phase(tokens=256 * 6, lr=2e-3, max_len=128, micro_batch_tokens=256, global_rope_theta=160_000.0)
    }
    spoiling(monkeypatch, set(range(4, 9)))
    pretrain.run(config_of(data, tmp_path / "run", **settings(phases=two, checkpoint__every_steps=0)))
    assert [row["to_step"] for row in rows(tmp_path / "run") if row["kind"] == "rollback"] == [4]
    found = {each.step: each.state["model"] for each in checkpoints(tmp_path / "run" / "checkpoints")}
    assert {step: model["global_rope_theta"] for step, model in found.items()} == {4: 10_000.0, 10: 160_000.0}


def test_text_that_stays_bad_ends_the_run(data, tmp_path, monkeypatch):  # noqa: F811
    spoiling(monkeypatch, set(range(9, 10**6)))
    with pytest.raises(InputError, match=r"step 13: 5 steps in a row .*the loss is nan.* after 3 rollbacks"):
        pretrain.run(config_of(data, tmp_path / "run", **settings()))
    found = latest(tmp_path / "run" / "checkpoints")
    assert found.step == 8
    assert all(torch.isfinite(tensor).all() for tensor in found.tensors("model").values())
