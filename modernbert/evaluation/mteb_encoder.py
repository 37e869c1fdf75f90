"""A `ModernBert` with mteb's encoder interface, for every mteb task that compares vectors.

Models with a vector for each token are evaluated with `evaluation.mteb_tasks.MtebSearch`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from modernbert.errors import InputError
from modernbert.inference.modernbert import ModernBert
from modernbert.inference.predictor import check_compares

__all__ = ["MtebEncoder"]


class MtebEncoder:
    """An implementation of mteb's `EncoderProtocol`: `mteb.evaluate(MtebEncoder(bert), task)`.

    Queries and documents of retrieval are embedded as the model was fine-tuned to embed them, all other texts as
    documents with the folder's default prompt. Texts that are too long are truncated and counted in `num_truncated`.
    """

    def __init__(self, bert: ModernBert, name: str = "modernbert/model") -> None:
        """Wrap a model that makes one vector per text.

        Raises:
            InputError: The model makes no vector per text.
        """
        if bert.is_late:
            raise InputError("the model has a vector per token, expected one per text; use MtebSearch for retrieval")
        check_compares(bert)
        self.bert, self.name, self.num_truncated = bert, name, 0

    @property
    def mteb_model_meta(self) -> Any:
        """The description of the model that mteb saves with its scores."""
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        return ModelMeta.create_empty({"name": self.name, "similarity_fn_name": ScoringFunction.COSINE})

    def encode(
        self,
        inputs: Iterable[Mapping[str, Sequence[str]]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **_: Any,
    ) -> np.ndarray:
        """Return the vectors of batches of texts, float32 [N, D].

        Raises:
            InputError: An input is not a text.
        """
        texts: list[str] = []
        for batch in inputs:
            if "text" not in batch:
                raise InputError(f"{task_metadata.name}: has {', '.join(batch)}, expected text")
            texts += batch["text"]
        kind = getattr(prompt_type, "value", prompt_type)
        if kind == "query":
            found = self.bert.embed_queries(texts)
        elif kind == "document":
            found = self.bert.embed_documents(texts)
        else:
            found = self.bert.embed_documents(texts, prompt=self.bert.default_prompt)
        self.num_truncated += found.num_truncated
        assert isinstance(found.vectors, np.ndarray)
        return found.vectors

    def similarity(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Return the cosine of each vector with each of the others, [N, M]."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Return the cosines of pairs of vectors, [N]."""
        return np.einsum("nd,nd->n", _unit(embeddings1), _unit(embeddings2))


def _unit(vectors: Any) -> np.ndarray:
    """Scale vectors to length 1: mteb may pass truncated vectors, or means."""
    found = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
    return found / np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), 1e-12)
