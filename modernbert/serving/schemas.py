"""Request bodies, with the fields of text-embeddings-inference, OpenAI and Cohere; unknown fields are ignored."""

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, Field

__all__ = [
    "KINDS",
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


def _whole(text: str) -> str:
    text.encode()
    return text


# Report the first error of a list only: checking a million items takes a minute.
_FIRST, _LISTED = Field(fail_fast=True), Field(fail_fast=True, max_length=16_384)
Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], _FIRST]
Texts = Annotated[list[str], _LISTED]
Rows = Annotated[list[Ids], _LISTED]
Inputs = str | Texts | Ids | Rows
# Strings that are sent back must be valid Unicode.
Name = Annotated[str, AfterValidator(_whole)] | None
Dimensions = Annotated[int, Field(ge=1)] | None
Kind = Literal["query", "search_query", "document", "passage", "search_document"]
KINDS: tuple[str, ...] = get_args(Kind)
"""The names of queries and documents."""
Precision = Literal["float32", "float16", "int8", "binary"]


class EmbedIn(BaseModel):
    """Request vectors of a text, of token ids, or of several of either.

    Ids with [CLS] and [SEP] are used as they are; others are put between the two. With `prompt_name` or `input_type`,
    query or document, texts are encoded with the template of the fine-tuned model; `prompt_name` may also be a prompt
    of the model's folder. `prompt` is put before each text. Without any of the three, the folder's default prompt is
    used; an empty `prompt` turns it off.
    """

    inputs: Inputs
    normalize: bool = True
    truncate: bool | None = None
    truncation_direction: Literal["Right", "right"] = "Right"
    prompt: str | None = None
    prompt_name: Annotated[str, Field(max_length=200)] | None = None
    input_type: Kind | None = None
    dimensions: Dimensions = None
    precision: Precision = "float32"
    encoding_format: Literal["float", "base64"] = "float"


class OpenAIIn(BaseModel):
    """Request vectors with OpenAI's fields; `prompt` and ids are as in `/embed`."""

    input: Inputs
    model: Name = None
    truncate: bool = False
    encoding_format: Literal["float", "base64"] = "float"
    prompt: str | None = None
    input_type: Kind | None = None
    dimensions: Dimensions = None
    precision: Precision = "float32"
    user: str | None = None


class SimilarPair(BaseModel):
    """A text and the texts to compare it with."""

    source_sentence: str
    sentences: Texts


class SimilarityIn(BaseModel):
    """Request the similarity of texts."""

    inputs: SimilarPair
    truncate: bool | None = None


class RerankIn(BaseModel):
    """Request texts in the order in which they answer a query.

    A cross-encoder scores with a probability, or with logits if `raw_scores`; a regression with its number. A model
    without a head compares vectors.
    """

    query: str
    texts: Texts
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool | None = None


class RerankV1In(BaseModel):
    """Request a ranking with Cohere's fields."""

    query: str
    documents: Texts
    model: Name = None
    truncate: bool = False
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = False


class PredictIn(BaseModel):
    """Request labels of a text, of a pair (a list of two), or of a list of lists of one or two texts."""

    inputs: str | Texts | Annotated[list[Texts], _LISTED]
    raw_scores: bool = False
    truncate: bool | None = None


class TokenizeIn(BaseModel):
    """Request the tokens of texts."""

    inputs: str | Texts
    add_special_tokens: bool = True


class DecodeIn(BaseModel):
    """Request the text of token ids."""

    ids: Ids | Rows
    skip_special_tokens: bool = True


TopK = Annotated[int, Field(ge=1, le=100)]


class FillMaskParameters(BaseModel):
    """`top_k`, where clients of the Hub send it."""

    top_k: TopK | None = None


class FillMaskIn(BaseModel):
    """Request the likeliest tokens for each mask."""

    inputs: str | Texts
    top_k: TopK = 5
    parameters: FillMaskParameters | None = None


class Reason(BaseModel):
    """An error in OpenAI's form, for paths below /v1."""

    message: str
    type: str
    code: int


class Refusal(BaseModel):
    """An error in the form of text-embeddings-inference."""

    error: str | Reason
    error_type: str
    message: str
    code: int


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal, "description": why}
    for status, why in {
        400: "The body is not JSON.",
        401: "The key is wrong.",
        408: "The body arrived too slowly.",
        413: "The body is too large.",
        422: "The request is invalid; for example, a text is too long.",
        424: "The model failed.",
        429: "The queue is full; Retry-After says when to try again.",
        500: "An internal error.",
        503: "The server is closing, or the request took too long.",
    }.items()
}
"""The error responses of every route."""
