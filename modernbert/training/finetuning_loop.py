"""What fine-tuning adds to the loop: its schedule, rates by depth, and keeping the weights that score best.

In: a model and its loss, micro-batches, a way to score. Out: the model with its best weights, a log, checkpoints from
which a stopped run goes on.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from modernbert.batch import Batch
from modernbert.devices import autocast
from modernbert.errors import InputError
from modernbert.model.encoder import Encoder
from modernbert.progress import show_steps
from modernbert.training.distributed import Loss, Objective
from modernbert.training.optimizers import StableAdamW, load_named_state, named_state, parameter_groups
from modernbert.training.run_checkpoint import latest, save
from modernbert.training.run_log import RunLog
from modernbert.training.schedules import StepPlan
from modernbert.training.training_loop import train

__all__ = ["GiveUp", "LinearPlan", "TrainState", "Tuning", "digest_of_rows", "groups_by_depth", "predict", "tune"]


GiveUp = Callable[[float, float], str | None]
"""(epochs done, best score so far, more being better) -> why to stop, or None"""


@dataclass(frozen=True)
class LinearPlan:
    """Plan `num_steps` steps: the rate rises from 0 over the first share of them, then falls to 0, both linearly.

    >>> [LinearPlan(10, 1.0, 0.2, lambda step: 1).plan(step).lr for step in (0, 1, 2, 6)]
    [0.0, 0.5, 1.0, 0.5]
    """

    num_steps: int
    peak_lr: float
    warmup: float
    num_micro_batches: Callable[[int], int]

    def plan(self, step: int) -> StepPlan:
        """Return what a step does, counted from 0."""
        rising = round(self.warmup * self.num_steps)
        share = step / rising if step < rising else (self.num_steps - step) / max(1, self.num_steps - rising)
        return StepPlan(self.num_micro_batches(step), self.peak_lr * share, step)


@dataclass(frozen=True)
class Tuning:
    """Say what is tuned, and how long: `num_tokens` are those of all steps, for the eye.

    `rows` is a digest of what is learned from: a run goes on with nothing else.
    `metric` names the score that decides which weights are kept, more being better, and `patience` how many scorings
    without a gain end the run; `score` is None where nothing decides and the last weights are kept.
    """

    out: Path
    rows: str
    model: nn.Module
    loss: Loss
    optimizer: StableAdamW
    plan: LinearPlan
    steps_per_epoch: int
    num_tokens: int
    seed: int
    device: torch.device
    dtype: torch.dtype
    score: Callable[[], dict[str, float]] | None
    metric: str
    scorings_per_epoch: int
    patience: int | None
    save_every_s: float
    give_up: GiveUp | None


def digest_of_rows(num_steps: int, names: Sequence[str], arrays: Iterable[np.ndarray]) -> str:
    """Return a digest of what training rows became: what their labels are called, their tokens and labels, in order."""
    digest = sha256(json.dumps([num_steps, *names]).encode())
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


@dataclass
class TrainState:
    """How far a run has come, and what was best so far: what a checkpoint holds besides tensors."""

    step: int = 0
    tokens: int = 0
    best_step: int = 0
    best_scores: dict[str, float] = field(default_factory=dict)
    since_best: int = 0
    elapsed_s: float = 0.0
    stopped: str | None = None
    """Why the run ended before its last step, if it did."""


def tune(tuning: Tuning, batches_from: Callable[[int], Iterator[Batch]]) -> TrainState:
    """Take the steps that are left after the last checkpoint, and leave the best weights in the model.

    `batches_from(step)` yields the micro-batches of all steps from that one on.

    Raises: InputError for a checkpoint of other rows; naming the step, if the loss or the gradient is not finite.
    """
    model, plan = tuning.model, tuning.plan
    position, best, sizes = _restore(tuning)
    steps = train(
        Objective(model, tuning.loss), tuning.optimizer, plan, batches_from(position.step), seed=tuning.seed,
        device=tuning.device, dtype=tuning.dtype, first_step=position.step,
    )  # fmt: skip
    every = max(1, round(tuning.steps_per_epoch / tuning.scorings_per_epoch))
    with ExitStack() as stack:
        journal = stack.enter_context(RunLog(tuning.out, sizes))
        report = stack.enter_context(show_steps(plan.num_steps, tuning.num_tokens, position.tokens))
        started = time.monotonic() - position.elapsed_s
        saved_at = begun = time.monotonic()
        for step_plan, result in steps:
            seconds = time.monotonic() - begun
            position.step += 1
            position.tokens += result.num_tokens
            journal.log(
                kind="step", step=position.step, epoch=round(position.step / tuning.steps_per_epoch, 4),
                tokens=position.tokens, lr=float(f"{step_plan.lr:.6g}"), loss=round(result.loss, 6),
                grad_norm=round(result.grad_norm, 6),
            )  # fmt: skip
            journal.time(step=position.step, seconds=round(seconds, 4), tokens_per_s=round(result.num_tokens / seconds))
            report("tuning", position.step, position.tokens, result.loss, result.num_tokens / seconds)
            is_last = position.step == plan.num_steps
            if is_last or position.step % every == 0:
                best = _keep_best(tuning, position, best, journal)
                position.stopped = None if is_last else _stop(tuning, position)
                if position.stopped:
                    print(f"stopped after step {position.step:,}: {position.stopped}")
                    break
            if not is_last and time.monotonic() - saved_at >= tuning.save_every_s:
                position.elapsed_s = time.monotonic() - started
                _save(tuning, position, best, journal.sizes())
                saved_at = time.monotonic()
            begun = time.monotonic()
    if best:
        model.load_state_dict(best)
    return position


def _restore(tuning: Tuning) -> tuple[TrainState, dict[str, Tensor], Mapping[str, int]]:
    checkpoint = latest(tuning.out / "checkpoints")
    if checkpoint is None:
        return TrainState(), {}, {}
    # Checkpoints of earlier versions do not say what was learned from.
    if checkpoint.state.get("rows", tuning.rows) != tuning.rows:
        raise InputError(f"train: found other rows, labels or tokens than {checkpoint.folder} was learned from; "
                         "choose another `output` for them")  # fmt: skip
    tuning.model.load_state_dict(checkpoint.tensors("model"))
    load_named_state(tuning.model, tuning.optimizer, checkpoint.tensors("optimizer"))
    print(f"going on after step {checkpoint.step:,}")
    return TrainState(**checkpoint.state["position"]), checkpoint.tensors("best"), checkpoint.state["sizes"]


def _save(tuning: Tuning, position: TrainState, best: Mapping[str, Tensor], sizes: Mapping[str, int]) -> None:
    tensors = {
        "model": dict(tuning.model.state_dict()), "optimizer": named_state(tuning.model, tuning.optimizer), "best": best
    }  # fmt: skip
    state = {"position": asdict(position), "sizes": sizes, "rows": tuning.rows}
    save(tuning.out / "checkpoints", position.step, tensors, state, keep=2)


def _keep_best(tuning: Tuning, position: TrainState, best: dict[str, Tensor], journal: RunLog) -> dict[str, Tensor]:
    """Score, and return the best weights so far; where nothing is scored there are none but the last."""
    if tuning.score is None:
        position.best_step = position.step
        return {}
    scores = tuning.score()
    gained = not best or _gain(scores, tuning.metric) > _gain(position.best_scores, tuning.metric)
    journal.log(kind="dev", step=position.step, **{name: round(value, 6) for name, value in scores.items()})
    shown = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
    print(f"step {position.step:,}: {shown}{', best so far' if gained else ''}", flush=True)
    position.since_best += 1
    if not gained:
        return best
    position.best_step, position.best_scores, position.since_best = position.step, scores, 0
    return {name: tensor.detach().cpu().clone() for name, tensor in tuning.model.state_dict().items()}


def _stop(tuning: Tuning, position: TrainState) -> str | None:
    """Return why the run should stop, if it should."""
    if tuning.patience is not None and position.since_best >= tuning.patience:
        return f"{position.since_best} scorings without a gain"
    if tuning.give_up is None or not position.best_scores:
        return None
    return tuning.give_up(position.step / tuning.steps_per_epoch, _gain(position.best_scores, tuning.metric))


def _gain(scores: Mapping[str, float], metric: str) -> float:
    """Return a score of which more is better: of an error, its negative."""
    return -scores[metric] if metric.endswith("error") else scores[metric]


def groups_by_depth(
    model: nn.Module, encoder: Encoder, lr: float, head_lr: float, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Split parameters into groups for the optimizer, each with its share `lr_scale` of the planned rate.

    What is neither of the encoder nor of the pretrained head learns at `head_lr`, that head and the final norm at `lr`,
    the last layer at `layer_decay` times that, and so on down to the embeddings.
    """
    depth = len(encoder.layers)
    below: list[tuple[nn.Module, float]] = [(encoder.final_norm, 1.0)]
    below += [(layer, layer_decay ** (depth - number)) for number, layer in enumerate(encoder.layers)]
    below += [(encoder.embeddings, layer_decay ** (depth + 1))]
    above = [
        (child, 1.0 if name == "head" else head_lr / lr)
        for name, child in model.named_children()
        if child is not encoder
    ]
    by_scale: dict[tuple[float, float], dict[str, Any]] = {}
    for module, scale in above + below:
        for group in parameter_groups(module, weight_decay):
            key = scale, group["weight_decay"]
            scaled = {**group, "params": [], "lr": lr * scale, "max_lr": lr * scale, "lr_scale": scale}
            by_scale.setdefault(key, scaled)["params"].extend(group["params"])
    return list(by_scale.values())


def predict(
    model: nn.Module, batches: Iterable[Batch], *, device: torch.device, dtype: torch.dtype
) -> Float32[np.ndarray, "M labels"]:
    """Return the scores of the rows of all batches, in order, without dropout."""
    training = model.training
    model.eval()
    found = []
    with torch.inference_mode(), autocast(device, dtype):
        for batch in batches:
            found.append(model(batch.to(device)).float().cpu().numpy())
    model.train(training)
    return np.concatenate(found)
