"""`regress`: a number for each text or pair of texts."""

from torch import Tensor

from modernbert.tasks.task import Task, register

__all__ = ["Regression"]


class Regression(Task):
    """Predict a number, trained with the mean squared error."""

    name = "regress"
    gives_probabilities = False

    def activate(self, logits: Tensor) -> Tensor:
        """Return the logits: they are the predicted numbers."""
        return logits


register(Regression())
