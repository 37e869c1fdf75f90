"""Request bodies, with the fields of text-embeddings-inference, OpenAI and Cohere; unknown fields are ignored."""

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

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
    "described",
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


def _example(**fields: Any) -> ConfigDict:
    """Return settings with an example, which the API page shows and sends."""
    return ConfigDict(json_schema_extra={"example": fields})


class _Body(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class _Texts(_Body):
    truncate: bool | None = None
    """Cut texts over the length limit; otherwise such a text is an error."""


class _Vectors(_Texts):
    prompt: str | None = None
    """Text to put before each text, instead of the default prompt of the model; an empty one turns that off."""
    input_type: Kind | None = None
    """Encode texts with the template for queries or documents that the model was fine-tuned with."""
    dimensions: Dimensions = None
    """Number of components to keep; null keeps all."""
    precision: Precision = "float32"
    """Data type of the vectors."""
    encoding_format: Literal["float", "base64"] = "float"
    """Form of a vector: an array of numbers, or the base64 of its little-endian bytes."""


class EmbedIn(_Vectors):
    """Texts to embed."""

    model_config = _example(inputs=["My parcel has not arrived.", "I forgot my password."])
    inputs: Inputs
    """A text, its token ids, or an array of either. Ids without [CLS] and [SEP] are put between the two."""
    normalize: bool = True
    """Scale vectors to length 1; vectors of tokens only if the model is one for late interaction."""
    truncation_direction: Literal["Right", "right"] = "Right"
    """Side on which texts are cut."""
    prompt_name: Annotated[str, Field(max_length=200)] | None = None
    """`query`, `document`, or the name of a prompt of the model folder."""


class OpenAIIn(_Vectors):
    """Texts to embed, with OpenAI's fields."""

    model_config = _example(model="m", input=["My parcel has not arrived.", "I forgot my password."])
    input: Inputs
    """A text, its token ids, or an array of either. Ids without [CLS] and [SEP] are put between the two."""
    model: Name = None
    """Name to return; any name is accepted."""
    user: str | None = None
    """Has no effect."""


class SimilarPair(_Body):
    """A text and the texts to compare it with."""

    source_sentence: str
    """Text to compare with the others."""
    sentences: Texts
    """Texts to compare it with."""


class SimilarityIn(_Texts):
    """Texts to compare."""

    model_config = _example(
        inputs={
            "source_sentence": "I cannot log in.",
            "sentences": ["Choose Forgot password.", "Orders can be paid in three installments."],
        }
    )
    inputs: SimilarPair
    """The texts."""


class RerankIn(_Texts):
    """A query, and texts to rank."""

    model_config = _example(
        query="can I pay in parts", texts=["Choose Forgot password.", "Orders can be paid in three installments."]
    )
    query: str
    """Question or search terms."""
    texts: Texts
    """Texts to rank."""
    raw_scores: bool = False
    """Return the logits of a cross-encoder, instead of probabilities."""
    return_text: bool = False
    """Return each text beside its score."""


class RerankV1In(_Texts):
    """A query, and documents to rank, with Cohere's fields."""

    model_config = _example(
        query="can I pay in parts",
        documents=["Choose Forgot password.", "Orders can be paid in three installments."],
        top_n=1,
    )
    query: str
    """Question or search terms."""
    documents: Texts
    """Texts to rank."""
    model: Name = None
    """Name to return; any name is accepted."""
    top_n: Annotated[int, Field(ge=1)] | None = None
    """Number of best documents to return; null returns all."""
    return_documents: bool = False
    """Return each document beside its score."""


class PredictIn(_Texts):
    """Texts to label."""

    model_config = _example(inputs=[["I was charged twice."], ["The parcel never came."]])
    inputs: str | Texts | Annotated[list[Texts], _LISTED]
    """A text, a pair (an array of two texts), or an array of arrays of one or two texts."""
    raw_scores: bool = False
    """Return logits instead of probabilities."""


class TokenizeIn(_Body):
    """Texts to tokenize."""

    model_config = _example(inputs=["I forgot my password."])
    inputs: str | Texts
    """A text, or an array of texts."""
    add_special_tokens: bool = True
    """Put the tokens between [CLS] and [SEP]."""


class DecodeIn(_Body):
    """Token ids to decode."""

    model_config = _example(ids=[[42, 310, 7]])
    ids: Ids | Rows
    """The ids of a text, or an array of the ids of each text."""
    skip_special_tokens: bool = True
    """Leave out special tokens such as [CLS]."""


TopK = Annotated[int, Field(ge=1, le=100)]


class FillMaskParameters(_Body):
    """Parameters, where clients of the Hub send them."""

    top_k: TopK | None = None
    """Number of tokens for each mask, instead of the `top_k` beside `inputs`."""


class FillMaskIn(_Body):
    """Texts with masks to fill."""

    model_config = _example(inputs="The refund is sent to the [MASK].", top_k=3)
    inputs: str | Texts
    """A text, or an array of texts, each with one [MASK] or more."""
    top_k: TopK = 5
    """Number of tokens for each mask."""
    parameters: FillMaskParameters | None = None
    """Parameters, where clients of the Hub send them."""


class Reason(_Body):
    """An error in OpenAI's form, for paths below /v1."""

    message: str
    """The value that was found, and the expected one."""
    type: str
    """Kind of the error: Validation, Overloaded, Unhealthy or Backend."""
    code: int
    """HTTP status."""


class Refusal(_Body):
    """An error in the form of text-embeddings-inference."""

    error: str | Reason
    """The value that was found, and the expected one; for paths below /v1 an object, as OpenAI's clients expect."""
    error_type: str
    """Kind of the error: Validation, Overloaded, Unhealthy or Backend."""
    message: str
    """The text of `error`."""
    code: int
    """HTTP status."""


def described(group: str, summary: str, returns: str, example: Any = None) -> dict[str, Any]:
    """Return the arguments of a route that the API page shows, with an example of the body of its response."""
    content = {} if example is None else {"content": {"application/json": {"example": example}}}
    return {"tags": [group], "summary": summary, "responses": {200: {"description": returns} | content}}


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
