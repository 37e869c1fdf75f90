"""Training steps of this package and of `transformers` with its Trainer, on documents of the same lengths.

In: a system by name, lengths, where to compute. Out: real tokens a second, peak memory, operations a second. Each
system runs in a process of its own. The peer comes in three ways:

- `trainer`: what its documentation shows: rows in random order, padded to the longest, logits of every position.
- `trainer-best`: rows grouped by length, logits of masked positions alone.
- `trainer-concatenated`: documents end to end, cut into full rows: no padding, but a document sees its neighbours, so
  it is another model that is trained.

Optimizers are those that each brings: StableAdamW here, AdamW there.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.hf_trainer import (
    GROUPED_BATCHES,
    config_of_transformers,
    grouped,
    import_trainer,
    time_trainer,
)
from benchmarks.peers import pad
from benchmarks.process import in_new_process
from modernbert.devices import choose_device, peak_memory
from modernbert.engines.registry import choose_engine
from modernbert.errors import InputError
from modernbert.model.config import ModelConfig
from modernbert.planning.step_timing import time_steps
from modernbert.training.flops import step_flops

__all__ = ["SYSTEMS", "TrainingRow", "TrainingWork", "measure_training", "mixed_lengths"]

SYSTEMS = ("modernbert", "trainer", "trainer-best", "trainer-concatenated")
_MASK_RATE = 0.3
# Ids that every vocabulary has.
_FIRST_ID, _LAST_ID, _MASK_ID = 100, 3_999, 99


@dataclass(frozen=True)
class TrainingWork:
    """A system, its model, the lengths of the documents of one step, and how many steps to time."""

    system: str
    model: ModelConfig
    lengths: Sequence[int]
    num_steps: int
    device: str
    dtype: str
    seed: int = 0


@dataclass(frozen=True)
class TrainingRow:
    """What was measured. Units: real tokens and operations per second, bytes."""

    system: str
    setting: str
    tokens_per_s: float
    flops_per_s: float
    peak_memory: int
    real_share: float


def mixed_lengths(num_tokens: int, longest: int = 1024, seed: int = 42) -> list[int]:
    """Return lengths of documents as they come: log-normal about a median of 200 tokens, cut at the longest."""
    random = np.random.default_rng(seed)
    lengths: list[int] = []
    total = 0
    while total < num_tokens:
        lengths.append(int(np.clip(random.lognormal(5.3, 1.2), 8, longest)))
        total += lengths[-1]
    lengths[-1] -= total - num_tokens
    return [length for length in lengths if length > 0]


def measure_training(work: TrainingWork) -> TrainingRow:
    """Measure in a new process.

    Raises: InputError for an unknown system, one whose library is absent, or a model that does not fit.
    """
    if work.system not in SYSTEMS:
        raise InputError(f"systems: found {work.system!r}, expected {', '.join(SYSTEMS)}")
    return in_new_process(_ours if work.system == "modernbert" else _trainer, work)


def _ours(work: TrainingWork) -> TrainingRow:
    device, dtype = choose_device(work.device), getattr(torch, work.dtype)
    engine = choose_engine("auto", device, dtype, work.model)
    _, *seconds = time_steps(
        work.model, work.lengths, device=device, dtype=dtype, engine=engine, num_steps=work.num_steps,
        mask_rate=_MASK_RATE,
    )  # fmt: skip
    return _row(work, f"ragged, {engine.name}", sum(work.lengths) / statistics.median(seconds), device, 1.0)


def _row(work: TrainingWork, setting: str, tokens_per_s: float, device: torch.device, real_share: float) -> TrainingRow:
    num_tokens = sum(work.lengths)
    flops = step_flops(work.model, work.lengths, round(_MASK_RATE * num_tokens)) / num_tokens
    return TrainingRow(work.system, setting, tokens_per_s, tokens_per_s * flops, peak_memory(device), real_share)


def _trainer(work: TrainingWork) -> TrainingRow:
    transformers = import_trainer()
    device, shape = choose_device(work.device), work.model
    model = transformers.ModernBertForMaskedLM._from_config(
        config_of_transformers(shape, sparse_prediction=work.system == "trainer-best"), attn_implementation="sdpa"
    )
    rows, batch_rows = _rows(work)
    speed = time_trainer(
        model, rows, lambda rows, number: _padded_batch(rows, work.seed + number), batch_rows=batch_rows,
        num_steps=work.num_steps, in_order=work.system == "trainer-best", device=device, dtype=work.dtype,
        seed=work.seed,
    )  # fmt: skip
    return _row(work, "padded, sdpa", speed.tokens_per_s, device, speed.real_share)


def _rows(work: TrainingWork) -> tuple[list[dict[str, Any]], int]:
    """Return rows for all steps, and how many make about as many real tokens a step as ours takes."""
    random = np.random.default_rng(work.seed)
    lengths = list(work.lengths) * (work.num_steps + 3)
    if work.system == "trainer-concatenated":
        longest = max(work.lengths)
        lengths = [longest] * (sum(lengths) // longest)
    batch_rows = max(1, round(sum(work.lengths) * len(lengths) / sum(lengths)))
    if work.system == "trainer-best":
        lengths = grouped(GROUPED_BATCHES * list(work.lengths), batch_rows, work.num_steps)
    rows = [{"input_ids": random.integers(_FIRST_ID, _LAST_ID + 1, length)} for length in lengths]
    return rows, batch_rows


def _padded_batch(rows: Sequence[dict[str, Any]], seed: int) -> dict[str, torch.Tensor]:
    """Pad rows to the longest, and mask 30 % of the real tokens."""
    ids, mask = map(torch.from_numpy, pad([row["input_ids"] for row in rows]))
    random = np.random.default_rng(seed)
    chosen = torch.from_numpy(random.random(ids.shape) < _MASK_RATE) & mask.bool()
    return {
        "input_ids": ids.masked_fill(chosen, _MASK_ID), "attention_mask": mask, "labels": ids.masked_fill(~chosen, -100)
    }  # fmt: skip
