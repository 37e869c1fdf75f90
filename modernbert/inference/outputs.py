"""What tuned heads say of texts: labels, spans, and how well a passage answers.

In: a classifier and documents. Out: plain Python: names and numbers. A file of its own because vectors need none of it.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch

from modernbert.batch import Batch, batch_by_size
from modernbert.data.words import share_tokens, split_words
from modernbert.devices import autocast
from modernbert.errors import InputError
from modernbert.inference.overflow import CUT_ALONE, apply_overflow
from modernbert.model.heads import Classifier, MaskedLM
from modernbert.tasks.tagging import Span, spans_of_best, spans_of_scores
from modernbert.tasks.task import find_task
from modernbert.tokenizer.input_templates import EncodedText, encode_with_template
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = [
    "Span",
    "Text",
    "classify",
    "finite",
    "likeliest",
    "named",
    "pair_scores",
    "rank_scores",
    "spans_of_best",
    "spans_of_scores",
    "tag",
    "tag_documents",
]

Text = str | tuple[str, str]

_TEXTS_AT_A_TIME = 4_096
# Logits computed at a time, 16 MiB in float32: rows are as wide as the vocabulary.
_LOGITS_AT_A_TIME = 2**22


def classify(
    model: Classifier, tokenizer: Tokenizer, texts: Sequence[Text], longest: int, overflow: str, budget_tokens: int
) -> list[dict[str, float]]:
    """Return each text's labels and their probabilities, the likeliest first; of one score, that.

    Raises: InputError for a model with another head, or a text that is too long.
    """
    if find_task(model.task).answers not in ("labels", "ranking"):
        raise InputError(f"this model has a head for {model.task}, expected one for classify, multilabel or regress")
    if not texts:
        return []
    return named(model, _scores(model, tokenizer, texts, longest, overflow, budget_tokens))


def finite(values: torch.Tensor) -> torch.Tensor:
    """Return what a model computed, if it is numbers.

    Raises: InputError if it is not: there is no answer in it.
    """
    if not values.isfinite().all():
        raise InputError("the model computes values that are not finite; its weights or its config must be wrong")
    return values


def likeliest(model: MaskedLM, rows: torch.Tensor, top_k: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the `top_k` likeliest tokens at hidden states [M, D] and their probabilities, [M, top_k] each.

    Rows go through the decoder a few at a time, so memory does not grow with their number. Entries of the model's
    vocabulary from `vocab_size` on stand for no text. Logits that are not finite give probabilities that are not.
    """
    # Allocated first: small results between the logits of one step and the next would keep memory from being reused.
    tokens = np.empty((len(rows), top_k), np.int64)
    shares = np.empty((len(rows), top_k), np.float32)
    step = max(1, _LOGITS_AT_A_TIME // model.decoder.out_features)
    for start in range(0, len(rows), step):
        with torch.inference_mode():
            logits = model.decode(rows[start : start + step]).float()[:, :vocab_size]
            best = logits.softmax(dim=-1).topk(top_k, dim=-1)
        tokens[start : start + step], shares[start : start + step] = best.indices.cpu(), best.values.cpu()
        del logits, best
    return tokens, shares


def named(model: Classifier, scores: torch.Tensor, *, raw: bool = False) -> list[dict[str, float]]:
    """Return the scores of texts [N, labels] by label, the highest first: as probabilities, unless `raw`."""
    return find_task(model.task).label_scores(model.labels, scores, raw=raw)


def pair_scores(
    model: Classifier, tokenizer: Tokenizer, pairs: Sequence[Text], longest: int, overflow: str, budget_tokens: int
) -> np.ndarray:
    """Return how well the second text of each pair answers the first, float32 [N].

    Raises: InputError for a pair that is too long.
    """
    return rank_scores(model, _scores(model, tokenizer, pairs, longest, overflow, budget_tokens)[:, 0]).numpy()


def rank_scores(model: Classifier, logits: torch.Tensor) -> torch.Tensor:
    """Return by which numbers pairs are ranked: 0 to 1, or a regression's own."""
    return find_task(model.task).activate(logits)


def tag(
    model: Classifier, tokenizer: Tokenizer, texts: Sequence[str], longest: int, overflow: str, budget_tokens: int
) -> list[list[Span]]:
    """Return the spans a tagger finds in each text.

    A text that is too long is an error, or is read to where it is cut (`truncate`).

    Raises: InputError for a model with another head, or a text that is too long.
    """
    if find_task(model.task).answers != "spans":
        raise InputError(f"this model has a head for {model.task}, expected one for tag")
    if overflow == "split-mean":
        raise InputError("overflow: found split-mean, expected error or truncate: tags have no mean")
    documents = tag_documents(tokenizer, texts, longest, overflow)
    found: list[list[Span]] = []
    places = iter(zip(texts, documents, strict=True))
    for group in batch_by_size((laid for _, laid in documents), budget_tokens, lambda each: len(each.tokens)):
        rows = _forward(model, encode_with_template(group)).numpy()
        for part in np.split(rows, np.cumsum([each.num_rows for each in group])[:-1]):
            text, (words, _) = next(places)
            found.append(spans_of_scores(model.labels, text, words, part))
    return found


def tag_documents(
    tokenizer: Tokenizer, texts: Sequence[str], longest: int, overflow: str
) -> list[tuple[list[tuple[int, int]], EncodedText]]:
    """Return of each text where its words are, and its ids with the first token of each word that is not cut off.

    Words are those of `split_words`; letters of scripts without blanks that share a token are one word.

    Raises: InputError for a text that is too long, unless it is to be cut.
    """
    words = [split_words(text) for text in texts]
    encoded = tokenizer.encode_words(texts, [[start for start, _ in ranges] for ranges in words])
    kept = (ids for _, ids in apply_overflow((ids for ids, _ in encoded), tokenizer, longest, overflow, CUT_ALONE))
    found = []
    room = longest - tokenizer.num_special[1]
    for text, ranges, ids, (whole, places) in zip(texts, words, kept, encoded, strict=True):
        ranges, where, _ = share_tokens(text, ranges, places)
        found.append((ranges, EncodedText(ids, where if len(ids) == len(whole) else where[where < room])))
    return found


def _scores(
    model: Classifier, tokenizer: Tokenizer, texts: Sequence[Text], longest: int, overflow: str, budget_tokens: int
) -> torch.Tensor:
    """Return the scores of every text; of one in parts, the mean over them."""
    numbers: list[int] = []
    found: list[torch.Tensor] = []
    documents = _encode(tokenizer, texts, longest, overflow)
    for group in batch_by_size(documents, budget_tokens, lambda each: len(each[1])):
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

    return apply_overflow(whole(), tokenizer, longest, overflow)


def _forward(model: Classifier, batch: Batch) -> torch.Tensor:
    weight = model.classifier.weight
    with torch.inference_mode(), autocast(weight.device, weight.dtype):
        return finite(model(batch.to(weight.device)).float().cpu())
