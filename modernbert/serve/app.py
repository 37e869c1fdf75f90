"""The application: its routes, its refusals, and what it says of itself.

In: HTTP. Out: HTTP. Texts are tokenised off the event loop; a client who leaves is not computed for any more.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from modernbert.errors import InputError
from modernbert.infer.pipeline import ModernBert
from modernbert.model.heads import Classifier
from modernbert.serve import schemas
from modernbert.serve.answers import add_answers
from modernbert.serve.engine import Busy, Engine, Gone
from modernbert.serve.guard import Guard, Meters, refusal_of
from modernbert.serve.page import add_page, facts_of
from modernbert.serve.service import ServeSettings, Service
from modernbert.serve.vectors import add_vectors

__all__ = ["ServeSettings", "make_app"]


def make_app(bert: ModernBert, engine: Engine, settings: ServeSettings) -> FastAPI:
    """Return the application; it is ready once a batch of the full budget has been computed.

    `app.state.close()` has it refuse what comes, and answer what it has taken.
    """
    service = Service(bert, engine, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if settings.warm_up:
            await run_in_threadpool(service.warm_up)
        service.is_ready = True
        yield
        close()
        await run_in_threadpool(engine.close)

    def close() -> None:
        service.is_ready, service.is_closing = False, True

    app = FastAPI(title="modernbert", lifespan=lifespan, docs_url="/docs", redoc_url=None, responses=schemas.REFUSALS)
    meters = Meters(engine)
    app.state.close = close
    app.add_middleware(Guard, limits=settings.limits, meters=meters, is_closing=lambda: service.is_closing)
    _add_errors(app)
    add_vectors(app, service)
    add_answers(app, service)
    _add_tokens(app, service)
    _add_state(app, service, meters)
    add_page(app)
    return app


def _add_errors(app: FastAPI) -> None:
    def told(status: int, kind: str, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse(refusal_of(status, kind, text), status, headers)

    @app.exception_handler(HTTPException)
    async def refused(http: Request, error: HTTPException) -> JSONResponse:
        return told(error.status_code, "Validation", error.detail, dict(error.headers or {}))

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


def _add_tokens(app: FastAPI, service: Service) -> None:
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


def _add_state(app: FastAPI, service: Service, meters: Meters) -> None:
    bert, limits = service.bert, service.settings.limits

    @app.get("/health", response_class=Response)
    @app.get("/ping", response_class=Response)
    async def health() -> Response:
        if not service.engine.is_alive:
            return Response(status_code=503)
        return Response(status_code=200)

    @app.get("/ready", response_class=Response)
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
            **facts_of(bert),
        }  # fmt: skip

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(generate_latest(meters.registry), media_type=CONTENT_TYPE_LATEST)
