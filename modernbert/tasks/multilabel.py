"""`multilabel`: any number of labels for each text or pair of texts."""

import torch
from torch import Tensor

from modernbert.tasks.task import Task, register

__all__ = ["Multilabel"]


class Multilabel(Task):
    """Decide each label on its own."""

    name = "multilabel"

    def activate(self, logits: Tensor) -> Tensor:
        """Return the probability of each label, independent of the others."""
        return torch.sigmoid(logits)


register(Multilabel())
