"""Losses, each as `(sum, count)`: the training loop divides once, over all micro-batches of a step.

The division of a step into micro-batches therefore does not change its gradient.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from modernbert.batch import Batch
from modernbert.engines.inference_plan import is_plain
from modernbert.engines.registry import PORTABLE
from modernbert.errors import InputError
from modernbert.model.interface import Model

__all__ = ["info_nce", "masked_lm", "masked_lm_rows"]

_EVAL_ROWS = 256


def masked_lm(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], int]:
    """Sum the cross entropy of the masked rows, in float32 or wider.

    Only the M rows at `batch.label_positions` are decoded, in chunks: there is never a tensor [M, V]. A batch without a
    masked row gives 0 and zero gradients.
    """
    labels = _masked(batch)
    features = _features(model, batch)
    decoder: nn.Linear = model.decoder  # type: ignore[assignment]
    if not is_plain(decoder):  # an adapter or a hook must run
        return F.cross_entropy(decoder(features).float(), labels.long(), reduction="sum"), batch.num_labels
    engine = model.encoder.engine if isinstance(model, Model) else PORTABLE
    return engine.linear_cross_entropy(features, decoder.weight, decoder.bias, labels)


@torch.no_grad()
def masked_lm_rows(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, " M"], Bool[Tensor, " M"]]:
    """Return the cross entropy of each masked row, and whether the most likely token is right; on the device."""
    labels = _masked(batch)
    features = _features(model, batch)
    losses, correct = [], []
    for rows, expected in zip(features.split(_EVAL_ROWS), labels.split(_EVAL_ROWS), strict=True):
        logits = model.decoder(rows).float()  # type: ignore[operator]
        losses.append(F.cross_entropy(logits, expected, reduction="none"))
        correct.append(logits.argmax(dim=-1) == expected)
    return torch.cat(losses), torch.cat(correct)


def info_nce(scores: Float[Tensor, "Q P"], known: Bool[Tensor, "Q P"] | None = None) -> tuple[Float[Tensor, ""], int]:
    """Sum the InfoNCE loss: passage i is the positive of query i, others are negatives unless `known` to match.

    Source: van den Oord et al. 2018, with in-batch negatives.
    """
    own = torch.arange(len(scores), device=scores.device)
    if known is not None:
        others = known.clone()
        others[own, own] = False
        scores = scores.masked_fill(others, float("-inf"))
    return F.cross_entropy(scores, own, reduction="sum"), len(scores)


def _features(model: nn.Module, batch: Batch) -> Float[Tensor, "M D"]:
    """Return the inputs of the decoder for the masked rows, in the dtype of its GEMM."""
    features: Tensor = model.features(batch)  # type: ignore[operator]
    device = features.device.type
    return features.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else features


def _masked(batch: Batch) -> Tensor:
    if batch.label_positions is None or batch.labels is None:
        raise InputError("masked language modeling: the batch has no masked rows, expected label_positions and labels")
    return batch.labels
