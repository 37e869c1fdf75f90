"""Outputs of a model, made from its hidden states: vectors of texts and tokens, guesses for masks, scores of labels.

The library, the HTTP server, the sentence-transformers module, mteb and the benchmarks all make their outputs here.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from modernbert.batch import Batch, SequenceLengths, batch_by_size
from modernbert.devices import autocast, serial_torch
from modernbert.errors import InputError
from modernbert.model.embedder import finish_vectors
from modernbert.model.heads import pool
from modernbert.model.interface import Model
from modernbert.tokenizer.input_templates import EncodedText

__all__ = ["LabelScores", "MaskGuesses", "Output", "PooledVectors", "TokenVectors", "compute", "is_finite"]

# Logits computed at a time, 16 MiB in float32: a row is as wide as the vocabulary, or has a number for every label.
_MAX_LOGITS = 2**22


Output = Callable[[Tensor, Sequence[EncodedText]], Sequence[Any] | np.ndarray]
"""(hidden states of some texts [T, D], the texts) -> the output of each. Equal outputs are made in one call."""


@dataclass(frozen=True)
class PooledVectors:
    """One vector for each text, float32 [N, E]: pooled, projected, truncated, normalized.

    Args:
        pooling: `mean` of the tokens, or the first token (`cls`).
        projection: The linear layer after pooling, if the model has one.
        truncate_dim: Keep the first components only.
        normalize: Scale to length 1.
    """

    pooling: str
    projection: nn.Linear | None = None
    truncate_dim: int | None = None
    normalize: bool = True

    def __call__(self, hidden: Float[Tensor, "T D"], texts: Sequence[EncodedText]) -> Float32[np.ndarray, "N E"]:
        """Return the vectors of texts."""
        return self.of_batch(hidden, _lengths_of(texts, hidden.device)).cpu().numpy()

    def of_batch(self, hidden: Float[Tensor, "T D"], layout: SequenceLengths) -> Float32[Tensor, "N E"]:
        """Return the vectors of a batch's documents, on its device."""
        with serial_torch(len(hidden)):
            rows = pool(hidden.float(), layout, self.pooling)
            return finish_vectors(rows, self.projection, self.truncate_dim, self.normalize)


@dataclass(frozen=True)
class TokenVectors:
    """One vector for each token, float32 [its tokens, E] a text: projected, truncated, normalized.

    A text with `label_positions` has vectors of these tokens only. The arguments are as in `PooledVectors`.
    """

    projection: nn.Linear | None = None
    truncate_dim: int | None = None
    normalize: bool = False

    def __call__(self, hidden: Float[Tensor, "T D"], texts: Sequence[EncodedText]) -> list[np.ndarray]:
        """Return the vectors of each text's tokens."""
        with serial_torch(len(hidden)):
            rows = finish_vectors(_rows_of(hidden, texts), self.projection, self.truncate_dim, self.normalize)
        return _split(rows.cpu().numpy(), texts)


@dataclass(frozen=True)
class MaskGuesses:
    """The likeliest tokens at each mask of a text and their probabilities, each [its masks, top_k].

    Rows are decoded a few at a time, so that memory does not grow with the number of masks. Entries of the model's
    vocabulary from `vocab_size` on are padding and are never guessed.
    """

    model: Model
    mask_id: int
    vocab_size: int
    top_k: int

    def __call__(
        self, hidden: Float[Tensor, "T D"], texts: Sequence[EncodedText]
    ) -> list[tuple[Int64[np.ndarray, "_ k"], Float32[np.ndarray, "_ k"]]]:
        """Return the guesses for each text's masks."""
        masks = [EncodedText(each.tokens, np.flatnonzero(each.tokens == self.mask_id)) for each in texts]
        rows = _rows_of(hidden, masks)
        # Allocated before the logits: arrays between the logits of two steps would keep their memory from being reused.
        tokens = np.empty((len(rows), self.top_k), np.int64)
        probabilities = np.empty((len(rows), self.top_k), np.float32)
        for part, some in _parts(rows, self.model.vocab_size):
            logits = self.model.head_logits(some).float()[:, : self.vocab_size]
            best = logits.softmax(dim=-1).topk(self.top_k, dim=-1)
            tokens[part], probabilities[part] = best.indices.cpu().numpy(), best.values.cpu().numpy()
            del logits, best
        return list(zip(_split(tokens, masks), _split(probabilities, masks), strict=True))


@dataclass(frozen=True)
class LabelScores:
    """The logits of each text, float32 [labels]; of a tagger, each token's likeliest label and its probability.

    A text with `label_positions` has labels of these tokens only. Not all logits of the tokens are kept, since there is
    one for every label.
    """

    model: Model

    def __call__(self, hidden: Float[Tensor, "T D"], texts: Sequence[EncodedText]) -> Sequence[Any] | np.ndarray:
        """Return the scores of each text."""
        if not self.model.scores_tokens:
            with serial_torch(len(hidden)):
                return self.model.head_logits(hidden, _lengths_of(texts, hidden.device)).float().cpu().numpy()
        rows = _rows_of(hidden, texts)
        labels = np.empty(len(rows), np.int64)
        probabilities = np.empty(len(rows), np.float32)
        for part, some in _parts(rows, self.model.num_labels):
            with autocast(some.device, self.model.dtype):
                logits = self.model.head_logits(some)
            best = logits.float().softmax(dim=1).max(dim=1)
            labels[part], probabilities[part] = best.indices.cpu().numpy(), best.values.cpu().numpy()
        return list(zip(_split(labels, texts), _split(probabilities, texts), strict=True))


def compute(
    model: Model, texts: Iterable[EncodedText], output: Output, budget_tokens: int
) -> Iterator[tuple[list[EncodedText], Sequence[Any] | np.ndarray]]:
    """Yield batches of at most `budget_tokens` tokens (a longer text is alone in its batch) and their outputs.

    Raises: InputError if the model computes NaN or infinity.
    """
    model.eval()  # the caller may have called train()
    for group in batch_by_size(texts, budget_tokens, lambda each: len(each.tokens)):
        with torch.inference_mode():
            batch = Batch.from_documents([each.tokens for each in group]).to(model.device)
            answers = output(model.encode(batch), group)
        if not is_finite(answers):
            raise InputError("The model computes values that are not finite. Its weights or its config must be wrong.")
        yield group, answers


def is_finite(answers: Any) -> bool:
    """Whether outputs hold neither NaN nor infinity.

    >>> is_finite([np.ones(2), (np.array([1]), np.array([np.nan]))])
    False
    """
    if isinstance(answers, (list, tuple)):
        return all(map(is_finite, answers))
    return not isinstance(answers, np.ndarray) or bool(np.isfinite(answers).all())


def _lengths_of(texts: Sequence[EncodedText], device: torch.device) -> SequenceLengths:
    return SequenceLengths.from_lengths([len(each.tokens) for each in texts]).to(device)


def _rows_of(hidden: Float[Tensor, "T D"], texts: Sequence[EncodedText]) -> Float[Tensor, "M D"]:
    """Return the hidden states of the tokens at `label_positions`, or of all tokens of a text without them."""
    if all(each.label_positions is None for each in texts):
        return hidden
    starts = np.cumsum([0, *(len(each.tokens) for each in texts[:-1])])
    positions = [
        start + (np.arange(len(each.tokens)) if each.label_positions is None else each.label_positions)
        for start, each in zip(starts, texts, strict=True)
    ]
    return hidden.index_select(0, torch.from_numpy(np.concatenate(positions)).to(hidden.device))


def _split(rows: np.ndarray, texts: Sequence[EncodedText]) -> list[np.ndarray]:
    """Split rows by text."""
    return np.split(rows, np.cumsum([each.num_rows for each in texts])[:-1])


def _parts(rows: Float[Tensor, "M D"], width: int) -> Iterator[tuple[slice, Float[Tensor, "m D"]]]:
    """Yield a few rows at a time, so that their outputs of a width stay within `_MAX_LOGITS` numbers."""
    step = max(1, _MAX_LOGITS // width)
    for start in range(0, len(rows), step):
        yield slice(start, start + step), rows[start : start + step]
