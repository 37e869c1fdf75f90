"""`late`: a vector for each token, compared by MaxSim (ColBERT)."""

from modernbert.tasks.task import RetrievalTask, register

__all__ = ["LateInteraction"]


class LateInteraction(RetrievalTask):
    """One vector for each token of a text, compared by MaxSim."""

    name = "late"
    per_token = True
    default_temperature = 1.0


register(LateInteraction())
