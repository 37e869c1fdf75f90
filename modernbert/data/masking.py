"""Masking for masked language modeling: chooses the positions to predict and replaces their tokens."""

import numpy as np
from jaxtyping import Bool, Int64

__all__ = ["mask_tokens"]

MASKED, REPLACED = 0.8, 0.1


def mask_tokens(
    tokens: Int64[np.ndarray, " T"],
    rng: np.random.Generator,
    *,
    rate: float,
    mask_id: int,
    is_special: Bool[np.ndarray, " V"],
    ordinary_ids: Int64[np.ndarray, " _"],
) -> tuple[Int64[np.ndarray, " T"], Int64[np.ndarray, " M"], Int64[np.ndarray, " M"]]:
    """Choose each ordinary token with probability `rate`; return (masked tokens, chosen positions, their labels).

    Of the chosen tokens, 80 % become [MASK], 10 % an id drawn uniformly from `ordinary_ids`, and 10 % stay. Special
    tokens are never chosen and never drawn.

    Source: BERT (80/10/10); ModernBERT trains at rate 0.3. One uniform number per position decides, as in the reference
    code, which differs in that it lets special tokens be chosen and drawn.
    """
    draw = rng.random(len(tokens))
    where = np.flatnonzero((draw < rate) & ~is_special[tokens])
    labels = tokens[where]
    draw = draw[where]
    to_mask = draw < MASKED * rate
    to_replace = ~to_mask & (draw < (MASKED + REPLACED) * rate)
    masked = tokens.copy()
    masked[where[to_mask]] = mask_id
    masked[where[to_replace]] = rng.choice(ordinary_ids, size=int(to_replace.sum()))
    return masked, where, labels
