"""Fine-tuning steps of a classifier with two labels, with this package and with the Trainer of `transformers`.

Each system runs in its own process, on random texts with the lengths of a known dataset. The Trainer has two variants:

- `trainer`, as documented: rows in random order, padded to the longest of a batch.
- `trainer-best`: rows grouped by length.
"""

import time
from collections.abc import Iterator, Sequence
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
from modernbert.batch import Batch, SequenceLengths
from modernbert.devices import choose_device, keep_freed_memory, peak_memory
from modernbert.engines.registry import choose_engine, find_optimizer_kernels
from modernbert.errors import InputError
from modernbert.model.config import ModelConfig
from modernbert.model.heads import Classifier
from modernbert.model.initialization import initialize
from modernbert.tasks.head_losses import cross_entropy_loss
from modernbert.tasks.task import classifier_task
from modernbert.training.distributed import Objective
from modernbert.training.finetuning_loop import LinearPlan
from modernbert.training.optimizers import StableAdamW, parameter_groups
from modernbert.training.training_loop import train

__all__ = ["SETS", "SYSTEMS", "FinetuningRow", "FinetuningWork", "lengths_of", "measure_finetuning"]

SYSTEMS = ("modernbert", "trainer", "trainer-best")
SETS = {
    "cola": (4, 7, 8, 9, 10, 11, 11, 12, 14, 17, 47),
    "sst2": (3, 5, 6, 7, 9, 10, 13, 16, 20, 27, 67),
    "stsb": (11, 17, 19, 20, 22, 24, 26, 29, 36, 52, 127),
    "banking77": (4, 9, 10, 11, 12, 13, 14, 16, 18, 27, 93),
}
"""Tokens of the training rows with special tokens: minimum, nine deciles, maximum (tokenizer of ModernBERT)."""
# Token ids that every vocabulary has.
_FIRST_ID, _LAST_ID = 100, 3_999


@dataclass(frozen=True)
class FinetuningWork:
    """One measurement: a system, the model, the dataset of the lengths, rows per step, number of timed steps."""

    system: str
    model: ModelConfig
    set: str
    batch: int
    num_steps: int
    device: str
    dtype: str
    seed: int = 0


@dataclass(frozen=True)
class FinetuningRow:
    """Result of a measurement. Units: real tokens per second, bytes."""

    system: str
    set: str
    setting: str
    tokens_per_s: float
    peak_memory: int
    real_share: float


def lengths_of(name: str, number: int, seed: int) -> list[int]:
    """Return random lengths, uniform between the deciles of a set.

    >>> min(lengths_of("cola", 1000, seed=0)) >= 4, max(lengths_of("cola", 1000, seed=0)) <= 47
    (True, True)
    """
    ranks = np.random.default_rng(seed).random(number) * 10
    return [int(length) for length in np.interp(ranks, range(11), SETS[name]).round()]


def measure_finetuning(work: FinetuningWork) -> FinetuningRow:
    """Measure in a new process.

    Raises: InputError for an unknown system or set, a library that is not installed, or a model that does not fit.
    """
    for key, found, known in (("systems", work.system, SYSTEMS), ("sets", work.set, SETS)):
        if found not in known:
            raise InputError(f"{key}: found {found!r}, expected {', '.join(known)}")
    return in_new_process(_ours if work.system == "modernbert" else _trainer, work)


def _ours(work: FinetuningWork) -> FinetuningRow:
    keep_freed_memory()  # as fine-tuning does
    device, dtype = choose_device(work.device), getattr(torch, work.dtype)
    engine = choose_engine("auto", device, dtype, work.model)
    model = Classifier(work.model, classifier_task("classify").head_spec, ["no", "yes"], engine)
    initialize(model, work.model, seed=0)
    model.to(device)
    optimizer = StableAdamW(parameter_groups(model, 1e-5), lr=8e-5, kernels=find_optimizer_kernels(device))
    rows = _random_rows(lengths_of(work.set, work.batch * (work.num_steps + 1), work.seed), work.seed)

    def batches() -> Iterator[Batch]:
        for first in range(0, len(rows), work.batch):
            some = rows[first : first + work.batch]
            tokens = torch.from_numpy(np.concatenate([row["input_ids"] for row in some]))
            labels = torch.tensor([row["labels"] for row in some])
            yield Batch(tokens, SequenceLengths.from_lengths([len(row["input_ids"]) for row in some]), None, labels)

    steps = train(
        Objective(model, cross_entropy_loss()), optimizer, LinearPlan(work.num_steps + 1, 8e-5, 0.1, lambda step: 1),
        batches(), seed=work.seed, device=device, dtype=dtype,
    )  # fmt: skip
    next(steps)  # warm-up
    begun = time.perf_counter()
    num_tokens = sum(result.num_tokens for _, result in steps)
    speed = num_tokens / (time.perf_counter() - begun)
    return FinetuningRow(work.system, work.set, f"ragged, {engine.name}", speed, peak_memory(device), 1.0)


def _trainer(work: FinetuningWork) -> FinetuningRow:
    keep_freed_memory()  # as in `_ours`
    transformers = import_trainer()
    device = choose_device(work.device)
    model = transformers.ModernBertForSequenceClassification._from_config(
        config_of_transformers(work.model, num_labels=2, classifier_pooling=work.model.classifier_pooling),
        attn_implementation="sdpa",
    )
    is_best = work.system == "trainer-best"
    lengths = lengths_of(work.set, work.batch * max(GROUPED_BATCHES, work.num_steps + 1), work.seed)
    speed = time_trainer(
        model, _random_rows(grouped(lengths, work.batch, work.num_steps) if is_best else lengths, work.seed),
        lambda rows, number: _padded(rows), batch_rows=work.batch, num_steps=work.num_steps, in_order=is_best,
        device=device, dtype=work.dtype, seed=work.seed,
    )  # fmt: skip
    return FinetuningRow(
        work.system, work.set, "padded, sdpa", speed.tokens_per_s, peak_memory(device), speed.real_share
    )


def _random_rows(lengths: Sequence[int], seed: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    return [
        {"input_ids": random.integers(_FIRST_ID, _LAST_ID + 1, length), "labels": int(random.integers(2))}
        for length in lengths
    ]


def _padded(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    ids, mask = map(torch.from_numpy, pad([row["input_ids"] for row in rows]))
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([row["labels"] for row in rows])}
