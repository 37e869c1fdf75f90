"""The routes that give answers: ranks, labels, spans and filled masks.

In: texts over HTTP. Out: what text-embeddings-inference, Cohere and the hub's clients expect of each.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import orjson
import torch
from fastapi import FastAPI, Request

from modernbert.errors import InputError
from modernbert.inference.outputs import named, spans_of_best, tag_documents
from modernbert.model.heads import Classifier, MaskedLM
from modernbert.serving import schemas, work
from modernbert.serving.service import Service, json_response, listed
from modernbert.tasks.task import find_task
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["add_answers"]

_MOST_GUESSES = 2**17
# Each of these scores is returned with its label.
_MOST_SCORES = 2**20


def add_answers(app: FastAPI, service: Service) -> None:
    """Add what a model answers, whatever it was tuned for; what it was not tuned for is refused."""
    bert = service.bert

    @app.post("/rerank")
    async def rerank(http: Request, body: schemas.RerankIn) -> list[dict[str, Any]]:
        scores = await service.rank(http, body.query, body.texts, bool(body.truncate), body.raw_scores)
        order = sorted(range(len(scores)), key=lambda n: -scores[n])
        text = (lambda n: {"text": body.texts[n]}) if body.return_text else lambda n: {}
        return [{"index": n, "score": scores[n], **text(n)} for n in order]

    @app.post("/v1/rerank")
    async def cohere(http: Request, body: schemas.RerankV1In) -> dict[str, Any]:
        scores = await service.rank(http, body.query, body.documents, body.truncate, False)
        order = sorted(range(len(scores)), key=lambda n: -scores[n])[: body.top_n]
        text = (lambda n: {"document": {"text": body.documents[n]}}) if body.return_documents else lambda n: {}
        results = [{"index": n, "relevance_score": scores[n], **text(n)} for n in order]
        return {"model": body.model or service.settings.model_id, "results": results}

    @app.post("/predict")
    async def predict(http: Request, body: schemas.PredictIn) -> Any:
        model = service.classifier()
        batched = not isinstance(body.inputs, str) and bool(body.inputs) and isinstance(body.inputs[0], list)
        if body.inputs == []:
            return []
        rows: list[Any] = list(body.inputs) if batched else [body.inputs]
        texts = [[row] if isinstance(row, str) else list(row) for row in rows]
        if any(len(text) not in (1, 2) for text in texts) or len({len(text) for text in texts}) > 1:
            raise InputError("inputs: expected texts, or pairs of texts, one kind of them")
        if model.reads_pairs and len(texts[0]) == 1:
            raise InputError("inputs: found single texts, expected pairs: this model was trained on pairs of texts")
        found = await _predicted(http, service, model, texts, bool(body.truncate), body.raw_scores)
        return await json_response(lambda: _each_written(found, batched), len(texts) * len(model.labels))

    # Clients of the hub ask at the root, for what the model is for.
    if isinstance(bert.model, Classifier):
        answer: Any = rerank if find_task(bert.model.task).answers == "ranking" else predict
        app.add_api_route("/", answer, methods=["POST"], include_in_schema=False)

    @app.post("/fill-mask")
    async def fill_mask(http: Request, body: schemas.FillMaskIn) -> Any:
        model = bert.model
        if not isinstance(model, MaskedLM):
            raise InputError("this model has no masked-LM head")
        texts = listed(body.inputs)
        top_k = (body.parameters and body.parameters.top_k) or body.top_k

        def make() -> list[np.ndarray]:
            documents = work.documents_of(bert, texts, False, "a text to fill is not cut")
            for number, ids in enumerate(documents):
                if bert.tokenizer.mask_id not in ids:
                    mask = bert.tokenizer.text_of(bert.tokenizer.mask_id)
                    raise InputError(f"text {number}: has no {mask}, expected at least one")
            guesses = top_k * sum(int((ids == bert.tokenizer.mask_id).sum()) for ids in documents)
            if guesses > _MOST_GUESSES:
                raise InputError(f"found {guesses:,} guesses to make, expected at most {_MOST_GUESSES:,} at once")
            return documents

        found = await service.compute(http, make, work.decoded(bert, model, min(top_k, bert.tokenizer.vocab_size)))
        answers = (_guesses(bert.tokenizer, *of_text) for of_text in found)
        batched = not isinstance(body.inputs, str)
        return await json_response(lambda: _each_written(answers, batched), sum(of[0].size for of in found))


def _each_written(answers: Iterable[Any], batched: bool) -> Any:
    """Return the answers of texts as JSON, or that of a single one; no more than one is held as Python objects."""
    found = [orjson.Fragment(orjson.dumps(answer)) for answer in answers]
    return found if batched else found[0]


def _guesses(tokenizer: Tokenizer, tokens: np.ndarray, shares: np.ndarray) -> list[Any]:
    """Return what stands behind each mask of a text [masks, k]; of one, without a list around it, as the hub does."""
    found = [
        [
            {"token": token, "token_str": tokenizer.text_of(token), "score": share}
            for token, share in zip(of_mask, its_shares, strict=True)
        ]
        for of_mask, its_shares in zip(tokens.tolist(), shares.tolist(), strict=True)
    ]
    return found[0] if len(found) == 1 else found


async def _predicted(
    http: Request, service: Service, model: Classifier, texts: list[list[str]], truncate: bool, raw: bool
) -> Iterator[list[dict[str, Any]]]:
    """Yield of each text its labels and their probabilities, or the spans a tagger finds."""
    bert = service.bert
    singles = [text[0] for text in texts]
    if model.task == "tag":
        if len(texts[0]) == 2:
            raise InputError("inputs: found pairs, expected single texts: this model is a tagger")
        found: list[Any] = []

        def tagged() -> list[np.ndarray]:
            how = "truncate" if truncate else "error"
            found.extend(tag_documents(bert.tokenizer, singles, bert.longest, how))
            return [laid.tokens for _, laid in found]

        rows = await service.compute(http, tagged, work.scored(model))
        spans = [
            spans_of_best(model.labels, text, words, best[laid.label_positions], shares[laid.label_positions])
            for text, (words, laid), (best, shares) in zip(singles, found, rows, strict=True)
        ]
        # The last two are what clients of the hub call a label and a text.
        return (
            [asdict(span) | {"entity_group": span.label, "word": span.text} for span in of_text] for of_text in spans
        )

    def documents() -> list[np.ndarray]:
        if len(texts[0]) == 1:
            return work.documents_of(bert, list(singles), truncate)
        return work.pairs_of(bert, [(text[0], text[1]) for text in texts], truncate)

    num_scores = len(texts) * len(model.labels)
    if num_scores > _MOST_SCORES:
        raise InputError(
            f"found {len(texts):,} texts with scores of {len(model.labels):,} labels each, expected at most "
            f"{_MOST_SCORES:,} scores at once"
        )
    scores = torch.from_numpy(np.stack(await service.compute(http, documents, work.scored(model))))
    return (
        [{"label": label, "score": score} for label, score in named(model, row[None], raw=raw)[0].items()]
        for row in scores
    )
