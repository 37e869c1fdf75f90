"""What tuned heads say of texts: labels, spans, and how well a passage answers.

In: a classifier and documents. Out: plain Python: names and numbers. A file of its own because vectors need none of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from modernbert.device import autocast
from modernbert.errors import InputError
from modernbert.infer.overflow import fitting
from modernbert.model.heads import Classifier
from modernbert.ragged import Batch, within
from modernbert.text.forms import Laid, laid_out
from modernbert.text.labelled.words import spans_of, split_words
from modernbert.text.tokenizer import Tokenizer

__all__ = ["Span", "classify", "pair_scores", "tag"]

Text = str | tuple[str, str]

_TEXTS_AT_A_TIME = 4_096


@dataclass(frozen=True)
class Span:
    """Hold what a tagger found: `text[start:end]`, and the mean probability of its words' tags."""

    start: int
    end: int
    label: str
    text: str
    score: float


def classify(
    model: Classifier, tokenizer: Tokenizer, texts: Sequence[Text], longest: int, overflow: str, budget_tokens: int
) -> list[dict[str, float]]:
    """Return each text's labels and their probabilities, the likeliest first; of one score, that.

    Raises: InputError for a model with another head, or a text that is too long.
    """
    if model.task not in ("classify", "multilabel", "regress", "rerank"):
        raise InputError(f"this model has a head for {model.task}, expected one for classify, multilabel or regress")
    if not texts:
        return []
    scores = _scores(model, tokenizer, texts, longest, overflow, budget_tokens)
    if model.task == "classify":
        scores = torch.softmax(scores, dim=1)
    elif model.task in ("multilabel", "rerank"):
        scores = torch.sigmoid(scores)
    found = [dict(zip(model.labels, row, strict=True)) for row in scores.tolist()]
    return [dict(sorted(row.items(), key=lambda item: -item[1])) for row in found]


def pair_scores(
    model: Classifier, tokenizer: Tokenizer, pairs: Sequence[Text], longest: int, overflow: str, budget_tokens: int
) -> np.ndarray:
    """Return how well the second text of each pair answers the first, float32 [N], 0 to 1.

    Raises: InputError for a pair that is too long.
    """
    return torch.sigmoid(_scores(model, tokenizer, pairs, longest, overflow, budget_tokens)[:, 0]).numpy()


def tag(
    model: Classifier, tokenizer: Tokenizer, texts: Sequence[str], longest: int, overflow: str, budget_tokens: int
) -> list[list[Span]]:
    """Return the spans a tagger finds in each text.

    A text that is too long is an error, or is read to where it is cut (`truncate`).

    Raises: InputError for a model with another head, or a text that is too long.
    """
    if model.task != "tag":
        raise InputError(f"this model has a head for {model.task}, expected one for tag")
    if overflow == "split-mean":
        raise InputError("overflow: found split-mean, expected error or truncate: tags have no mean")
    ranges = [split_words(text) for text in texts]
    laid: list[Laid] = []
    encoded = tokenizer.encode_words(texts, [[start for start, _ in words] for words in ranges])
    kept = (ids for _, ids in fitting((ids for ids, _ in encoded), tokenizer, longest, overflow))
    for ids, (whole, where) in zip(kept, encoded, strict=True):
        laid.append(Laid(ids, where if len(ids) == len(whole) else where[where < longest - 1]))
    found: list[list[Span]] = []
    places = iter(zip(texts, ranges, laid, strict=True))
    for group in within(laid, budget_tokens, lambda each: len(each.tokens)):
        rows = _forward(model, laid_out(group)).softmax(dim=1)
        best = rows.max(dim=1)
        sizes = [each.num_rows for each in group]
        for numbers, shares in zip(best.indices.split(sizes), best.values.split(sizes), strict=True):
            text, words, _ = next(places)
            found.append(_spans(text, words, [model.labels[n] for n in numbers.tolist()], shares.tolist()))
    return found


def _spans(text: str, words: Sequence[tuple[int, int]], tags: Sequence[str], shares: Sequence[float]) -> list[Span]:
    spans = []
    for first, behind, label in sorted(spans_of(tags)):
        start, end = words[first][0], words[behind - 1][1]
        spans.append(Span(start, end, label, text[start:end], float(np.mean(shares[first:behind]))))
    return spans


def _scores(
    model: Classifier, tokenizer: Tokenizer, texts: Sequence[Text], longest: int, overflow: str, budget_tokens: int
) -> torch.Tensor:
    """Return the scores of every text; of one in parts, the mean over them."""
    numbers: list[int] = []
    found: list[torch.Tensor] = []
    documents = _encode(tokenizer, texts, longest, overflow)
    for group in within(documents, budget_tokens, lambda each: len(each[1])):
        numbers += [number for number, _ in group]
        found.append(_forward(model, Batch.from_documents([ids for _, ids in group])))
    scores, owners = torch.cat(found), torch.tensor(numbers)
    sums = torch.zeros(len(texts), scores.shape[1]).index_add_(0, owners, scores)
    return sums / torch.bincount(owners, minlength=len(texts))[:, None]


def _encode(
    tokenizer: Tokenizer, texts: Sequence[Text], longest: int, overflow: str
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the ids of texts and pairs; a pair that is to be cut loses tokens of its longer text."""
    stream = iter(texts)

    def whole() -> Iterator[np.ndarray]:
        while some := list(islice(stream, _TEXTS_AT_A_TIME)):
            single = [each for each in some if isinstance(each, str)]
            pairs = [each for each in some if not isinstance(each, str)]
            if single and pairs:
                raise InputError("texts: found texts and pairs of texts, expected one or the other")
            yield from tokenizer.encode(single)
            yield from tokenizer.encode_pairs(pairs, longest if overflow == "truncate" else None)

    return fitting(whole(), tokenizer, longest, overflow)


def _forward(model: Classifier, batch: Batch) -> torch.Tensor:
    weight = model.classifier.weight
    with torch.inference_mode(), autocast(weight.device, weight.dtype):
        return model(batch.to(weight.device)).float().cpu()
