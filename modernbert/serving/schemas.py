"""What clients send, as text-embeddings-inference, OpenAI and Cohere have it.

In: JSON. Out: checked fields. What is not known is passed over, as those servers do.
"""

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


# Of a list that is wrong or too long, the first place is enough: to look at a million takes a minute.
_FIRST, _LISTED = Field(fail_fast=True), Field(fail_fast=True, max_length=16_384)
Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], _FIRST]
Texts = Annotated[list[str], _LISTED]
Rows = Annotated[list[Ids], _LISTED]
Inputs = str | Texts | Ids | Rows
# What is sent back must be writable.
Name = Annotated[str, AfterValidator(_whole)] | None
Dimensions = Annotated[int, Field(ge=1)] | None
Kind = Literal["query", "search_query", "document", "passage", "search_document"]
KINDS: tuple[str, ...] = get_args(Kind)
"""What a client may call queries and documents."""
Precision = Literal["float32", "float16", "int8", "binary"]


class EmbedIn(BaseModel):
    """Ask for vectors: of a text, of token ids, or of several of either.

    Ids that begin with [CLS] and end with [SEP] are taken as they are; others are put between the two. With
    `prompt_name` or `input_type`, query or document, texts are encoded with the template of the fine-tuned model;
    `prompt_name` may be any prompt of the model's folder too. `prompt` is put before each text. Without any of the
    three it is the folder's default prompt, which an empty `prompt` turns off.
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
    """Ask for vectors as OpenAI's clients do; `prompt` and ids are as in `/embed`."""

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
    """A text, and those it is compared with."""

    source_sentence: str
    sentences: Texts


class SimilarityIn(BaseModel):
    """Ask how alike texts are."""

    inputs: SimilarPair
    truncate: bool | None = None


class RerankIn(BaseModel):
    """Ask in which order texts answer a query.

    Scores are those of the model's head, 0 to 1 or as they are with `raw_scores`; of a regression, always as they are.
    A model without a head compares vectors.
    """

    query: str
    texts: Texts
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool | None = None


class RerankV1In(BaseModel):
    """Ask the same in Cohere's words."""

    query: str
    documents: Texts
    model: Name = None
    truncate: bool = False
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = False


class PredictIn(BaseModel):
    """Ask for labels: of a text, of a pair (a list of two), or of a list of lists of one or two."""

    inputs: str | Texts | Annotated[list[Texts], _LISTED]
    raw_scores: bool = False
    truncate: bool | None = None


class TokenizeIn(BaseModel):
    """Ask for tokens."""

    inputs: str | Texts
    add_special_tokens: bool = True


class DecodeIn(BaseModel):
    """Ask for the text of ids."""

    ids: Ids | Rows
    skip_special_tokens: bool = True


TopK = Annotated[int, Field(ge=1, le=100)]


class FillMaskParameters(BaseModel):
    """How many, where clients of the hub say it."""

    top_k: TopK | None = None


class FillMaskIn(BaseModel):
    """Ask what stands behind each mask."""

    inputs: str | Texts
    top_k: TopK = 5
    parameters: FillMaskParameters | None = None


class Reason(BaseModel):
    """Say why, where clients of OpenAI look for it: below /v1 alone."""

    message: str
    type: str
    code: int


class Refusal(BaseModel):
    """Say why a request is not answered, as clients of text-embeddings-inference look for it."""

    error: str | Reason
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
        500: "Something went wrong that should not have.",
        503: "The server is closing, or it took too long.",
    }.items()
}
"""What every route may say besides its answer."""
