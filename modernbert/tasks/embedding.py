"""`embed`: vectors that are close where a document answers a query."""

from modernbert.tasks.task import Task, register

__all__ = ["Embedding"]


class Embedding(Task):
    """One vector for each text, compared by cosine similarity."""

    name = "embed"
    answers = "vectors"


register(Embedding())
