"""The routes that give vectors: those of text-embeddings-inference and of OpenAI.

In: texts over HTTP. Out: one vector a text, one a token, or how alike texts are.
"""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response

from modernbert.inference.quantize import quantize
from modernbert.model.heads import Classifier
from modernbert.serving import schemas, work
from modernbert.serving.service import Service, json_response, listed
from modernbert.tokenizer.input_templates import EncodedText

__all__ = ["add_vectors"]


def add_vectors(app: FastAPI, service: Service) -> None:
    """Add the routes that every model answers."""
    bert = service.bert

    @app.post("/embed")
    async def embed(http: Request, body: schemas.EmbedIn) -> Response:
        form, texts = service.form(body.prompt_name, body.input_type, body.prompt), listed(body.inputs)
        finish = service.finish_vectors(body.normalize, body.dimensions)
        service.check_size(len(texts), body.dimensions)
        found = await service.compute(http, lambda: _tokens(service.lay(texts, form, bool(body.truncate))), finish)
        return await json_response(lambda: _written(found, body.precision, body.encoding_format), _size(found))

    if not isinstance(bert.model, Classifier):
        app.add_api_route("/", embed, methods=["POST"], include_in_schema=False)

    @app.post("/embed_all")
    @app.post("/embed_multi")
    async def embed_all(http: Request, body: schemas.EmbedIn) -> Response:
        form, laid = service.form(body.prompt_name, body.input_type, body.prompt), list[EncodedText]()
        service.check_dimensions(body.dimensions, bert.vector_width)

        def make() -> list[np.ndarray]:
            laid.extend(service.lay(listed(body.inputs), form, bool(body.truncate)))
            service.check_size(sum(len(each.tokens) for each in laid))
            return _tokens(laid)

        finish = work.token_vectors(bert, body.normalize and bert.is_late, body.dimensions)
        every = await service.compute(http, make, finish)
        found = [
            one if each.label_positions is None else one[each.label_positions]
            for one, each in zip(every, laid, strict=True)
        ]

        def rows() -> list[Any]:
            made = [quantize(vectors, body.precision) for vectors in found]
            if body.encoding_format == "float":
                return [_dumped(each) for each in made]
            return [{"shape": each.shape, "dtype": str(each.dtype), "data": _base64(each)} for each in made]

        return await json_response(rows, _size(found))

    @app.post("/v1/embeddings")
    @app.post("/embeddings")
    async def openai(http: Request, body: schemas.OpenAIIn) -> Response:
        form, texts = service.form(None, body.input_type, body.prompt), listed(body.input)
        documents: list[np.ndarray] = []
        finish = service.finish_vectors(True, body.dimensions)
        service.check_size(len(texts), body.dimensions)

        def make() -> list[np.ndarray]:
            documents.extend(_tokens(service.lay(texts, form, body.truncate)))
            return documents

        found = await service.compute(http, make, finish)
        used = sum(map(len, documents))

        def answer() -> dict[str, Any]:
            rows = enumerate(_written(found, body.precision, body.encoding_format))
            return {
                "object": "list", "model": body.model or service.settings.model_id,
                "data": [{"object": "embedding", "index": n, "embedding": row} for n, row in rows],
                "usage": {"prompt_tokens": used, "total_tokens": used},
            }  # fmt: skip

        return await json_response(answer, _size(found))

    @app.post("/similarity")
    async def similarity(http: Request, body: schemas.SimilarityIn) -> list[float]:
        return await service.compare(http, body.inputs.source_sentence, body.inputs.sentences, bool(body.truncate))


def _tokens(laid: Sequence[EncodedText]) -> list[np.ndarray]:
    return [each.tokens for each in laid]


def _written(vectors: Sequence[np.ndarray], precision: str, encoding: str) -> list[Any]:
    """Return vectors as rows of an answer: numbers, or the bytes of them, the lowest first, in base64.

    Raises: InputError for a width that is no multiple of 8, if they are to be signs.
    """
    if not vectors:
        return []
    rows = quantize(np.stack(vectors), precision)
    return [_base64(row) if encoding == "base64" else _dumped(row) for row in rows]


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()


def _size(arrays: Sequence[np.ndarray]) -> int:
    return sum(array.size for array in arrays)


def _dumped(array: np.ndarray) -> orjson.Fragment:
    """Write one array: of many at once, nobody else would come to compute in between."""
    return orjson.Fragment(orjson.dumps(array, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY))


def _plain(array: Any) -> Any:
    return array.tolist()  # what orjson cannot write as it lies in memory
