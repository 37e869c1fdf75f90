"""What the routes ask of the engine: texts as token ids, and what is made of their hidden states.

In: texts or ids, as a client sent them. Out: documents that fit, and functions of their hidden states. A file of its
own because none of it knows HTTP.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from modernbert.batch import SequenceLengths
from modernbert.devices import autocast
from modernbert.errors import InputError, shown
from modernbert.inference.modernbert import ModernBert
from modernbert.inference.outputs import likeliest
from modernbert.inference.overflow import apply_overflow
from modernbert.model.heads import Classifier, MaskedLM, pool
from modernbert.serving.scheduler import Finish
from modernbert.tokenizer.input_templates import EncodedText, InputTemplate

__all__ = ["REMEDY", "Pooled", "Text", "decoded", "documents_of", "forms_of", "pairs_of", "scored", "token_vectors"]

REMEDY = "with truncate it is cut"

Text = str | list[int]
"""A text, or the ids of one: taken as they are if they begin with [CLS] and end with [SEP], else put between them."""


def documents_of(
    bert: ModernBert, texts: Sequence[Text], truncate: bool, remedy: str = REMEDY, prompt: str = ""
) -> list[np.ndarray]:
    """Return the ids of texts, all given as such or all as ids, each with the special tokens.

    Raises: InputError naming the text that is too long, or ids that a prompt should stand before. What ids are of no
    token, the engine says.
    """
    tokenizer = bert.tokenizer
    if all(isinstance(text, str) for text in texts):
        documents = tokenizer.encode([prompt + text for text in texts if isinstance(text, str)])
    else:
        rows = [ids for ids in texts if not isinstance(ids, str)]
        bare = next((number for number, ids in enumerate(rows) if not tokenizer.is_complete(ids)), None)
        if prompt and bare is not None:
            raise InputError(
                f"text {bare}: found ids without special tokens, but the prompt {shown(prompt, 80)!r} stands before "
                'each text of this model. Send the text, ids with prompt and special tokens, or "prompt": "".'
            )
        documents = [
            np.asarray(ids, dtype=np.int64) if tokenizer.is_complete(ids) else tokenizer.wrap(ids) for ids in rows
        ]
    return [ids for _, ids in apply_overflow(documents, tokenizer, bert.longest, _overflow(truncate), remedy)]


def forms_of(bert: ModernBert, form: InputTemplate, texts: Sequence[Text], truncate: bool) -> list[EncodedText]:
    """Return texts laid out as the model was tuned to have its queries or its documents.

    Raises: InputError naming the text that is too long, or is given as ids, which no prompt can be put before.
    """
    said = [f"{form.prompt}{text}" for text in texts if isinstance(text, str)]
    if len(said) < len(texts):
        raise InputError("inputs: found ids, expected texts: ids have no place for a prompt")
    documents = bert.tokenizer.encode(said)
    kept = apply_overflow(documents, bert.tokenizer, form.longest, _overflow(truncate), REMEDY)
    return [form.lay_ids(bert.tokenizer, ids) for _, ids in kept]


def _overflow(truncate: bool) -> str:
    return "truncate" if truncate else "error"


def pairs_of(bert: ModernBert, pairs: Sequence[tuple[str, str]], truncate: bool) -> list[np.ndarray]:
    """Return the ids of pairs of texts.

    Raises: InputError naming the pair that is too long.
    """
    documents = bert.tokenizer.encode_pairs(pairs, bert.longest if truncate else None)
    return [ids for _, ids in apply_overflow(documents, bert.tokenizer, bert.longest, "error", REMEDY)]


@dataclass(frozen=True)
class Pooled:
    """Make one vector a text, float32 [D]; equal ones are made together, whoever asks."""

    bert: ModernBert
    pooling: str
    normalize: bool = True
    dimensions: int | None = None

    def __call__(self, hidden: Tensor, documents: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the vectors of documents with these hidden states [t, D]."""
        layout = SequenceLengths.from_lengths([len(each) for each in documents]).to(hidden.device)
        rows = pool(hidden.float(), layout, self.pooling)
        # The layer behind late interaction is for vectors of tokens.
        if not self.bert.is_late:
            rows = _projected(self.bert, rows)[:, : self.bert.vectors.truncate_dim]
        vectors = rows[:, : self.dimensions]
        return list((F.normalize(vectors, dim=-1) if self.normalize else vectors).cpu().numpy())


def token_vectors(bert: ModernBert, normalize: bool, dimensions: int | None = None) -> Finish:
    """Make one vector a token, float32 [its tokens, E] a text."""

    def finish(hidden: Tensor, documents: Sequence[np.ndarray]) -> list[np.ndarray]:
        vectors = _projected(bert, hidden.float())
        if bert.is_late:
            vectors = vectors[:, : bert.vectors.truncate_dim]
        vectors = vectors[:, :dimensions]
        vectors = F.normalize(vectors, dim=-1) if normalize else vectors
        return [part.cpu().numpy() for part in vectors.split([len(each) for each in documents])]

    return finish


def scored(model: Classifier) -> Finish:
    """Make the scores of each text [labels]; of a tagger, the likeliest label of each token and its probability."""

    def finish(hidden: Tensor, documents: Sequence[np.ndarray]) -> list[Any]:
        layout = SequenceLengths.from_lengths([len(each) for each in documents]).to(hidden.device)
        weight = model.classifier.weight
        with autocast(weight.device, weight.dtype):
            scores = model.head_logits(hidden, layout).float().cpu()
        if not model.scores_tokens:
            return list(scores.numpy())
        # All scores of a request's tokens would take memory by the number of labels.
        shares, best = scores.softmax(dim=1).max(dim=1)
        sizes = list(layout.lengths)
        return [(of.numpy(), share.numpy()) for of, share in zip(best.split(sizes), shares.split(sizes), strict=True)]

    return finish


def decoded(bert: ModernBert, model: MaskedLM, top_k: int) -> Finish:
    """Make the likeliest tokens of each mask of a text: (ids, probabilities), each [masks, k]."""

    def finish(hidden: Tensor, documents: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        found = []
        for part, ids in zip(hidden.split([len(each) for each in documents]), documents, strict=True):
            rows = part[torch.from_numpy(np.flatnonzero(ids == bert.tokenizer.mask_id)).to(part.device)]
            found.append(likeliest(model, rows, top_k, bert.tokenizer.vocab_size))
        return found

    return finish


def _projected(bert: ModernBert, vectors: Tensor) -> Tensor:
    if bert.projection is None:
        return vectors
    return bert.projection(vectors.to(bert.projection.weight.dtype)).float()
