"""`modernbert serve`: an HTTP server for a model, until SIGTERM or an interrupt."""

import asyncio
import gc
import os
import socket
import sys

from modernbert.errors import InputError
from modernbert.extras import require
from modernbert.inference.modernbert import ModernBert
from modernbert.serving.serve_options import ServeConfig

__all__ = ["ServeConfig", "run"]

_CLOSING_S = 0.3
# The scheduler's thread takes the interpreter lock after every kernel. By default, the thread of the connections may
# keep the lock for five milliseconds.
_SWITCH_S = 0.0002


def run(config: ServeConfig) -> None:
    """Serve until SIGTERM or an interrupt, then finish the accepted requests.

    Raises:
        InputError: The model cannot be loaded, the address is in use, or a library is missing.
    """
    require("serve", "fastapi", "starlette", "uvicorn", "prometheus_client", "orjson", "swagger_ui_bundle")
    import uvicorn

    from modernbert.serving.app import ServeSettings, make_app
    from modernbert.serving.request_guard import Limits
    from modernbert.serving.scheduler import Scheduler

    # An empty variable is an error: a secret that was not set would open the server.
    api_key = os.environ.get("MODERNBERT_API_KEY") if config.api_key is None else config.api_key
    if api_key == "":
        raise InputError("api_key: is empty, expected a key; leave it out for a server without one")
    if not config.host:
        raise InputError("host: is empty, expected an address (0.0.0.0: all network interfaces)")
    sys.setswitchinterval(_SWITCH_S)
    listener = _listen(config.host, config.port)
    bert = ModernBert.load(
        config.model, revision=config.revision, device=config.device, dtype=config.dtype, engine=config.engine
    )
    scheduler = Scheduler(
        bert, config.batch_tokens, config.queue_tokens, wait_s=config.max_wait, batch_s=config.batch_seconds
    )
    limits = Limits(config.max_requests, config.max_bytes, config.timeout, api_key)
    app = make_app(bert, scheduler, ServeSettings(config.model, limits))
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.should_exit:
                return
            print(f"{config.model}: {address}, API documentation at {address}/docs", file=sys.stderr, flush=True)
            # The loaded objects stay, and a collection over them would pause the server for 0.2 s.
            gc.collect()
            gc.freeze()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # Clients that are connected get a refusal, before the socket closes.
            app.state.close()
            await asyncio.sleep(_CLOSING_S)
            await super().shutdown(sockets)

    settings = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=round(config.timeout)
    )
    try:
        Server(settings).run([listener])
    finally:
        gc.unfreeze()


def _listen(host: str, port: int) -> socket.socket:
    """Bind the address before the model is loaded, which may take a while."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns on TCP_NODELAY only if the protocol is given.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # A second server that is loading finds the address in use only while a socket listens.
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise InputError(
            f"host, port: cannot listen at {host}:{port} ({error.strerror or error}); `port=0` takes a free port"
        ) from None
    return listener
