"""How a text is laid out before it becomes vectors: queries one way, documents another.

In: texts, a tokenizer. Out: token ids, and which of them give vectors. A file of its own because training and use must
lay texts out alike.

Source: Khattab & Zaharia 2020 (ColBERT): markers, queries filled up with [MASK], punctuation without vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from modernbert.batch import Batch
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["InputTemplate", "EncodedText", "encode_with_template"]


@dataclass(frozen=True)
class EncodedText:
    """Hold the ids of one text, and the places whose vectors count; None: all."""

    tokens: np.ndarray
    label_positions: np.ndarray | None = None

    @property
    def num_rows(self) -> int:
        """Number of its tokens that give vectors."""
        return len(self.tokens) if self.label_positions is None else len(self.label_positions)


@dataclass(frozen=True)
class InputTemplate:
    """Lay texts out: `prompt` before each, at most `longest` tokens, special tokens included.

    With `expand`, a shorter text is filled up to `longest` with [MASK], which the text attends to. Tokens among `skip`
    are seen by the model, but have no vector.
    """

    longest: int
    prompt: str = ""
    expand: bool = False
    skip: frozenset[int] = frozenset()

    def lay(self, tokenizer: Tokenizer, texts: Sequence[str], first: int = 0) -> tuple[list[EncodedText], int]:
        """Return the texts laid out, and how many of them were cut.

        Raises: InputError naming the text that holds a lone surrogate, counted from `first`.
        """
        encoded = tokenizer.encode([self.prompt + text for text in texts], first=first)
        num_cut = sum(len(ids) > self.longest for ids in encoded)
        return [self.lay_ids(tokenizer, tokenizer.cut(ids, self.longest)) for ids in encoded], num_cut

    def lay_ids(self, tokenizer: Tokenizer, ids: np.ndarray) -> EncodedText:
        """Return a text laid out whose ids have the prompt and fit."""
        if self.expand:
            ids = np.append(ids, np.full(self.longest - len(ids), tokenizer.mask_id, dtype=np.int64))
        if not self.skip:
            return EncodedText(ids)
        kept = np.flatnonzero(~np.isin(ids, list(self.skip)))
        return EncodedText(ids, kept)


def encode_with_template(texts: Sequence[EncodedText]) -> Batch:
    """Lay texts end to end; `label_positions` of the batch are those of the texts, if any text has some."""
    batch = Batch.from_documents([each.tokens for each in texts])
    if all(each.label_positions is None for each in texts):
        return batch
    starts = batch.layout.starts.tolist()
    places = [np.arange(len(each.tokens)) if each.label_positions is None else each.label_positions for each in texts]
    rows = np.concatenate([start + place for start, place in zip(starts, places, strict=True)])
    return replace(batch, label_positions=torch.from_numpy(rows.astype(np.int64)))
