"""The routes that return ranks, labels, spans and filled masks, with the fields of the common inference servers."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import orjson
import torch
from fastapi import FastAPI, Request

from modernbert.errors import InputError
from modernbert.inference.outputs import LabelScores, MaskGuesses
from modernbert.inference.overflow import encode_words
from modernbert.inference.predictor import encode_masked
from modernbert.model.interface import FILL_MASK
from modernbert.serving import schemas
from modernbert.serving.schemas import described
from modernbert.serving.service import Service, json_response
from modernbert.tasks.tagging import spans_of_best
from modernbert.tokenizer.input_templates import EncodedText
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["add_answers"]

_MAX_GUESSES = 2**17
# Each score is returned with its label.
_MAX_SCORES = 2**20


def add_answers(app: FastAPI, service: Service) -> None:
    """Add the routes; each refuses a model whose head is for something else."""
    rerank, predict = _add_ranks(app, service), _add_labels(app, service)
    # Clients of the Hub send the requests of the model's task to the root.
    if service.bert.model.is_classifier:
        answer = rerank if service.bert.answers == "ranking" else predict
        app.add_api_route("/", answer, methods=["POST"], include_in_schema=False)
    _add_masks(app, service)


def _add_ranks(app: FastAPI, service: Service) -> Callable[..., Any]:
    """Add the routes of rankings, and return the function of `/rerank`."""
    ranking = [{"index": 1, "score": 0.41}, {"index": 0, "score": -0.04}]

    @app.post("/rerank", **described("Answers", "Rank texts", "The numbers of the texts, best first.", ranking))
    async def rerank(http: Request, body: schemas.RerankIn) -> list[dict[str, Any]]:
        """Return the scores of texts for a query, best first.

        A cross-encoder scores with a probability, a regression with its number. Other models score with the cosine
        similarity of vectors, or with MaxSim.
        """
        scores = await service.rank(http, body.query, body.texts, bool(body.truncate), body.raw_scores)
        order = sorted(range(len(scores)), key=lambda n: -scores[n])
        text = (lambda n: {"text": body.texts[n]}) if body.return_text else lambda n: {}
        return [{"index": n, "score": scores[n], **text(n)} for n in order]

    results_of_cohere = described(
        "Answers", "Rank documents, for Cohere's clients", "The numbers of the documents, best first.",
        {"model": "m", "results": [{"index": 1, "relevance_score": 0.41}]},
    )  # fmt: skip

    @app.post("/v1/rerank", **results_of_cohere)
    async def cohere(http: Request, body: schemas.RerankV1In) -> dict[str, Any]:
        """Return the scores of documents for a query, best first, in the form of Cohere's API."""
        scores = await service.rank(http, body.query, body.documents, bool(body.truncate), False)
        order = sorted(range(len(scores)), key=lambda n: -scores[n])[: body.top_n]
        text = (lambda n: {"document": {"text": body.documents[n]}}) if body.return_documents else lambda n: {}
        results = [{"index": n, "relevance_score": scores[n], **text(n)} for n in order]
        return {"model": body.model or service.settings.model_id, "results": results}

    return rerank


def _add_labels(app: FastAPI, service: Service) -> Callable[..., Any]:
    """Add the route of labels, and return its function."""
    labels = described(
        "Answers", "Label texts", "The labels of each text; for a single text or pair, without the outer array.",
        [[{"label": "billing", "score": 0.93}, {"label": "delivery", "score": 0.07}]],
    )  # fmt: skip

    @app.post("/predict", **labels)
    async def predict(http: Request, body: schemas.PredictIn) -> Any:
        """Return the labels of each text with their probabilities, or the spans that a tagger finds.

        A model without a classification head refuses the request.
        """
        model, _ = service.head()
        batched = not isinstance(body.inputs, str) and bool(body.inputs) and isinstance(body.inputs[0], list)
        if body.inputs == []:
            return []
        rows: list[Any] = list(body.inputs) if batched else [body.inputs]
        texts = [[row] if isinstance(row, str) else list(row) for row in rows]
        if any(len(text) not in (1, 2) for text in texts) or len({len(text) for text in texts}) > 1:
            raise InputError("inputs: expected texts, or pairs of texts, one kind of them")
        if model.reads_pairs and len(texts[0]) == 1:
            raise InputError("inputs: found single texts, expected pairs: this model was trained on pairs of texts")
        found = await _predicted(http, service, texts, bool(body.truncate), body.raw_scores)
        return await json_response(lambda: _each_written(found, batched), len(texts) * len(model.labels))

    return predict


def _add_masks(app: FastAPI, service: Service) -> None:
    bert = service.bert
    guesses = described(
        "Answers", "Fill masks", "The tokens of each text; with several masks in a text, an array for each.",
        [{"token": 1929, "token_str": " card", "score": 0.31}],
    )  # fmt: skip

    @app.post("/fill-mask", **guesses)
    async def fill_mask(http: Request, body: schemas.FillMaskIn) -> Any:
        """Return the most probable tokens for each [MASK]; a model without a masked-LM head refuses the request."""
        model = bert.model
        if model.task != FILL_MASK:
            raise InputError("this model has no masked-LM head")
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        top_k = (body.parameters and body.parameters.top_k) or body.top_k

        def encode() -> list[EncodedText]:
            encoded = [EncodedText(ids) for _, ids in encode_masked(bert, texts)]
            guesses = top_k * sum(int((each.tokens == bert.tokenizer.mask_id).sum()) for each in encoded)
            if guesses > _MAX_GUESSES:
                raise InputError(f"found {guesses:,} guesses to make, expected at most {_MAX_GUESSES:,} at once")
            return encoded

        vocab_size = bert.tokenizer.vocab_size
        output = MaskGuesses(model, bert.tokenizer.mask_id, vocab_size, min(top_k, vocab_size))
        found = await service.compute(http, encode, output)
        answers = (_guesses(bert.tokenizer, *of_text) for of_text in found)
        batched = not isinstance(body.inputs, str)
        return await json_response(lambda: _each_written(answers, batched), sum(of[0].size for of in found))


def _each_written(answers: Iterable[Any], batched: bool) -> Any:
    """Return the answers as JSON, or that of a single text; only one at a time is held as Python objects."""
    found = [orjson.Fragment(orjson.dumps(answer)) for answer in answers]
    return found if batched else found[0]


def _guesses(tokenizer: Tokenizer, tokens: np.ndarray, shares: np.ndarray) -> list[Any]:
    """Return the guesses for each mask of a text [masks, k]; for one mask without a list around it, as the Hub does."""
    found = [
        [
            {"token": token, "token_str": tokenizer.text_of(token), "score": share}
            for token, share in zip(of_mask, its_shares, strict=True)
        ]
        for of_mask, its_shares in zip(tokens.tolist(), shares.tolist(), strict=True)
    ]
    return found[0] if len(found) == 1 else found


async def _predicted(
    http: Request, service: Service, texts: list[list[str]], truncate: bool, raw: bool
) -> Iterator[list[dict[str, Any]]]:
    """Yield the labels of each text and their probabilities, or the spans that a tagger finds."""
    model, task = service.head()
    if task.answers == "spans":
        if len(texts[0]) == 2:
            raise InputError("inputs: found pairs, expected single texts: this model is a tagger")
        return await _tagged(http, service, [text[0] for text in texts], truncate)

    def encode() -> list[EncodedText]:
        if len(texts[0]) == 1:
            return service.encode([text[0] for text in texts], "", truncate)
        return service.encode_pairs([(text[0], text[1]) for text in texts], truncate)

    if len(texts) * model.num_labels > _MAX_SCORES:
        raise InputError(
            f"found {len(texts):,} texts with scores of {model.num_labels:,} labels each, expected at most "
            f"{_MAX_SCORES:,} scores at once"
        )
    logits = torch.from_numpy(np.stack(await service.compute(http, encode, LabelScores(model))))
    return (
        [{"label": label, "score": score} for label, score in each.items()]
        for row in logits
        for each in task.label_scores(model.labels, row[None], raw=raw)
    )


async def _tagged(http: Request, service: Service, texts: list[str], truncate: bool) -> Iterator[list[dict[str, Any]]]:
    """Yield the spans of each text."""
    bert = service.bert
    words: list[list[tuple[int, int]]] = []

    def encode() -> list[EncodedText]:
        found = encode_words(bert.tokenizer, texts, bert.max_length, "truncate" if truncate else "error")
        words.extend(ranges for ranges, _ in found)
        return [encoded for _, encoded in found]

    tags = await service.compute(http, encode, LabelScores(bert.model))
    spans = [
        spans_of_best(bert.model.labels, text, ranges, *best)
        for text, ranges, best in zip(texts, words, tags, strict=True)
    ]
    # Clients of the Hub read the label and the text from the last two keys.
    return ([asdict(span) | {"entity_group": span.label, "word": span.text} for span in of_text] for of_text in spans)
