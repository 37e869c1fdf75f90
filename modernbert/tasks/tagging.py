"""`tag`: a label for each word, and the spans that the labels mark (named entities)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modernbert.data.words import spans_of
from modernbert.tasks.task import Task, register

__all__ = ["Span", "Tagging", "spans_of_best", "spans_of_scores"]


@dataclass(frozen=True)
class Span:
    """A labeled span `text[start:end]`, with the mean probability of its words' tags as its score."""

    start: int
    end: int
    label: str
    text: str
    score: float


class Tagging(Task):
    """Choose one tag for each word."""

    name = "tag"
    answers = "spans"

    def activate(self, logits: Tensor) -> Tensor:
        """Return the probability of each tag; they sum to 1."""
        return logits.softmax(dim=-1)


def spans_of_scores(
    labels: Sequence[str], text: str, words: Sequence[tuple[int, int]], scores: np.ndarray
) -> list[Span]:
    """Return the spans that the logits of a text's words mark [words, labels]."""
    shares, best = torch.from_numpy(scores).softmax(dim=1).max(dim=1)
    return spans_of_best(labels, text, words, best.numpy(), shares.numpy())


def spans_of_best(
    labels: Sequence[str], text: str, words: Sequence[tuple[int, int]], best: np.ndarray, shares: np.ndarray
) -> list[Span]:
    """Return the spans that the likeliest labels of a text's words mark, by label number and probability [words]."""
    spans = []
    for first, behind, label in sorted(spans_of([labels[n] for n in best.tolist()])):
        start, end = words[first][0], words[behind - 1][1]
        spans.append(Span(start, end, label, text[start:end], float(shares[first:behind].mean())))
    return spans


register(Tagging())
