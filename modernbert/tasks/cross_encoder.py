"""`rerank`: how well a document answers a query, for reranking search results."""

import torch
from torch import Tensor

from modernbert.tasks.task import Task, register

__all__ = ["CrossEncoder"]


class CrossEncoder(Task):
    """Score pairs of query and document with one logit."""

    name = "rerank"
    answers = "ranking"

    def activate(self, logits: Tensor) -> Tensor:
        """Return the probability that the document answers the query."""
        return torch.sigmoid(logits)


register(CrossEncoder())
