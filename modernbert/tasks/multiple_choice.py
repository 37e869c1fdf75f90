"""`choose`: the right continuation of a text among several."""

from modernbert.tasks.task import Task, register

__all__ = ["MultipleChoice"]


class MultipleChoice(Task):
    """Score each choice with one logit and compare the choices of a question."""

    name = "choose"
    answers = "none"


register(MultipleChoice())
