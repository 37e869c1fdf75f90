"""`late`: a vector for each token, compared by MaxSim (ColBERT)."""

from modernbert.tasks.task import Task, register

__all__ = ["LateInteraction"]


class LateInteraction(Task):
    """One vector for each token of a text, compared by MaxSim."""

    name = "late"
    answers = "vectors"


register(LateInteraction())
