"""The FastAPI application: routes, error responses, health checks and metrics."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.routing import Route

from modernbert.errors import InputError
from modernbert.inference.modernbert import ModernBert
from modernbert.serving import schemas
from modernbert.serving.answer_routes import add_answers
from modernbert.serving.api_page import add_docs
from modernbert.serving.playground import add_page, facts_of
from modernbert.serving.request_guard import Metrics, RequestGuard, refusal_of
from modernbert.serving.scheduler import Busy, Gone, Scheduler
from modernbert.serving.schemas import described
from modernbert.serving.service import ServeSettings, Service
from modernbert.serving.vector_routes import add_vectors

__all__ = ["ServeSettings", "make_app"]

_OF_A_KIND = re.compile(r"^(str|int|list|function-|constrained)|\[")
# Each token is returned with its name and place.
_MAX_TOKENS = 2**17


def make_app(bert: ModernBert, scheduler: Scheduler, settings: ServeSettings) -> FastAPI:
    """Return the application; it is ready once it has computed a batch of the full budget.

    `app.state.close()` makes it refuse new requests and finish those it has accepted.
    """
    service = Service(bert, scheduler, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if settings.warm_up:
            await run_in_threadpool(service.warm_up)
        service.is_ready = True
        yield
        close()
        await run_in_threadpool(scheduler.close)

    def close() -> None:
        service.is_ready, service.is_closing = False, True

    app = FastAPI(
        title=f"modernbert: {settings.model_id}", version=version("modernbert"), lifespan=lifespan, docs_url=None,
        redoc_url=None, responses=schemas.REFUSALS,
        description="Routes of text-embeddings-inference, OpenAI and Cohere. Unknown fields are ignored.",
    )  # fmt: skip
    metrics = Metrics(scheduler)
    app.state.close = close
    paths: set[str] = set()
    app.add_middleware(
        RequestGuard,
        limits=settings.limits,
        scheduler=scheduler,
        metrics=metrics,
        is_closing=lambda: service.is_closing,
        paths=paths,
    )
    _add_errors(app)
    add_vectors(app, service)
    add_answers(app, service)
    _add_tokens(app, service)
    _add_state(app, service, metrics)
    add_page(app)
    add_docs(app)
    # No path has parameters.
    paths.update(route.path for route in app.routes if isinstance(route, Route))
    return app


def _add_errors(app: FastAPI) -> None:
    def response(
        http: Request, status: int, kind: str, text: str, headers: dict[str, str] | None = None
    ) -> JSONResponse:
        return JSONResponse(refusal_of(http.url.path, status, kind, text), status, headers)

    @app.exception_handler(HTTPException)
    async def refused(http: Request, error: HTTPException) -> JSONResponse:
        return response(http, error.status_code, "Validation", error.detail, dict(error.headers or {}))

    @app.exception_handler(InputError)
    async def wrong(http: Request, error: InputError) -> JSONResponse:
        return response(http, 422, "Validation", str(error))

    @app.exception_handler(RequestValidationError)
    async def unreadable(http: Request, error: RequestValidationError) -> JSONResponse:
        # Of a union's alternatives, the one that was validated furthest has the most useful error.
        first = max(error.errors(), key=lambda each: (each["type"] == "too_long", len(each["loc"])))
        if first["type"] == "json_invalid":
            return response(
                http, 400, "Validation", f"the body is not JSON: {first['ctx']['error']} at {first['loc'][-1]}"
            )
        # The location in a union also names the alternative, which users do not know.
        place = ".".join(str(part) for part in first["loc"][1:] if not _OF_A_KIND.search(str(part)))
        kind = http.headers.get("content-type", "")
        hint = "" if place or "json" in kind else "; expected the header content-type: application/json"
        text = f"{place or 'body'}: {first['msg']}{hint}".encode("ascii", "replace").decode()
        return response(http, 422, "Validation", text)

    @app.exception_handler(Busy)
    async def busy(http: Request, error: Busy) -> JSONResponse:
        return response(http, 429, "Overloaded", str(error), {"Retry-After": str(error.retry_after_s)})

    @app.exception_handler(Gone)
    async def gone(http: Request, error: Gone) -> JSONResponse:
        return response(http, 503, "Unhealthy", str(error))

    @app.exception_handler(ArithmeticError)
    @app.exception_handler(RuntimeError)
    async def failed(http: Request, error: Exception) -> JSONResponse:
        return response(http, 424, "Backend", f"the model failed ({type(error).__name__})")

    @app.exception_handler(Exception)
    async def broken(http: Request, error: Exception) -> JSONResponse:
        return response(http, 500, "Backend", f"this should not have happened ({type(error).__name__})")


def _add_tokens(app: FastAPI, service: Service) -> None:
    tokenizer = service.bert.tokenizer

    tokens = [[{"id": 42, "special": False, "start": 0, "stop": 1, "text": "I"}]]

    @app.post("/tokenize", **described("Tokens", "Tokenize texts", "The tokens of each text.", tokens))
    async def tokenize(body: schemas.TokenizeIn) -> Response:
        """Return the tokens of each text with their ids and character ranges; special tokens have no range."""
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs

        def located() -> bytes:
            rows, left = [], _MAX_TOKENS
            for text in texts:
                found = tokenizer.encode_with_offsets(text, special=body.add_special_tokens)
                left -= len(found)
                if left < 0:
                    raise InputError(f"inputs: found more than {_MAX_TOKENS:,} tokens, expected fewer at once")
                rows.append([
                    {
                        "id": token, "special": place is None, "start": place and place[0], "stop": place and place[1],
                        "text": text[place[0] : place[1]] if place else tokenizer.id_to_token(token),
                    }
                    for token, place in found
                ])  # fmt: skip
            return orjson.dumps(rows)

        return Response(await run_in_threadpool(located), media_type="application/json")

    @app.post(
        "/decode", **described("Tokens", "Decode token ids", "A text for each array of ids.", ["I forgot my password."])
    )
    async def decode(body: schemas.DecodeIn) -> list[str]:
        """Return the text of token ids."""
        rows: list[Any] = body.ids if body.ids and isinstance(body.ids[0], list) else [body.ids]

        def texts() -> list[str]:
            for ids in rows:
                if any(token >= tokenizer.vocab_size for token in ids):
                    raise InputError(f"ids: found one outside of 0 to {tokenizer.vocab_size - 1}")
            return [tokenizer.decode(ids, special=not body.skip_special_tokens) for ids in rows]

        return await run_in_threadpool(texts)


def _add_state(app: FastAPI, service: Service, metrics: Metrics) -> None:
    bert, limits = service.bert, service.settings.limits

    @app.head("/health", include_in_schema=False)
    @app.head("/ping", include_in_schema=False)
    @app.get(
        "/health", response_class=Response, **described("Server", "Check that the server runs", "The server runs.")
    )
    @app.get("/ping", response_class=Response, **described("Server", "Check that the server runs", "The server runs."))
    async def health() -> Response:
        """Return 200 while the scheduler runs, else 503."""
        if not service.scheduler.is_alive:
            return Response(status_code=503)
        return Response(status_code=200)

    @app.head("/ready", include_in_schema=False)
    @app.get(
        "/ready",
        response_class=Response,
        **described("Server", "Check that the server is ready", "The server is ready."),
    )
    async def ready() -> Response:
        """Return 200 if the server answers; 503 before its first batch and while it closes."""
        return Response(status_code=200 if service.is_ready and service.scheduler.is_alive else 503)

    @app.get("/info", **described("Server", "Show the model and the limits", "The model, and the limits of requests."))
    async def info() -> dict[str, Any]:
        """Return the served model and the limits of requests."""
        kind: dict[str, Any] = {"embedding": {"pooling": bert.vectors.pooling}}
        if bert.answers == "ranking":
            kind = {"reranker": {}}
        elif bert.model.is_classifier:
            names = {str(number): name for number, name in enumerate(bert.model.labels)}
            kind = {"classifier": {"id2label": names, "task": bert.model.task}}
        return {
            "model_id": service.settings.model_id, "model_dtype": bert.dtype, "model_type": kind,
            "max_input_length": bert.max_length, "max_batch_tokens": service.scheduler.budget_tokens,
            "max_concurrent_requests": limits.max_requests, "auto_truncate": False, "version": version("modernbert"),
            **facts_of(bert),
        }  # fmt: skip

    @app.get(
        "/metrics",
        response_class=PlainTextResponse,
        **described("Server", "Show metrics", "Metrics in the text format of Prometheus."),
    )
    async def prometheus() -> Response:
        """Return the metrics in Prometheus's text format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)
