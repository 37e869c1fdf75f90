"""A model with another vocabulary.

In: weights, and for each new entry the old entries it is made of. Out: weights with an embedding and a decoder bias of
the new size; all else is untouched, so what the model knows of language is kept.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["change_vocabulary"]

# Tensors with a row for each entry.
_BY_ENTRY = ("model.embeddings.tok_embeddings.weight", "decoder.bias")


def change_vocabulary(
    weights: Mapping[str, Tensor], entries: Sequence[Sequence[int]], vocab_size: int
) -> dict[str, Tensor]:
    """Return the weights of a `MaskedLM` with `vocab_size` entries.

    A new row is the mean of its old ones: the same row, to the bit, where there is one. Rows made of nothing, and those
    beyond the entries, are the mean of all old rows.
    """
    changed = dict(weights)
    for name in _BY_ENTRY:
        old = weights[name]
        rows = old.mean(dim=0, keepdim=True).repeat(vocab_size, *[1] * (old.ndim - 1))
        for token, made_of in enumerate(entries):
            if len(made_of) == 1:
                rows[token] = old[made_of[0]]
            elif made_of:
                rows[token] = old[torch.tensor(made_of)].mean(dim=0)
        changed[name] = rows
    return changed
