"""The optimizer of CONTRIBUTING.md is executed, trained with and resumed."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from faults.course import changed
from safetensors.torch import load_file
from test_pretraining import config_of, data  # noqa: F401 (a fixture)
from torch import nn

from modernbert.errors import InputError
from modernbert.training import pretraining, training_run
from modernbert.training.optimizers import OPTIMIZERS, OptimizerContext, OptimizerSet, build_optimizer, parameter_groups
from modernbert.training.run_checkpoint import latest
from modernbert.training.run_options import OptimizerConfig

CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"


@pytest.fixture
def lion():
    """Execute the code of the section."""
    section = CONTRIBUTING.read_text().split("## Add an optimizer")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    known: dict[str, object] = {}
    exec(code, known)
    yield known["Lion"]
    del OPTIMIZERS["lion"]


class Stop(BaseException):
    """Ends a run where a signal could."""


def test_a_run_trains_and_resumes_with_a_new_optimizer(lion, data, tmp_path, monkeypatch):  # noqa: F811
    """Lion for the matrices of the layers, StableAdamW for everything else."""
    straight = config_of(data, tmp_path / "straight", optim=OptimizerConfig(kinds={"*.layers.*.W*.weight": "lion"}))
    pretraining.run(straight)
    stopped = changed(straight, output=str(tmp_path / "stopped"))
    record = training_run.TrainingRun._record

    def stopping(run, *arguments):
        record(run, *arguments)
        if run.state.step == 6:
            run.saver.wait()
            raise Stop

    monkeypatch.setattr(training_run.TrainingRun, "_record", stopping)
    with pytest.raises(Stop):
        pretraining.run(stopped)
    monkeypatch.setattr(training_run.TrainingRun, "_record", record)
    pretraining.run(stopped)
    logs = [(tmp_path / name / "log.jsonl").read_bytes() for name in ("straight", "stopped")]
    assert logs[0] == logs[1]
    steps = [row for row in map(json.loads, logs[0].splitlines()) if row["kind"] == "step"]
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.05
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("straight", "stopped"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    state = latest(tmp_path / "straight" / "checkpoints").tensors("optimizer")
    wqkv = [name for name in state if name.endswith("layers.0.attn.Wqkv.weight")]
    norm = [name for name in state if name.endswith("layers.0.mlp_norm.weight")]
    assert [name.partition(".")[0] for name in wqkv] == ["exp_avg"]
    assert sorted(name.partition(".")[0] for name in norm) == ["exp_avg", "exp_avg_sq"]


def test_a_step_of_lion_is_that_of_its_paper(lion):
    torch.manual_seed(0)
    model = nn.Linear(5, 3, bias=False)
    context = OptimizerContext(OptimizerConfig(kind="lion", beta1=0.9, beta2=0.99))
    optimizer = build_optimizer(model, parameter_groups(model, 0.1), 0.01, context)
    weight, momentum = model.weight.detach().clone(), torch.zeros(3, 5)
    for _ in range(3):
        gradient = torch.randn(3, 5)
        model.weight.grad = gradient.clone()
        optimizer.step()
        weight = weight * (1 - 0.01 * 0.1) - 0.01 * (0.9 * momentum + 0.1 * gradient).sign()
        momentum = 0.99 * momentum + 0.01 * gradient
        torch.testing.assert_close(model.weight.detach(), weight)


def test_each_optimizer_has_the_parameters_that_its_pattern_names(lion):
    model = nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Linear(2, 2)})
    options = OptimizerConfig(kinds={"*": "lion", "second.*": "stable_adamw"})
    optimizer = build_optimizer(model, parameter_groups(model, 0.1), 0.01, OptimizerContext(options))
    assert isinstance(optimizer, OptimizerSet)
    kinds = {type(each).__name__: each for each in optimizer._optimizers}
    owned = {
        name: {parameter for group in each.param_groups for parameter in group["params"]}
        for name, each in kinds.items()
    }
    assert owned == {"Lion": set(model["first"].parameters()), "StableAdamW": set(model["second"].parameters())}


@pytest.mark.parametrize(("change", "said"), [
    ({"kind": "lyon"}, r"optim.kind: found 'lyon', expected stable_adamw"),
    ({"kinds": {"*.Wo.weight": "muon"}}, r"optim.kinds.\*.Wo.weight: found 'muon', expected stable_adamw"),
])  # fmt: skip
def test_an_unknown_optimizer_is_refused(change, said):
    with pytest.raises(InputError, match=said):
        replace(OptimizerConfig(), **change).check()
