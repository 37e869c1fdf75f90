"""The reference engine: masked softmax over the whole stream. The other engines are tested against it."""

import math

import torch
from torch import Tensor

from modernbert.batch import SequenceLengths
from modernbert.engines.engine import AttentionFn, Engine, Rope, RopeAttention, Window

__all__ = ["ReferenceEngine"]


class ReferenceEngine(Engine):
    """Compute everything with torch, with scores of all pairs of tokens; for tests."""

    name = "reference"

    def plan_attention(self, lengths: SequenceLengths, window: Window, rope: Rope, dtype: torch.dtype) -> AttentionFn:
        """Return softmax attention under a mask [T, T]."""
        doc_ids = lengths.doc_ids()
        allowed = doc_ids[:, None] == doc_ids[None, :]
        if window is not None:
            offset = lengths.positions[None, :] - lengths.positions[:, None]
            allowed &= (offset >= -window[0]) & (offset <= window[1])

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            scores = torch.einsum("qhk,shk->hqs", q, k) / math.sqrt(q.shape[-1])
            weights = scores.masked_fill(~allowed, -math.inf).softmax(dim=-1)
            return torch.einsum("hqs,shk->qhk", weights, v)

        return RopeAttention(rope, attend)
