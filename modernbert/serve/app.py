"""The routes: those of text-embeddings-inference, OpenAI's embeddings and Cohere's rerank, on one engine.

In: HTTP. Out: HTTP. Texts are tokenised off the event loop; a client who leaves is not computed for any more.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool

from modernbert.errors import InputError
from modernbert.infer.answers import named, spans_of_scores, tag_documents
from modernbert.infer.pipeline import ModernBert
from modernbert.model.heads import Classifier, MaskedLM
from modernbert.serve import schemas, work
from modernbert.serve.engine import Busy, Engine, Finish, Gone
from modernbert.serve.guard import Guard, Limits, Meters, refusal_of

__all__ = ["ServeSettings", "make_app"]


@dataclass(frozen=True)
class ServeSettings:
    """What a server is called, and what it takes."""

    model_id: str
    limits: Limits
    warm_up: bool = True


def make_app(bert: ModernBert, engine: Engine, settings: ServeSettings) -> FastAPI:
    """Return the application; it is ready once a batch of the full budget has been computed."""
    service = _Service(bert, engine, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if settings.warm_up:
            await run_in_threadpool(service.warm_up)
        service.is_ready = True
        yield
        service.is_ready = False
        await run_in_threadpool(engine.close)

    app = FastAPI(title="modernbert", lifespan=lifespan, docs_url="/docs", redoc_url=None)
    meters = Meters(engine)
    app.add_middleware(Guard, limits=settings.limits, meters=meters)
    _add_errors(app)
    _add_vectors(app, service)
    _add_answers(app, service)
    _add_tokens(app, service)
    _add_state(app, service, meters)
    return app


class _Service:
    """The engine and the model behind the routes."""

    def __init__(self, bert: ModernBert, engine: Engine, settings: ServeSettings) -> None:
        self.bert, self.engine, self.settings = bert, engine, settings
        self.is_ready = False

    def warm_up(self) -> None:
        """Compute a full batch, so that what does not fit fails before there is a client."""
        length = min(self.engine.budget_tokens, self.bert.longest)
        ids = np.full(length, self.bert.tokenizer.ordinary_ids[0], dtype=np.int64)
        self.engine.submit([ids], work.pooled(self.bert, "mean", True, None)).future.result()

    async def compute(self, http: Request, make: Callable[[], Sequence[np.ndarray]], finish: Finish) -> list[Any]:
        """Tokenise, wait for the engine, and return the answers; whoever leaves or waits too long is dropped."""
        documents = await run_in_threadpool(make)
        job = self.engine.submit(documents, finish)
        http.scope["modernbert.job"] = job
        future = asyncio.wrap_future(job.future)
        leaving = asyncio.ensure_future(_left(http))
        waiting: set[asyncio.Future[Any]] = {future, leaving}
        try:
            done, _ = await asyncio.wait(
                waiting, timeout=self.settings.limits.timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if future not in done:
                raise Gone("the client has left" if leaving in done else "took too long")
            return future.result()
        finally:
            leaving.cancel()
            if not future.done():
                job.cancel()

    def prompt(self, name: str | None) -> str:
        """Return the text that a prompt's name stands for."""
        prompts = {"query": self.bert.vectors.query_prompt, "document": self.bert.vectors.document_prompt}
        prompts["passage"] = prompts["document"]
        if name is not None and name not in prompts:
            raise InputError(f"prompt_name: found {name!r}, expected {', '.join(prompts)}")
        return prompts[name] if name else ""

    def finish_vectors(self, normalize: bool, dimensions: int | None) -> Finish:
        """Return what makes vectors as the model was tuned."""
        bert = self.bert
        if dimensions is not None and dimensions > bert.vector_width:
            raise InputError(f"dimensions: found {dimensions}, expected 1 to {bert.vector_width}")
        return work.pooled(bert, "mean" if bert.is_late else bert.vectors.pooling, normalize, dimensions)

    def classifier(self) -> Classifier:
        """Return the model if it has labels."""
        if not isinstance(self.bert.model, Classifier):
            raise InputError("this model has no head with labels")
        return self.bert.model

    async def rank(self, http: Request, query: str, texts: list[str], truncate: bool, raw: bool) -> list[float]:
        """Return how well each text answers a query: by the pair, or by vectors."""
        model = self.bert.model
        if isinstance(model, Classifier) and model.task == "rerank":
            pairs = [(query, text) for text in texts]
            made = await self.compute(
                http, lambda: work.pairs_of(self.bert, pairs, truncate), work.scored(model)
            )  # fmt: skip
            scores = np.array([float(each[0]) for each in made])
            return (scores if raw else 1 / (1 + np.exp(-scores))).tolist()
        return await self.compare(http, query, texts, truncate)

    async def compare(self, http: Request, source: str, texts: list[str], truncate: bool) -> list[float]:
        """Return the cosine of a text with others, or MaxSim of a late-interaction model."""
        bert = self.bert

        def documents() -> list[np.ndarray]:
            query = work.documents_of(bert, [source], bert.vectors.query_prompt, truncate)
            return query + work.documents_of(bert, texts, bert.vectors.document_prompt, truncate)

        finish = work.token_vectors(bert, True) if bert.is_late else self.finish_vectors(True, None)
        query, *others = await self.compute(http, documents, finish)
        if bert.is_late:
            return [float((query @ other.T).max(axis=1).sum()) for other in others]
        return [float(query @ other) for other in others]


async def _left(http: Request) -> None:
    while not await http.is_disconnected():
        await asyncio.sleep(0.2)


def _listed(inputs: Any) -> list[work.Text]:
    """Return one input or several as a list."""
    if isinstance(inputs, str) or (inputs and isinstance(inputs[0], int)):
        return [inputs]
    return list(inputs)


def _add_errors(app: FastAPI) -> None:
    def told(status: int, kind: str, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse(refusal_of(status, kind, text), status, headers)

    @app.exception_handler(InputError)
    async def wrong(http: Request, error: InputError) -> JSONResponse:
        return told(422, "Validation", str(error))

    @app.exception_handler(RequestValidationError)
    async def unreadable(http: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        return told(422, "Validation", f"{place or 'body'}: {first['msg']}".encode("ascii", "replace").decode())

    @app.exception_handler(Busy)
    async def busy(http: Request, error: Busy) -> JSONResponse:
        return told(429, "Overloaded", str(error), {"Retry-After": str(error.retry_after_s)})

    @app.exception_handler(Gone)
    async def gone(http: Request, error: Gone) -> JSONResponse:
        return told(503, "Unhealthy", str(error))

    @app.exception_handler(ArithmeticError)
    @app.exception_handler(RuntimeError)
    async def failed(http: Request, error: Exception) -> JSONResponse:
        return told(424, "Backend", f"the model failed ({type(error).__name__})")


def _add_vectors(app: FastAPI, service: _Service) -> None:
    # Answers of many numbers are written as they are: to check each against a schema takes as long as to compute it.
    bert = service.bert

    @app.post("/embed")
    async def embed(http: Request, body: schemas.EmbedIn) -> Response:
        prompt = service.prompt(body.prompt_name)
        found = await service.compute(
            http, lambda: work.documents_of(bert, _listed(body.inputs), prompt, bool(body.truncate)),
            service.finish_vectors(body.normalize, body.dimensions),
        )  # fmt: skip
        return JSONResponse([vector.tolist() for vector in found])

    if not isinstance(bert.model, Classifier):
        app.add_api_route("/", embed, methods=["POST"], include_in_schema=False)

    @app.post("/embed_all")
    @app.post("/embed_multi")
    async def embed_all(http: Request, body: schemas.EmbedIn) -> Response:
        prompt = service.prompt(body.prompt_name)
        found = await service.compute(
            http, lambda: work.documents_of(bert, _listed(body.inputs), prompt, bool(body.truncate)),
            work.token_vectors(bert, body.normalize and bert.is_late),
        )  # fmt: skip
        return JSONResponse([vectors.tolist() for vectors in found])

    @app.post("/v1/embeddings")
    @app.post("/embeddings")
    async def openai(http: Request, body: schemas.OpenAIIn) -> Response:
        documents: list[np.ndarray] = []

        def make() -> list[np.ndarray]:
            documents.extend(work.documents_of(bert, _listed(body.input), "", False))
            return documents

        found = await service.compute(http, make, service.finish_vectors(True, body.dimensions))
        as_text = body.encoding_format == "base64"
        rows = [base64.b64encode(each.astype("<f4").tobytes()).decode() if as_text else each.tolist() for each in found]
        used = sum(map(len, documents))
        return JSONResponse({
            "object": "list", "model": body.model or service.settings.model_id,
            "data": [{"object": "embedding", "index": n, "embedding": row} for n, row in enumerate(rows)],
            "usage": {"prompt_tokens": used, "total_tokens": used},
        })  # fmt: skip

    @app.post("/similarity")
    async def similarity(http: Request, body: schemas.SimilarityIn) -> list[float]:
        return await service.compare(http, body.inputs.source_sentence, body.inputs.sentences, bool(body.truncate))


def _add_answers(app: FastAPI, service: _Service) -> None:
    bert = service.bert

    @app.post("/rerank")
    async def rerank(http: Request, body: schemas.RerankIn) -> list[dict[str, Any]]:
        scores = await service.rank(http, body.query, body.texts, bool(body.truncate), body.raw_scores)
        order = sorted(range(len(scores)), key=lambda n: -scores[n])
        text = (lambda n: {"text": body.texts[n]}) if body.return_text else lambda n: {}
        return [{"index": n, "score": scores[n], **text(n)} for n in order]

    @app.post("/v1/rerank")
    async def cohere(http: Request, body: schemas.RerankV1In) -> dict[str, Any]:
        scores = await service.rank(http, body.query, body.documents, False, False)
        order = sorted(range(len(scores)), key=lambda n: -scores[n])[: body.top_n]
        text = (lambda n: {"document": {"text": body.documents[n]}}) if body.return_documents else lambda n: {}
        results = [{"index": n, "relevance_score": scores[n], **text(n)} for n in order]
        return {"model": body.model or service.settings.model_id, "results": results}

    @app.post("/predict")
    async def predict(http: Request, body: schemas.PredictIn) -> Any:
        model = service.classifier()
        batched = not isinstance(body.inputs, str) and bool(body.inputs) and isinstance(body.inputs[0], list)
        if not body.inputs:
            return []
        rows: list[Any] = list(body.inputs) if batched else [body.inputs]
        texts = [[row] if isinstance(row, str) else list(row) for row in rows]
        if any(len(text) not in (1, 2) for text in texts) or len({len(text) for text in texts}) > 1:
            raise InputError("inputs: expected texts, or pairs of texts, one kind of them")
        found = await _predicted(http, service, model, texts, bool(body.truncate), body.raw_scores)
        return found if batched else found[0]

    # Clients of the hub ask at the root, for what the model is for.
    if isinstance(bert.model, Classifier):
        answer: Any = rerank if bert.model.task == "rerank" else predict
        app.add_api_route("/", answer, methods=["POST"], include_in_schema=False)

    @app.post("/fill-mask")
    async def fill_mask(http: Request, body: schemas.FillMaskIn) -> Any:
        model = bert.model
        if not isinstance(model, MaskedLM):
            raise InputError("this model has no masked-LM head")
        texts = _listed(body.inputs)

        def make() -> list[np.ndarray]:
            documents = work.documents_of(bert, texts, "", False)
            for number, ids in enumerate(documents):
                if bert.tokenizer.mask_id not in ids:
                    mask = bert.tokenizer.text_of(bert.tokenizer.mask_id)
                    raise InputError(f"text {number}: has no {mask}, expected at least one")
            return documents

        found = await service.compute(http, make, work.decoded(bert, model, min(body.top_k, bert.tokenizer.vocab_size)))
        answers = [
            [
                [
                    {"token": int(token), "token_str": bert.tokenizer.text_of(int(token)), "score": float(share)}
                    for token, share in zip(tokens, shares, strict=True)
                ]
                for tokens, shares in zip(*of_text, strict=True)
            ]
            for of_text in found
        ]
        return answers[0] if isinstance(body.inputs, str) else answers


async def _predicted(
    http: Request, service: _Service, model: Classifier, texts: list[list[str]], truncate: bool, raw: bool
) -> list[list[dict[str, Any]]]:
    """Return of each text its labels and their probabilities, or the spans a tagger finds."""
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
            spans_of_scores(model.labels, text, words, scores[laid.where])
            for text, (words, laid), scores in zip(singles, found, rows, strict=True)
        ]
        return [[asdict(span) for span in of_text] for of_text in spans]

    def documents() -> list[np.ndarray]:
        if len(texts[0]) == 1:
            return work.documents_of(bert, list(singles), "", truncate)
        return work.pairs_of(bert, [(text[0], text[1]) for text in texts], truncate)

    scores = torch.from_numpy(np.stack(await service.compute(http, documents, work.scored(model))))
    return [[{"label": label, "score": score} for label, score in row.items()] for row in named(model, scores, raw=raw)]


def _add_tokens(app: FastAPI, service: _Service) -> None:
    tokenizer = service.bert.tokenizer

    @app.post("/tokenize")
    async def tokenize(body: schemas.TokenizeIn) -> list[list[dict[str, Any]]]:
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs

        def located() -> list[list[dict[str, Any]]]:
            return [
                [
                    {
                        "id": token, "text": tokenizer.name_of(token) if place is None else text[place[0] : place[1]],
                        "special": place is None, "start": place and place[0], "stop": place and place[1],
                    }
                    for token, place in tokenizer.located(text, special=body.add_special_tokens)
                ]
                for text in texts
            ]  # fmt: skip

        return await run_in_threadpool(located)

    @app.post("/decode")
    async def decode(body: schemas.DecodeIn) -> list[str]:
        rows: list[Any] = body.ids if body.ids and isinstance(body.ids[0], list) else [body.ids]
        for ids in rows:
            if any(token >= tokenizer.vocab_size for token in ids):
                raise InputError(f"ids: found one outside of 0 to {tokenizer.vocab_size - 1}")
        return [tokenizer.decode(ids, special=not body.skip_special_tokens) for ids in rows]


def _add_state(app: FastAPI, service: _Service, meters: Meters) -> None:
    bert, limits = service.bert, service.settings.limits

    @app.get("/health")
    @app.get("/ping")
    async def health() -> Response:
        if not service.engine.is_alive:
            return Response(status_code=503)
        return Response(status_code=200)

    @app.get("/ready")
    async def ready() -> Response:
        return Response(status_code=200 if service.is_ready and service.engine.is_alive else 503)

    @app.get("/info")
    async def info() -> dict[str, Any]:
        task = bert.model.task if isinstance(bert.model, Classifier) else None
        kind: dict[str, Any] = {"embedding": {"pooling": bert.vectors.pooling}}
        if task == "rerank":
            kind = {"reranker": {}}
        elif isinstance(bert.model, Classifier):
            names = bert.model.labels
            kind = {"classifier": {"id2label": {str(n): name for n, name in enumerate(names)}, "task": task}}
        return {
            "model_id": service.settings.model_id, "model_dtype": str(next(bert.model.parameters()).dtype)[6:],
            "model_type": kind, "max_input_length": bert.longest, "max_batch_tokens": service.engine.budget_tokens,
            "max_concurrent_requests": limits.most_requests, "auto_truncate": False, "version": version("modernbert"),
        }  # fmt: skip

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(meters.registry), media_type=CONTENT_TYPE_LATEST)
