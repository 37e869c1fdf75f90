"""What clients send, as text-embeddings-inference, OpenAI and Cohere have it.

In: JSON. Out: checked fields. What is not known is passed over, as those servers do.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

__all__ = [
    "REFUSALS",
    "DecodeIn",
    "EmbedIn",
    "FillMaskIn",
    "OpenAIIn",
    "PredictIn",
    "RerankIn",
    "RerankV1In",
    "SimilarityIn",
    "TokenizeIn",
]

Ids = list[Annotated[int, Field(ge=0, lt=2**31)]]
Inputs = str | list[str] | Ids | list[Ids]
Dimensions = Annotated[int, Field(ge=1)] | None
Kind = Literal["query", "search_query", "document", "passage", "search_document"]
Precision = Literal["float32", "float16", "int8", "binary"]


class EmbedIn(BaseModel):
    """Ask for vectors: of a text, of ids without special tokens, or of several of either.

    With `prompt_name` or `input_type`, query or document, texts are laid out as the model was tuned to have them.
    """

    inputs: Inputs
    normalize: bool = True
    truncate: bool | None = None
    truncation_direction: Literal["Right", "right"] = "Right"
    prompt_name: Kind | None = None
    input_type: Kind | None = None
    dimensions: Dimensions = None
    precision: Precision = "float32"
    encoding_format: Literal["float", "base64"] = "float"


class OpenAIIn(BaseModel):
    """Ask for vectors as OpenAI's clients do."""

    input: Inputs
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    input_type: Kind | None = None
    dimensions: Dimensions = None
    precision: Precision = "float32"
    user: str | None = None


class SimilarPair(BaseModel):
    """A text, and those it is compared with."""

    source_sentence: str
    sentences: list[str]


class SimilarityIn(BaseModel):
    """Ask how alike texts are."""

    inputs: SimilarPair
    truncate: bool | None = None


class RerankIn(BaseModel):
    """Ask in which order texts answer a query."""

    query: str
    texts: list[str]
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool | None = None


class RerankV1In(BaseModel):
    """Ask the same in Cohere's words."""

    query: str
    documents: list[str]
    model: str | None = None
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = False


class PredictIn(BaseModel):
    """Ask for labels: of a text, of a pair (a list of two), or of a list of lists of one or two."""

    inputs: str | list[str] | list[list[str]]
    raw_scores: bool = False
    truncate: bool | None = None


class TokenizeIn(BaseModel):
    """Ask for tokens."""

    inputs: str | list[str]
    add_special_tokens: bool = True


class DecodeIn(BaseModel):
    """Ask for the text of ids."""

    ids: Ids | list[Ids]
    skip_special_tokens: bool = True


TopK = Annotated[int, Field(ge=1, le=100)]


class FillMaskParameters(BaseModel):
    """How many, where clients of the hub say it."""

    top_k: TopK | None = None


class FillMaskIn(BaseModel):
    """Ask what stands behind each mask."""

    inputs: str | list[str]
    top_k: TopK = 5
    parameters: FillMaskParameters | None = None


class Refusal(BaseModel):
    """Say why a request is not answered, as clients of text-embeddings-inference and of OpenAI look for it."""

    error: str
    error_type: str
    message: str
    code: int


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal, "description": why}
    for status, why in {
        400: "The body is not JSON.",
        401: "The key is wrong.",
        408: "The body came too slowly.",
        413: "The body is too large.",
        422: "What is asked for cannot be answered; the text is too long, for one.",
        424: "The model failed.",
        429: "Too much is waiting; Retry-After says when to come back.",
        503: "The server is closing, or it took too long.",
    }.items()
}
"""What every route may say besides its answer."""
