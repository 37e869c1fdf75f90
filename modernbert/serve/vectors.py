"""The routes that give vectors: those of text-embeddings-inference and of OpenAI.

In: texts over HTTP. Out: one vector a text, one a token, or how alike texts are.
"""

import base64

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from modernbert.model.heads import Classifier
from modernbert.serve import schemas, work
from modernbert.serve.service import Service, listed

__all__ = ["add_vectors"]


def add_vectors(app: FastAPI, service: Service) -> None:
    """Add the routes that every model answers."""
    # Answers of many numbers are written as they are: to check each against a schema takes as long as to compute it.
    bert = service.bert

    @app.post("/embed")
    async def embed(http: Request, body: schemas.EmbedIn) -> Response:
        prompt = service.prompt(body.prompt_name)
        found = await service.compute(
            http, lambda: work.documents_of(bert, listed(body.inputs), prompt, bool(body.truncate)),
            service.finish_vectors(body.normalize, body.dimensions),
        )  # fmt: skip
        return JSONResponse([vector.tolist() for vector in found])

    if not isinstance(bert.model, Classifier):
        app.add_api_route("/", embed, methods=["POST"], include_in_schema=False)

    @app.post("/embed_all")
    @app.post("/embed_multi")
    async def embed_all(http: Request, body: schemas.EmbedIn) -> Response:
        prompt = service.prompt(body.prompt_name)
        found = await service.compute(
            http, lambda: work.documents_of(bert, listed(body.inputs), prompt, bool(body.truncate)),
            work.token_vectors(bert, body.normalize and bert.is_late),
        )  # fmt: skip
        return JSONResponse([vectors.tolist() for vectors in found])

    @app.post("/v1/embeddings")
    @app.post("/embeddings")
    async def openai(http: Request, body: schemas.OpenAIIn) -> Response:
        documents: list[np.ndarray] = []

        def make() -> list[np.ndarray]:
            documents.extend(work.documents_of(bert, listed(body.input), "", False))
            return documents

        found = await service.compute(http, make, service.finish_vectors(True, body.dimensions))
        as_text = body.encoding_format == "base64"
        rows = [base64.b64encode(each.astype("<f4").tobytes()).decode() if as_text else each.tolist() for each in found]
        used = sum(map(len, documents))
        return JSONResponse({
            "object": "list", "model": body.model or service.settings.model_id,
            "data": [{"object": "embedding", "index": n, "embedding": row} for n, row in enumerate(rows)],
            "usage": {"prompt_tokens": used, "total_tokens": used},
        })  # fmt: skip

    @app.post("/similarity")
    async def similarity(http: Request, body: schemas.SimilarityIn) -> list[float]:
        return await service.compare(http, body.inputs.source_sentence, body.inputs.sentences, bool(body.truncate))
