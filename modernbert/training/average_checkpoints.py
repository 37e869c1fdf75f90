"""`modernbert average`: average the weights of a run's checkpoints or of several models.

Source: paper, section 2.2.2: base averages the three best checkpoints of the decay and the last, large takes the best.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from modernbert.checkpoints.command_line import command_line
from modernbert.checkpoints.folder import ModelFolder
from modernbert.checkpoints.model_card import ModelCard
from modernbert.errors import InputError, counted
from modernbert.model.heads import MaskedLM
from modernbert.training.command_options import AverageConfig
from modernbert.training.initial_model import InitialModel, open_initial_model
from modernbert.training.run_checkpoint import Checkpoint, checkpoints

__all__ = ["AverageConfig", "run"]


def run(config: AverageConfig) -> Path:
    """Write a folder with the averaged model.

    Raises: InputError if there is nothing to average, a checkpoint is damaged, or configs or tokenizers differ.
    """
    if (config.run is None) == (not config.models):
        raise InputError("average: expected either `run=RUN` or models, such as a/model b/model")
    named = list(config.models) if config.run is None else [str(each.folder) for each in _chosen(config)]
    starts = [open_initial_model(name) for name in named]
    model = _mean(starts, named)
    out = Path(config.output)
    card = ModelCard(
        method=f"The mean of the weights of {len(starts)} models.",
        command=command_line("modernbert average", config),
        bases=named,
        relation="merge",
    )
    ModelFolder.save(out, model, starts[0].tokenizer, card=card)
    print(f"{out}: the mean of {counted(len(starts), 'model')}")
    return out


def _chosen(config: AverageConfig) -> list[Checkpoint]:
    """Return the best checkpoints by held-out loss, and the last; print them."""
    if config.best < 0 or not (config.best or config.last):
        raise InputError(f"best: found {config.best}, expected 1 or more, or `last=True`")
    found = checkpoints(Path(str(config.run)) / "checkpoints")
    # Checkpoints before the context extension have another config.
    found = [each for each in found if each.state["model"] == found[-1].state["model"]]
    scored = {each.step: loss for each in found if (loss := _score_of(each)) is not None}
    if len(scored) < config.best:
        raise InputError(
            f"best: found {len(scored)} checkpoints with a held-out loss in {config.run}, expected {config.best}; "
            "score as often as you save (evaluation.every_steps, checkpoint.every_steps)"
        )
    steps = set(sorted(scored, key=lambda step: scored[step])[: config.best])
    if config.last:
        steps.add(found[-1].step)
    for step in sorted(steps):
        score = f"held-out loss {scored[step]:.4f}" if step in scored else "not scored"
        print(f"step {step:,}: {score}{', the last' if step == found[-1].step else ''}")
    return [each for each in found if each.step in steps]


def _score_of(checkpoint: Checkpoint) -> float | None:
    """Return the held-out loss of a checkpoint, if it was computed at its step and is finite."""
    scored = checkpoint.state["heldout"] or {"step": -1}
    loss = scored["loss"] if scored["step"] == checkpoint.step else None
    return float(loss) if loss is not None and math.isfinite(loss) else None


def _mean(starts: Sequence[InitialModel], names: Sequence[str]) -> MaskedLM:
    """Average in float64, one tensor at a time."""
    first = starts[0]
    for start, name in zip(starts, names, strict=True):
        if start.config != first.config:
            raise InputError(f"{name}: has another config than {names[0]}, expected the same")
        if start.tokenizer.fingerprint != first.tokenizer.fingerprint:
            raise InputError(f"{name}: has another tokenizer than {names[0]}, expected the same")
    model = MaskedLM(first.config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            total = torch.zeros(parameter.shape, dtype=torch.float64)
            for start in starts:
                total += start.weights[name]
            parameter.copy_(total / len(starts))
    return model
