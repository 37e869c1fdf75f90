"""Steps of masked-LM training with this package and with the Trainer of `transformers`, on documents of equal lengths.

Each system runs in its own process, with its own optimizer (StableAdamW, AdamW). The Trainer has three variants:

- `trainer`, as documented: rows in random order, padded to the longest, logits of every position.
- `trainer-best`: rows grouped by length, logits of masked positions only.
- `trainer-concatenated`: documents concatenated and split into full rows: no padding, but documents attend to their
  neighbors, so the result is not the same model.
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
# Token ids that every vocabulary has.
_FIRST_ID, _LAST_ID, _MASK_ID = 100, 3_999, 99


@dataclass(frozen=True)
class TrainingWork:
    """One measurement: a system, the model, the lengths of the documents of one step, number of timed steps."""

    system: str
    model: ModelConfig
    lengths: Sequence[int]
    num_steps: int
    device: str
    dtype: str
    seed: int = 0


@dataclass(frozen=True)
class TrainingRow:
    """Result of a measurement. Units: real tokens and floating-point operations per second, bytes."""

    system: str
    setting: str
    tokens_per_s: float
    flops_per_s: float
    peak_memory: int
    real_share: float


def mixed_lengths(num_tokens: int, longest: int = 1024, seed: int = 42) -> list[int]:
    """Return log-normal lengths of documents with a median of 200 tokens, truncated at `longest`."""
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

    Raises: InputError for an unknown system, a library that is not installed, or a model that does not fit.
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
    """Return rows for all steps, and the rows per step with about as many real tokens as ours."""
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
    """Return rows padded to the longest, with 30 % of the real tokens masked."""
    ids, mask = map(torch.from_numpy, pad([row["input_ids"] for row in rows]))
    random = np.random.default_rng(seed)
    chosen = torch.from_numpy(random.random(ids.shape) < _MASK_RATE) & mask.bool()
    return {
        "input_ids": ids.masked_fill(chosen, _MASK_ID), "attention_mask": mask, "labels": ids.masked_fill(~chosen, -100)
    }  # fmt: skip
