"""A model as mteb's encoder: any task that compares vectors, from similar sentences to classes and clusters.

In: a `ModernBert`. Out: what `mteb.evaluate` takes. Retrieval goes through it too; where a model has a vector for each
token, it goes through `evaluate.benchmark.MtebSearch`.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np

from modernbert.errors import InputError
from modernbert.inference.modernbert import ModernBert

__all__ = ["MtebEncoder"]


class MtebEncoder:
    """Answer mteb's `EncoderProtocol`: `mteb.evaluate(MtebEncoder(bert), task)`.

    Queries and documents of retrieval are embedded as the model was tuned to embed them, all other texts as documents
    with the folder's default prompt, if it names one. Texts that are too long are cut, and counted in `num_cut`.
    """

    def __init__(self, bert: ModernBert, name: str = "modernbert/model") -> None:
        """Take a model that makes one vector a text.

        Raises: InputError for another, such as one with a head of labels.
        """
        if bert.is_late:
            raise InputError("the model has a vector for each token, expected one a text; retrieval takes MtebSearch")
        self.bert, self.name, self.num_cut = bert, name, 0
        self._plain = copy(bert)
        self._plain.vectors = replace(bert.vectors, document_prompt=bert.default_prompt)
        # Refuses a model that does not compare vectors.
        _ = self._plain.document_form

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb writes of a model beside its scores."""
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
        """Return float32 [N, D] of batches of texts.

        Raises: InputError for inputs that are not texts.
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
            found = self._plain.embed_documents(texts)
        self.num_cut += found.num_cut
        assert isinstance(found.vectors, np.ndarray)
        return found.vectors

    def similarity(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Return the cosine of each vector with each other one, [N, M]."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Return the cosine of each vector with the one beside it, [N]."""
        return np.einsum("nd,nd->n", _unit(embeddings1), _unit(embeddings2))


def _unit(vectors: Any) -> np.ndarray:
    """Scale to length 1, for mteb may hand back a part of them, or a mean."""
    found = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
    return found / np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), 1e-12)
