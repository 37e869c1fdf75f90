"""ASGI middleware for every request: API key, size and time limits, metrics and the request log.

It is plain ASGI, because a body that is too large must be refused before it is read.
"""

import asyncio
import json
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from modernbert.serving.scheduler import Busy, Request, Scheduler

__all__ = ["Limits", "Metrics", "RequestGuard", "refusal_of"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Health checks come from monitors without a key.
_OPEN = ("/health", "/ping", "/ready")
# Answered under any load, since it shows the load.
_UNCOUNTED = ("/metrics",)
# Routes that only tokenize and do not wait for the scheduler.
_NOT_COMPUTED = ("/tokenize", "/decode")
# More than most tokens have, so that the tokens of a request are not overestimated.
_BYTES_PER_TOKEN = 8
# A browser cannot send a key when it opens a page; the page asks for the key.
_PAGE = ("/", "/page.css", "/page.js")


@dataclass(frozen=True)
class Limits:
    """Limits of a server: concurrent requests, bytes of a body, seconds of a request; and its API key, if any."""

    max_requests: int = 512
    max_bytes: int = 8_000_000
    timeout_s: float = 120.0
    api_key: str | None = None
    log: bool = True


class Metrics:
    """Counters and gauges for Prometheus."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.registry = CollectorRegistry()
        labels = ("path", "status")
        self.requests = Counter("modernbert_requests", "Requests answered.", labels, registry=self.registry)
        self.seconds = Histogram(
            "modernbert_request_seconds", "Seconds of a request.", ("path",), registry=self.registry
        )
        self.queued = Histogram("modernbert_queue_seconds", "Seconds before the first batch.", registry=self.registry)
        self.tokens = Counter("modernbert_tokens", "Tokens of requests answered.", registry=self.registry)
        for name, text, read in (
            ("modernbert_queue_tokens", "Tokens that wait.", lambda: scheduler.queued_tokens),
            ("modernbert_batch_tokens", "Tokens of the last batch.", lambda: scheduler.last_batch_tokens),
            ("modernbert_tokens_per_second", "Speed of the last batches.", lambda: scheduler.tokens_per_s),
        ):
            Gauge(name, text, registry=self.registry).set_function(read)


class _Refusal(NamedTuple):
    """Why a request is refused, and when to try again, if that is known."""

    status: int
    kind: str
    text: str
    retry_after_s: int | None = None


class _Broken(Exception):
    """The rest of a body is not read."""


class RequestGuard:
    """Refuse requests without the key, over a limit, or over capacity; count and log all of them."""

    def __init__(
        self,
        app: Any,
        limits: Limits,
        scheduler: Scheduler,
        metrics: Metrics,
        is_closing: Callable[[], bool],
        paths: Collection[str],
    ) -> None:
        self.app, self.limits, self.scheduler, self.metrics = app, limits, scheduler, metrics
        self.is_closing, self.paths = is_closing, paths
        self.running = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it to the application."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = time.monotonic()
        headers = {name.lower(): value for name, value in scope["headers"]}
        status = 0
        # Why the body is not read further; the answer of the routes to half a body is dropped.
        broken: list[_Refusal] = []

        async def sent(message: Message) -> None:
            nonlocal status
            if broken and not status:
                return
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *_timings(scope, started)]
            await send(message)

        refusal = self._refusal(scope["method"], scope["path"], headers)
        try:
            if refusal is not None:
                return await _refuse(scope, sent, refusal)
            self.running += 1
            try:
                await self.app(scope, self._bounded(receive, started, broken), sent)
            except _Broken:
                pass
            finally:
                self.running -= 1
            if broken and not status:
                refusal = broken.pop()
                await _refuse(scope, sent, refusal)
        except Exception:
            status = 500  # Starlette sends it after this
            raise
        finally:
            self._note(scope, status, started)

    def _refusal(self, method: str, path: str, headers: dict[bytes, bytes]) -> _Refusal | None:
        limits = self.limits
        if path in _OPEN or (path in _PAGE and method in ("GET", "HEAD")):
            return None
        if self.is_closing():
            return _Refusal(503, "Unhealthy", "the server is closing")
        if limits.api_key is not None:
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            given = key if scheme.lower() == b"bearer" else scheme
            if not secrets.compare_digest(given, limits.api_key.encode()):
                found = "another key" if given else "no key"
                return _Refusal(401, "Unauthorized", f"found {found}, expected the header Authorization: Bearer KEY")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > limits.max_bytes:
            return _Refusal(413, "Payload", f"the body has more than {limits.max_bytes:,} bytes")
        if self.running >= limits.max_requests and path not in _UNCOUNTED:
            text = f"{self.running} requests are being answered, try again in 1 s"
            return _Refusal(429, "Overloaded", text, 1)
        if method == "POST" and path in self.paths and path not in _NOT_COMPUTED:
            try:
                self.scheduler.check_capacity(int(length) // _BYTES_PER_TOKEN)
            except Busy as busy:
                return _Refusal(429, "Overloaded", str(busy), busy.retry_after_s)
        return None

    def _bounded(self, receive: Receive, started: float, broken: list[_Refusal]) -> Receive:
        """Count the bytes of a body as they arrive, and wait for them within the time limit of the request."""
        num_bytes = 0
        whole = False

        async def received() -> Message:
            nonlocal num_bytes, whole
            if whole:  # after the body, the only message is that the client has left
                return await receive()
            left = self.limits.timeout_s - (time.monotonic() - started)
            try:
                async with asyncio.timeout(max(0.0, left)):
                    message = await receive()
            except TimeoutError:
                broken.append(_Refusal(408, "Timeout", "the body came too slowly"))
                raise _Broken from None
            if message["type"] == "http.request":
                num_bytes += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if num_bytes > self.limits.max_bytes:
                    broken.append(_Refusal(413, "Payload", f"the body has more than {self.limits.max_bytes:,} bytes"))
                    raise _Broken
            return message

        return received

    def _note(self, scope: MutableMapping[str, Any], status: int, started: float) -> None:
        seconds = time.monotonic() - started
        # Unknown paths are counted as one: each label takes memory.
        path = scope["path"] if scope["path"] in self.paths else "other"
        self.metrics.requests.labels(path, str(status)).inc()
        self.metrics.seconds.labels(path).observe(seconds)
        request: Request | None = scope.get("modernbert.request")
        num_tokens = request.num_tokens if request is not None else 0
        if request is not None and status == 200:
            self.metrics.queued.observe(request.queued_s)
            self.metrics.tokens.inc(num_tokens)
        if self.limits.log:
            row = {
                "time": round(time.time(), 3), "method": scope["method"], "path": scope["path"][:200], "status": status,
                "seconds": round(seconds, 4), "tokens": num_tokens,
            }  # fmt: skip
            print(json.dumps(row), file=sys.stderr, flush=True)


def _timings(scope: MutableMapping[str, Any], started: float) -> list[tuple[bytes, bytes]]:
    """Return milliseconds and tokens as the headers of text-embeddings-inference."""
    found = {"x-total-time": round(1000 * (time.monotonic() - started))}
    request: Request | None = scope.get("modernbert.request")
    if request is not None:
        found |= {
            "x-queue-time": round(1000 * request.queued_s), "x-inference-time": round(1000 * request.computed_s),
            "x-compute-tokens": request.num_tokens,
        }  # fmt: skip
    return [(name.encode(), str(value).encode()) for name, value in found.items()]


def refusal_of(path: str, status: int, kind: str, text: str) -> dict[str, Any]:
    """Return the body of a refusal, in the form that clients of the path expect."""
    error = {"message": text, "type": kind, "code": status} if path.startswith("/v1/") else text
    return {"error": error, "error_type": kind, "message": text, "code": status}


async def _refuse(scope: MutableMapping[str, Any], send: Send, refusal: _Refusal) -> None:
    status, kind, text, retry_after_s = refusal
    body = json.dumps(refusal_of(scope["path"], status, kind, text)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if retry_after_s is not None:
        headers.append((b"retry-after", str(retry_after_s).encode()))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
