"""Malformed requests: none breaks the server or changes the vector of a text."""

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from modernbert import ModernBert

pytest.importorskip("fastapi")
import uvicorn  # noqa: E402

from modernbert.serving.app import ServeSettings, make_app  # noqa: E402
from modernbert.serving.request_guard import Limits  # noqa: E402
from modernbert.serving.scheduler import Scheduler  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
ROUTES = ("/embed", "/embed_all", "/v1/embeddings", "/similarity", "/rerank", "/v1/rerank", "/predict", "/tokenize",
          "/decode", "/fill-mask")  # fmt: skip
BODIES: tuple[bytes, ...] = (
    b"", b"null", b"[]", b"{}", b"3", b'"a"', b"{", b'{"inputs"', b'{"inputs": }', b"\xff\xfe\x00", b"\x00" * 50,
    b"[" * 5_000 + b"]" * 5_000, b'{"inputs":' * 500 + b"1" + b"}" * 500, b'{"inputs": NaN}', b'{"inputs": 1e999}',
    b'{"inputs": "\\ud800"}', b'{"inputs": ["\\udfff", "a"]}', b'{"inputs": null}', b'{"inputs": [null]}',
    b'{"inputs": [[]]}', b'{"inputs": []}', b'{"inputs": [1, "a"]}', b'{"inputs": [99999999999999999999]}',
    b'{"inputs": [-1]}', b'{"inputs": [[5, 511, 512]]}', b'{"inputs": {"source_sentence": "a", "sentences": []}}',
    b'{"inputs": {"source_sentence": "\\ud800", "sentences": ["a"]}}', b'{"inputs": "a", "dimensions": 0}',
    b'{"inputs": "a", "dimensions": -1}', b'{"inputs": "a", "dimensions": 1e9}', b'{"inputs": "a", "truncate": "yes"}',
    b'{"inputs": "a", "normalize": 7}', b'{"inputs": "a", "prompt_name": "' + b"x" * 5_000 + b'"}',
    b'{"input": "a", "encoding_format": "gzip"}', b'{"input": [[]]}', b'{"query": "", "texts": []}',
    b'{"query": "\\ud800", "texts": ["a"]}', b'{"query": "a", "documents": ["a"], "top_n": 0}',
    b'{"query": "a", "texts": [1]}', b'{"ids": [[1], 2]}', b'{"ids": [512]}', b'{"ids": []}',
    b'{"inputs": "[MASK]", "top_k": 0}', b'{"inputs": "[MASK]", "top_k": 101}', b'{"inputs": ["[MASK]", "none"]}',
    json.dumps({"inputs": ["a"] * 800}).encode(), json.dumps({"inputs": "word " * 5_000}).encode(),
    json.dumps({"inputs": "\u202e\u0000\ufffe\U0010ffff" * 20}).encode(), b'{"inputs": "a", "inputs": "b"}',
    b'{"__proto__": {"inputs": "a"}, "inputs": "a"}', b"inputs=a", b"<xml/>",
)  # fmt: skip


@pytest.fixture(scope="module")
def port(small_bert: ModernBert) -> Iterator[int]:
    """Serve on a local socket."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    scheduler = Scheduler(small_bert, budget_tokens=500)
    limits = Limits(max_bytes=200_000, timeout_s=4.0, log=False)
    server = uvicorn.Server(
        uvicorn.Config(make_app(small_bert, scheduler, ServeSettings("m", limits)), log_level="critical")
    )
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        assert thread.is_alive()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def sent(port: int, data: bytes, *, half_closed: bool = False) -> bytes:
    """Send bytes and return the response until the server closes or is done."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        line.sendall(data)
        if half_closed:
            line.shutdown(socket.SHUT_WR)
        found = b""
        while chunk := line.recv(1 << 16):
            found += chunk
    return found


def request(path: str, body: bytes, kind: str = "application/json") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {kind}\r\n"
    return head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def check_canary(port: int, bert: ModernBert) -> None:
    answer = sent(port, request("/embed", b'{"inputs": "a canary"}'))
    found = json.loads(answer.partition(b"\r\n\r\n")[2])
    np.testing.assert_allclose(found, bert.embed(["a canary"]), atol=1e-5)


@pytest.mark.parametrize("route", ROUTES)
def test_no_body_breaks_a_route(route: str, port: int, small_bert: ModernBert) -> None:
    def refuse(word: str) -> Any:
        raise AssertionError(f"found {word} in an answer")

    for body in BODIES:
        answer = sent(port, request(route, body))
        status = status_of(answer)
        assert status in (200, 400, 413, 422), (route, body[:60], status)
        content = answer.partition(b"\r\n\r\n")[2]
        json.loads(content, parse_constant=refuse)
    check_canary(port, small_bert)


@pytest.mark.parametrize(
    ("data", "half_closed", "expected"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", True, (b"", b"HTTP/1.1 400")),
        (b"GET / HTTP/9.9\r\n\r\n", True, (b"", b"HTTP/1.1 4")),
        (b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n{}", True, (b"", b"HTTP/1.1 4")),
        (b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n{", True, (b"HTTP/1.1 413",)),
        (b"POST /embed HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", True, (b"", b"HTTP/1.1 4")),
        # An incomplete body ends with the time limit of the request.
        (request("/embed", b'{"inputs": "a"}')[:-4], False, (b"HTTP/1.1 408",)),
        (b"DELETE /embed HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", False, (b"HTTP/1.1 405",)),
        (b"POST /" + b"x" * 5_000 + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", False, (b"HTTP/1.1 404",)),
        (request("/embed", b'{"inputs": "a"}', "text/plain"), False, (b"HTTP/1.1 4", b"HTTP/1.1 200")),
        (request("/../../etc/passwd", b"{}"), False, (b"HTTP/1.1 404",)),
    ],
)
def test_malformed_http_does_not_break_the_server(
    data: bytes, half_closed: bool, expected: tuple[bytes, ...], port: int, small_bert: ModernBert
) -> None:
    answer = sent(port, data, half_closed=half_closed)
    assert any(answer == each if not each else answer.startswith(each) for each in expected), answer[:80]
    check_canary(port, small_bert)


def test_clients_that_disconnect_leave_nothing_behind(port: int, small_bert: ModernBert) -> None:
    body = json.dumps({"inputs": ["word " * 100] * 30}).encode()
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port)) as line:
            line.sendall(request("/embed", body))
    for _ in range(200):
        if b"modernbert_queue_tokens 0.0" in sent(
            port, b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        ):
            break
    else:
        raise AssertionError("tokens of clients who left still wait")
    check_canary(port, small_bert)
