"""The routes that give vectors: those of text-embeddings-inference and of OpenAI.

In: texts over HTTP. Out: one vector a text, one a token, or how alike texts are.
"""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response

from modernbert.infer.quantize import quantize
from modernbert.model.heads import Classifier
from modernbert.serve import schemas, work
from modernbert.serve.service import Service, listed
from modernbert.text.forms import Laid

__all__ = ["add_vectors"]


def add_vectors(app: FastAPI, service: Service) -> None:
    """Add the routes that every model answers."""
    bert = service.bert

    @app.post("/embed")
    async def embed(http: Request, body: schemas.EmbedIn) -> Response:
        form = service.form(body.prompt_name, body.input_type)
        found = await service.compute(
            http, lambda: _tokens(service.lay(listed(body.inputs), form, bool(body.truncate))),
            service.finish_vectors(body.normalize, body.dimensions),
        )  # fmt: skip
        return _json(_written(found, body.precision, body.encoding_format))

    if not isinstance(bert.model, Classifier):
        app.add_api_route("/", embed, methods=["POST"], include_in_schema=False)

    @app.post("/embed_all")
    @app.post("/embed_multi")
    async def embed_all(http: Request, body: schemas.EmbedIn) -> Response:
        form, laid = service.form(body.prompt_name, body.input_type), list[Laid]()

        def make() -> list[np.ndarray]:
            laid.extend(service.lay(listed(body.inputs), form, bool(body.truncate)))
            return _tokens(laid)

        every = await service.compute(http, make, work.token_vectors(bert, body.normalize and bert.is_late))
        found = [one if each.where is None else one[each.where] for one, each in zip(every, laid, strict=True)]
        if body.encoding_format == "float":
            return _json([quantize(vectors, body.precision) for vectors in found])
        rows = [quantize(vectors, body.precision) for vectors in found]
        return _json([{"shape": each.shape, "dtype": str(each.dtype), "data": _base64(each)} for each in rows])

    @app.post("/v1/embeddings")
    @app.post("/embeddings")
    async def openai(http: Request, body: schemas.OpenAIIn) -> Response:
        form, documents = service.form(None, body.input_type), list[np.ndarray]()

        def make() -> list[np.ndarray]:
            documents.extend(_tokens(service.lay(listed(body.input), form, False)))
            return documents

        found = await service.compute(http, make, service.finish_vectors(True, body.dimensions))
        rows = _written(found, body.precision, body.encoding_format)
        used = sum(map(len, documents))
        return _json({
            "object": "list", "model": body.model or service.settings.model_id,
            "data": [{"object": "embedding", "index": n, "embedding": row} for n, row in enumerate(rows)],
            "usage": {"prompt_tokens": used, "total_tokens": used},
        })  # fmt: skip

    @app.post("/similarity")
    async def similarity(http: Request, body: schemas.SimilarityIn) -> list[float]:
        return await service.compare(http, body.inputs.source_sentence, body.inputs.sentences, bool(body.truncate))


def _tokens(laid: Sequence[Laid]) -> list[np.ndarray]:
    return [each.tokens for each in laid]


def _written(vectors: Sequence[np.ndarray], precision: str, encoding: str) -> list[Any]:
    """Return vectors as rows of an answer: numbers, or the bytes of them, the lowest first, in base64.

    Raises: InputError for a width that is no multiple of 8, if they are to be signs.
    """
    if not vectors:
        return []
    rows = quantize(np.stack(vectors), precision)
    return [_base64(row) for row in rows] if encoding == "base64" else list(rows)


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()


def _json(answer: Any) -> Response:
    """Write an answer of many numbers as it is: to check each against a schema takes as long as to compute it."""
    content = orjson.dumps(answer, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, media_type="application/json")


def _plain(array: Any) -> Any:
    return array.tolist()  # what orjson cannot write as it lies in memory
