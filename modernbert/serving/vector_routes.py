"""The routes that return vectors or similarities, with the fields of text-embeddings-inference and OpenAI."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response

from modernbert.inference.outputs import TokenVectors
from modernbert.inference.quantize import quantize
from modernbert.serving import schemas
from modernbert.serving.schemas import described
from modernbert.serving.service import Service, json_response, listed
from modernbert.tokenizer.input_templates import EncodedText

__all__ = ["add_vectors"]


def add_vectors(app: FastAPI, service: Service) -> None:
    """Add the routes that every model answers."""
    _add_text_vectors(app, service)
    _add_token_vectors(app, service)
    _add_openai(app, service)

    @app.post("/similarity", **described("Vectors", "Compare texts", "A number for each text.", [0.54, -0.02]))
    async def similarity(http: Request, body: schemas.SimilarityIn) -> list[float]:
        """Return the cosine similarity of a text to each of the others, or MaxSim for late interaction."""
        return await service.compare(http, body.inputs.source_sentence, body.inputs.sentences, bool(body.truncate))


def _add_text_vectors(app: FastAPI, service: Service) -> None:
    @app.post(
        "/embed",
        **described("Vectors", "Embed texts", "A vector for each text; shortened here.", [[0.01, -0.03], [0.04, 0.02]]),
    )
    async def embed(http: Request, body: schemas.EmbedIn) -> Response:
        """Return one vector for each text, with the pooling and the prompts of the model."""
        template, texts = service.template(body.prompt_name, body.input_type, body.prompt), listed(body.inputs)
        output = service.text_vectors(body.normalize, body.dimensions)
        service.check_size(len(texts), body.dimensions)
        found = await service.compute(http, lambda: service.encode(texts, template, bool(body.truncate)), output)
        return await json_response(lambda: _written(found, body.precision, body.encoding_format), _size(found))

    if not service.bert.model.is_classifier:
        app.add_api_route("/", embed, methods=["POST"], include_in_schema=False)


def _add_token_vectors(app: FastAPI, service: Service) -> None:
    bert = service.bert
    token_vectors = described(
        "Vectors",
        "Embed tokens",
        "An array of vectors for each text.",
        [[[0.013, -0.027, 0.041], [0.002, 0.019, -0.03]]],
    )

    @app.post("/embed_multi", **token_vectors)
    @app.post("/embed_all", **token_vectors)
    async def embed_all(http: Request, body: schemas.EmbedIn) -> Response:
        """Return one vector for each token of each text: those of late interaction, or of the last layer."""
        template = service.template(body.prompt_name, body.input_type, body.prompt)
        service.check_dimensions(body.dimensions, bert.vector_width)

        def encode() -> list[EncodedText]:
            encoded = service.encode(listed(body.inputs), template, bool(body.truncate))
            service.check_size(sum(each.num_rows for each in encoded))
            return encoded

        kept = body.dimensions or (bert.vectors.truncate_dim if bert.is_late else None)
        found = await service.compute(
            http, encode, TokenVectors(bert.projection, kept, normalize=body.normalize and bert.is_late)
        )

        def rows() -> list[Any]:
            made = [quantize(vectors, body.precision) for vectors in found]
            if body.encoding_format == "float":
                return [_dumped(each) for each in made]
            return [{"shape": each.shape, "dtype": str(each.dtype), "data": _base64(each)} for each in made]

        return await json_response(rows, _size(found))


def _add_openai(app: FastAPI, service: Service) -> None:
    embeddings = described(
        "Vectors", "Embed texts, for OpenAI's clients", "Vectors, shortened here, and the number of tokens.",
        {
            "object": "list", "model": "m",
            "data": [
                {"object": "embedding", "index": 0, "embedding": [0.01, -0.03]},
                {"object": "embedding", "index": 1, "embedding": [0.04, 0.02]},
            ],
            "usage": {"prompt_tokens": 16, "total_tokens": 16},
        },
    )  # fmt: skip

    @app.post("/embeddings", **embeddings)
    @app.post("/v1/embeddings", **embeddings)
    async def openai(http: Request, body: schemas.OpenAIIn) -> Response:
        """Return one vector of length 1 for each text, in the form of OpenAI's API."""
        template, texts = service.template(None, body.input_type, body.prompt), listed(body.input)
        output = service.text_vectors(True, body.dimensions)
        service.check_size(len(texts), body.dimensions)
        used = 0

        def encode() -> list[EncodedText]:
            nonlocal used
            encoded = service.encode(texts, template, bool(body.truncate))
            used = sum(len(each.tokens) for each in encoded)
            return encoded

        found = await service.compute(http, encode, output)

        def answer() -> dict[str, Any]:
            rows = enumerate(_written(found, body.precision, body.encoding_format))
            return {
                "object": "list", "model": body.model or service.settings.model_id,
                "data": [{"object": "embedding", "index": n, "embedding": row} for n, row in rows],
                "usage": {"prompt_tokens": used, "total_tokens": used},
            }  # fmt: skip

        return await json_response(answer, _size(found))


def _written(vectors: Sequence[np.ndarray], precision: str, encoding: str) -> list[Any]:
    """Return vectors as rows of an answer: numbers, or little-endian bytes in base64."""
    if not vectors:
        return []
    rows = quantize(np.stack(vectors), precision)
    return [_base64(row) if encoding == "base64" else _dumped(row) for row in rows]


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()


def _size(arrays: Sequence[np.ndarray]) -> int:
    return sum(array.size for array in arrays)


def _dumped(array: np.ndarray) -> orjson.Fragment:
    """Serialize one array at a time, so that the scheduler's thread can run in between."""
    return orjson.Fragment(orjson.dumps(array, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY))


def _plain(array: Any) -> Any:
    return array.tolist()  # for a dtype that orjson does not know
