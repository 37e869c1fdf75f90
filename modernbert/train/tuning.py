"""What fine-tuning adds to the loop: its schedule, rates by depth, and predictions.

In: a model with a head, the number of steps. Out: learning rates, groups of parameters, scores of rows.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from modernbert.device import autocast
from modernbert.model.heads import Classifier
from modernbert.ragged import Batch
from modernbert.train.optim import parameter_groups
from modernbert.train.schedule import StepPlan

__all__ = ["LinearPlan", "groups_by_depth", "predict"]


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


def groups_by_depth(
    model: Classifier, lr: float, head_lr: float, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Split parameters into groups for the optimizer, each with its share `lr_scale` of the planned rate.

    The scores learn at `head_lr`, the prediction head and the final norm at `lr`, the last layer at `layer_decay` times
    that, and so on down to the embeddings.
    """
    encoder, depth = model.model, len(model.model.layers)
    parts = [(model.classifier, head_lr / lr), (model.head, 1.0), (encoder.final_norm, 1.0)]
    parts += [(layer, layer_decay ** (depth - number)) for number, layer in enumerate(encoder.layers)]
    parts += [(encoder.embeddings, layer_decay ** (depth + 1))]
    by_scale: dict[tuple[float, float], dict[str, Any]] = {}
    for module, scale in parts:
        for group in parameter_groups(module, weight_decay):
            key = scale, group["weight_decay"]
            scaled = {**group, "params": [], "lr": lr * scale, "max_lr": lr * scale, "lr_scale": scale}
            by_scale.setdefault(key, scaled)["params"].extend(group["params"])
    return list(by_scale.values())


def predict(
    model: Classifier, batches: Iterable[Batch], *, device: torch.device, dtype: torch.dtype
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
