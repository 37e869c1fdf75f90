"""Fine-tuning as a training run: its schedule, learning rates by depth, early stopping, and the best weights."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from modernbert.batch import Batch
from modernbert.checkpoints.command_line import command_line
from modernbert.checkpoints.model_card import ModelCard, Scores
from modernbert.data.example_sampler import ExampleSampler
from modernbert.devices import autocast, dtype_name
from modernbert.engines.registry import find_optimizer_kernels
from modernbert.errors import InputError
from modernbert.model.interface import MODERNBERT, Model
from modernbert.training.distributed import SINGLE_PROCESS, Loss, World, full_tensor
from modernbert.training.finetuning_config import FinetuneOptions
from modernbert.training.optimizers import (
    Optimizer,
    OptimizerContext,
    build_optimizer,
    parameter_groups,
)
from modernbert.training.run_checkpoint import Checkpoint
from modernbert.training.schedules import StepPlan
from modernbert.training.training_loop import StepResult
from modernbert.training.training_run import Feed, Recipe, Stage, TrainingRun

__all__ = [
    "StopRule",
    "LabeledBatches",
    "LinearPlan",
    "StepBatches",
    "FinetuneRecipe",
    "FinetuneResult",
    "card_of",
    "check_finished",
    "check_sharding",
    "digest_of_rows",
    "divide",
    "groups_by_depth",
    "predict",
]

StopRule = Callable[[float, float], str | None]
"""(epochs done, best score so far, higher is better) -> why to stop, or None"""
Score = Callable[[Model], dict[str, float]]


@dataclass(frozen=True)
class LinearPlan:
    """Schedule of `num_steps` steps: the learning rate rises from 0 over a share `warmup` of them, then falls to 0.

    >>> [LinearPlan(10, 1.0, 0.2, lambda step: 1).plan(step).lr for step in (0, 1, 2, 6)]
    [0.0, 0.5, 1.0, 0.5]
    """

    num_steps: int
    peak_lr: float
    warmup: float
    num_micro_batches: Callable[[int], int]

    def plan(self, step: int) -> StepPlan:
        """Return the plan of a step, counted from 0."""
        rising = round(self.warmup * self.num_steps)
        share = step / rising if step < rising else (self.num_steps - step) / max(1, self.num_steps - rising)
        return StepPlan(self.num_micro_batches(step), self.peak_lr * share, step)


def digest_of_rows(num_steps: int, names: Sequence[str], arrays: Iterable[np.ndarray]) -> str:
    """Return a digest of training rows: the names of their labels, their tokens and labels, in order."""
    digest = sha256(json.dumps([num_steps, *names]).encode())
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def check_finished(config: FinetuneOptions, digests: Mapping[str, str]) -> None:
    """Refuse a finished run of other data: `digests` by split are compared with those in `scores.json`."""
    path = Path(config.output) / "scores.json"
    try:
        found = json.loads(path.read_text()).get("data", {})
    except (ValueError, AttributeError):
        raise InputError(f"{path}: is not readable as scores; delete it, and the run writes it again") from None
    for name, digest in digests.items():
        if found.get(name, digest) != digest:
            files = ", ".join(getattr(config, name))
            raise InputError(
                f"{name}: {files} has changed since {config.output} finished; choose another `output` for it"
            )


class StepBatches(ABC):
    """The micro-batches of each step, as a function of the seed and the step, for one process of several."""

    def __init__(self, sampler: ExampleSampler, world: World = SINGLE_PROCESS) -> None:
        self.sampler, self.world = sampler, world

    @abstractmethod
    def num_batches(self, step: int) -> int:
        """Return the number of micro-batches of a step, in all processes together."""

    @abstractmethod
    def batches(self, step: int, run: TrainingRun) -> Iterator[Batch | None]:
        """Yield the micro-batches of a step; None for one of another process."""

    @abstractmethod
    def filler(self) -> Batch:
        """Return a batch for a process that has no micro-batch in a step."""


class LabeledBatches(StepBatches):
    """Micro-batches of labeled examples."""

    def __init__(
        self, sampler: ExampleSampler, collate: Callable[[Sequence[int]], Batch], world: World = SINGLE_PROCESS
    ) -> None:
        super().__init__(sampler, world)
        self._collate = collate

    def num_batches(self, step: int) -> int:
        """Return the number of micro-batches of a step."""
        return len(self._parts(step))

    def batches(self, step: int, run: TrainingRun) -> Iterator[Batch | None]:
        """Yield the micro-batches of a step; None for one of another process."""
        for number, part in enumerate(self._parts(step)):
            yield self._collate(part) if number % self.world.size == self.world.rank else None

    def filler(self) -> Batch:
        """Return a batch of one example."""
        return self._collate([0])

    def _parts(self, step: int) -> list[list[int]]:
        return divide(self.sampler.micro_batches(step), self.world.size)


def divide(parts: list[list[int]], num_processes: int) -> list[list[int]]:
    """Divide the micro-batches of a step further, so that each process has one, if there are enough examples.

    >>> divide([[4, 1, 3], [2]], 3), divide([[4, 1]], 1)
    ([[4, 2], [1], [3]], [[4, 1]])
    """
    if len(parts) >= num_processes:
        return parts
    examples = [example for part in parts for example in part]
    return [some for rank in range(num_processes) if (some := examples[rank::num_processes])]


@dataclass
class FinetuneResult:
    """Result of fine-tuning: the best step and its scores, and why the run ended early, if it did."""

    best_step: int
    best_scores: dict[str, float]
    stopped: str | None


def card_of(
    config: FinetuneOptions, tuned: FinetuneResult, num_rows: Mapping[str, int], dtype: torch.dtype
) -> ModelCard:
    """Return the card of a fine-tuned model, with its scores on the dev data."""
    settings: dict[str, Any] = {f"Rows of {name}": number for name, number in num_rows.items()}
    settings |= {
        "Epochs": config.epochs, "Examples of a step": config.batch, "Peak learning rate": config.lr,
        "Weight decay": config.weight_decay, "Optimizer": config.optim.kind, "Seed": config.seed,
        "Data type of the matrix products": dtype_name(dtype),
    }  # fmt: skip
    if tuned.best_scores:
        settings["Step with the best score"] = tuned.best_step
    if config.subset is not None:
        settings["Subset of the data sets"] = config.subset
    return ModelCard(
        method=f"Fine-tuned for the task `{config.task}`.",
        command=command_line("modernbert finetune", config, config.FREE_TO_CHANGE),
        bases=[config.model],
        relation="finetune",
        data=config.train,
        settings=settings,
        scores=[Scores("dev", tuned.best_scores, config.dev)] if tuned.best_scores else [],
    )


class FinetuneRecipe(Recipe):
    """Fine-tune a model, score it on the dev data, and keep the weights that score best.

    Args:
        config: Options of the run.
        model: The model, on its device.
        loss: Returns the sum of a loss and its number of rows.
        head_lr: Peak learning rate of new layers on the encoder; None for that of the encoder.
        batches: The micro-batches of each step.
        rows: Digest of the training data: a run only continues with the same.
        num_tokens: Tokens of all steps, for the progress bar.
        engine: Name of the engine.
        dtype: Data type of the matrix products.
        metric: Name of the score that selects the best weights.
        score: Scores a model on the dev data; None keeps the last weights.
        stop_rule: Called after each evaluation; returns why to stop, or None.
    """

    saves_last = False
    model: Model

    def __init__(
        self, config: FinetuneOptions, model: Model, loss: Loss, head_lr: float | None, batches: StepBatches, *,
        rows: str, num_tokens: int, engine: str, dtype: torch.dtype, metric: str, score: Score | None,
        stop_rule: StopRule | None = None,
    ) -> None:  # fmt: skip
        self.config, self.model, self.loss, self.batches = config, model, loss, batches
        # The units of sharding; the layers of a model of another family are not known.
        self.blocks = model.encoder.layers if model.encoder.family == MODERNBERT else nn.ModuleList()
        self.engine, self.dtype, self.num_tokens = engine, dtype, num_tokens
        self.world = batches.world
        # FSDP2 shards the model in place; scoring and saving need whole weights.
        self.plain = deepcopy(model) if self.world.mesh is not None else model
        self.filler = batches.filler() if self.world.size > 1 else None
        sampler = batches.sampler
        plan = LinearPlan(sampler.num_steps, config.lr, config.warmup, batches.num_batches)
        self.stages = [Stage(plan, config.seed)]
        self.evaluate_every = max(1, round(sampler.steps_per_epoch / config.scorings_per_epoch))
        self._head_lr, self._rows, self._metric = head_lr or config.lr, rows, metric
        self._score, self._stop_rule = score, stop_rule
        self._best: dict[str, Tensor] = {}

    def train(self, device: torch.device) -> FinetuneResult:
        """Run the steps that are left after the last checkpoint, and load the best weights into `plain`."""
        state = TrainingRun(self.config, self, self.world, device).train()
        best = self._best or (self._whole_weights() if self.world.mesh is not None else {})
        _load_weights(self.plain, best)
        return FinetuneResult(state.evaluation["best_step"], state.evaluation["best_scores"], state.stopped)

    def start_phase(self, phase: int) -> Optimizer:
        """Return the optimizer."""
        sum_shards = self.world.sum_shards if self.world.mesh is not None else None
        device = next(self.model.parameters()).device
        context = OptimizerContext(self.config.optim, sum_shards, find_optimizer_kernels(device))
        lr, layer_decay, weight_decay = self.config.lr, self.config.layer_decay, self.config.weight_decay
        groups = groups_by_depth(self.model, lr, self._head_lr, layer_decay, weight_decay)
        return build_optimizer(self.model, groups, lr, context)

    def feed(self, run: TrainingRun) -> Feed:
        """Return the micro-batches of all steps that are left."""
        steps = range(run.state.phase_step, self.batches.sampler.num_steps)
        batches = (batch for step in steps for batch in self.batches.batches(step, run))
        return _FinetuneFeed(batches, self.batches.sampler.steps_per_epoch)

    def check(self, checkpoint: Checkpoint | None) -> None:
        """Refuse to continue with other training data."""
        if checkpoint is not None and checkpoint.state.get("rows", self._rows) != self._rows:
            raise InputError(
                f"train: found other rows, labels or tokens than those {checkpoint.folder} was trained on; "
                "choose another `output` for them"
            )

    def resume(self, checkpoint: Checkpoint) -> None:
        """Load the best weights so far."""
        self._best = checkpoint.tensors("best")

    def checkpoint_state(self, run: TrainingRun) -> dict[str, Any]:
        """Return the digest of the training data."""
        return {"rows": self._rows}

    def checkpoint_tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Return the best weights so far."""
        return {"best": self._best}

    def evaluate(self, run: TrainingRun, *, is_last: bool = False) -> str | None:
        """Score the model on the dev data, and keep its weights if it is the best so far; return why to stop, if so."""
        step, done = run.state.step, run.state.evaluation
        if self._score is None:
            run.state.evaluation = {"best_step": step, "best_scores": {}, "since_best": 0}
            return None
        weights = self._whole_weights() if self.world.mesh is not None else {}
        scores = self._scores(run, weights)
        gained = not self._best or _gain(scores, self._metric) > _gain(done["best_scores"], self._metric)
        run.log(kind="dev", step=step, **{name: round(value, 6) for name, value in scores.items()})
        shown = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        print(f"step {step:,}: {shown}{', best so far' if gained else ''}", flush=True)
        if gained:
            run.state.evaluation = {"best_step": step, "best_scores": scores, "since_best": 0}
            self._best = weights or self._whole_weights()
        else:
            run.state.evaluation = {**done, "since_best": done["since_best"] + 1}
        return None if is_last else self._why_stop(run)

    def _scores(self, run: TrainingRun, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """Score in the main process, on whole weights; return the scores in all."""

        def score() -> dict[str, float]:
            _load_weights(self.plain, weights)
            assert self._score is not None
            return self._score(self.plain)

        if self.world.size > 1:
            run.saver.wait()  # its thread uses the same process group
        return self.world.from_main(score)

    def _whole_weights(self) -> dict[str, Tensor]:
        """Return a copy of the weights on the CPU; a collective call, if the model is sharded."""
        named = self.model.named_parameters()
        return {name: full_tensor(parameter.detach()).to("cpu", copy=True) for name, parameter in named}

    def _why_stop(self, run: TrainingRun) -> str | None:
        config, done = self.config, run.state.evaluation
        reason = None
        if config.patience is not None and done["since_best"] >= config.patience:
            reason = f"{done['since_best']} evaluations without a gain"
        elif self._stop_rule is not None and done["best_scores"]:
            epochs = run.state.step / self.batches.sampler.steps_per_epoch
            best, stop_rule = _gain(done["best_scores"], self._metric), self._stop_rule
            reason = self.world.from_main(lambda: stop_rule(epochs, best))
        if reason is not None:
            print(f"stopped after step {run.state.step:,}: {reason}")
        return reason


class _FinetuneFeed(Feed):
    def __init__(self, batches: Iterator[Batch | None], steps_per_epoch: int) -> None:
        super().__init__(batches)
        self._steps_per_epoch = steps_per_epoch

    def log_row(self, plan: StepPlan, result: StepResult, step: int) -> dict[str, Any]:
        """Return the epochs done."""
        return {"epoch": round(step / self._steps_per_epoch, 4)}


def check_sharding(config: FinetuneOptions, family: str) -> None:
    """Refuse to shard a model of another family, whose layers are not known. Raises: InputError."""
    sharding = config.distributed.sharding
    if family != MODERNBERT and sharding != "none":
        raise InputError(f"distributed.sharding: found {sharding!r}, but {config.model} is a {family}; expected none")


def _load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])


def _gain(scores: Mapping[str, float], metric: str) -> float:
    """Return a score for which higher is better: the negative of an error."""
    return -scores[metric] if metric.endswith("error") else scores[metric]


def groups_by_depth(
    model: Model, lr: float, head_lr: float, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Group parameters for the optimizer, each with its share `lr_scale` of the planned learning rate.

    New layers on the encoder have the learning rate `head_lr`; a pretrained head and the final norm have `lr`, the last
    layer `layer_decay` times that, and so on down to the embeddings. All of an encoder of another family has `lr`.
    """
    encoder = model.encoder
    # A classifier of another family is one module, without the encoder as a child.
    below: list[tuple[nn.Module, float]] = [(child, 1.0) for child in model.children() if child is encoder]
    if encoder.family == MODERNBERT:
        depth = len(encoder.layers)
        below = [(encoder.final_norm, 1.0)]
        below += [(layer, layer_decay ** (depth - number)) for number, layer in enumerate(encoder.layers)]
        below += [(encoder.get_submodule("embeddings"), layer_decay ** (depth + 1))]
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
    """Return the logits of the rows of all batches, in order, without dropout."""
    training = model.training
    model.eval()
    found = []
    with torch.inference_mode(), autocast(device, dtype):
        for batch in batches:
            found.append(model(batch.to(device)).float().cpu().numpy())
    model.train(training)
    return np.concatenate(found)
