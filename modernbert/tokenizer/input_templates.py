"""Input templates of embedding models: prompt, truncation, query expansion, and tokens without a vector.

Source: Khattab & Zaharia 2020 (ColBERT): markers, queries padded with [MASK], punctuation without vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from modernbert.batch import Batch
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["InputTemplate", "EncodedText", "collate_texts"]


@dataclass(frozen=True)
class EncodedText:
    """The ids of one text, and the positions of the tokens that have a vector; None for all."""

    tokens: np.ndarray
    label_positions: np.ndarray | None = None

    @property
    def num_rows(self) -> int:
        """Number of tokens that have a vector."""
        return len(self.tokens) if self.label_positions is None else len(self.label_positions)


@dataclass(frozen=True)
class InputTemplate:
    """How a text is encoded: with `prompt` before it and at most `max_length` tokens, special tokens included.

    With `expand`, a shorter text is padded to `max_length` with [MASK] tokens, which the text attends to. The
    model reads the tokens in `skip`, but they have no vector.
    """

    max_length: int
    prompt: str = ""
    expand: bool = False
    skip: frozenset[int] = frozenset()

    def encode(self, tokenizer: Tokenizer, texts: Sequence[str], first: int = 0) -> tuple[list[EncodedText], int]:
        """Encode texts; return them and how many of them were truncated.

        Args:
            tokenizer: The tokenizer.
            texts: The texts.
            first: The number of the first text, for errors.

        Raises:
            InputError: A text has an unpaired surrogate; names the text by its number.
        """
        encoded = tokenizer.encode([self.prompt + text for text in texts], first=first)
        num_truncated = sum(len(ids) > self.max_length for ids in encoded)
        return [self.apply(tokenizer, tokenizer.truncate(ids, self.max_length)) for ids in encoded], num_truncated

    def apply(self, tokenizer: Tokenizer, ids: np.ndarray) -> EncodedText:
        """Apply the template to ids that have the prompt and are not too long."""
        if self.expand:
            ids = np.append(ids, np.full(self.max_length - len(ids), tokenizer.mask_id, dtype=np.int64))
        if not self.skip:
            return EncodedText(ids)
        kept = np.flatnonzero(~np.isin(ids, list(self.skip)))
        return EncodedText(ids, kept)


def collate_texts(texts: Sequence[EncodedText]) -> Batch:
    """Collate encoded texts into a batch, with `label_positions` if a text has them."""
    batch = Batch.from_documents([each.tokens for each in texts])
    if all(each.label_positions is None for each in texts):
        return batch
    starts = batch.layout.starts.tolist()
    places = [np.arange(len(each.tokens)) if each.label_positions is None else each.label_positions for each in texts]
    rows = np.concatenate([start + place for start, place in zip(starts, places, strict=True)])
    return replace(batch, label_positions=torch.from_numpy(rows.astype(np.int64)))
