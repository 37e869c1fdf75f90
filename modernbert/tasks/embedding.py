"""`embed`: vectors that are close where a document answers a query."""

from modernbert.tasks.task import RetrievalTask, register

__all__ = ["Embedding"]


class Embedding(RetrievalTask):
    """One vector for each text, compared by cosine similarity."""

    name = "embed"


register(Embedding())
