"""Options of the HTTP server."""

from dataclasses import KW_ONLY, dataclass
from typing import Annotated

from annotated_types import Ge, Le

from modernbert.common_options import Compute, ModelRevision

__all__ = ["ServeConfig"]


@dataclass(frozen=True)
class ServeConfig(ModelRevision, Compute):
    """Serve a model over HTTP, with the routes of text-embeddings-inference, OpenAI and Cohere."""

    model: str
    """Model folder, or name of a model on the Hub."""
    _: KW_ONLY
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all network interfaces."""
    port: Annotated[int, Ge(0), Le(65_535)] = 8_080
    """Port to listen on; 0 takes a free one."""
    api_key: str | None = None
    """Key that requests must send; that of the environment variable MODERNBERT_API_KEY, by default."""
    batch_tokens: Annotated[int, Ge(64)] = 4_096
    """Maximum tokens of a batch."""
    batch_seconds: Annotated[float, Ge(0.001), Le(3_600)] = 0.5
    """Maximum duration of a batch in seconds."""
    queue_tokens: Annotated[int, Ge(1)] = 1_000_000
    """Maximum tokens of the requests that wait."""
    max_requests: Annotated[int, Ge(1)] = 512
    """Maximum number of concurrent requests."""
    max_bytes: Annotated[int, Ge(1)] = 8_000_000
    """Maximum bytes of the body of a request."""
    timeout: Annotated[float, Ge(0.1), Le(86_400)] = 120.0
    """Seconds after which a request fails."""
    max_wait: Annotated[float, Ge(0.1)] = 10.0
    """Seconds that a request may wait for earlier requests; a longer queue is refused."""
