"""`classify`: one of several labels for each text or pair of texts."""

import torch
from torch import Tensor

from modernbert.tasks.task import Task, register

__all__ = ["Classification"]


class Classification(Task):
    """Choose one label for each text."""

    name = "classify"

    def activate(self, logits: Tensor) -> Tensor:
        """Return the probability of each label; they sum to 1."""
        return torch.softmax(logits, dim=-1)


register(Classification())
