"""Training steps of this package and of `transformers` with its Trainer, on documents of the same lengths.

In: a system by name, lengths, where to compute. Out: real tokens a second, peak memory, operations a second. Each
system runs in a process of its own. The peer comes in three ways:

- `trainer`: what its documentation shows: rows in random order, padded to the longest, logits of every position.
- `trainer-best`: rows grouped by length, logits of masked positions alone. The Trainer groups among 50 batches of rows;
  of those a short run takes the batches at equal distances, the longest first.
- `trainer-concatenated`: documents end to end, cut into full rows: no padding, but a document sees its neighbours, so
  it is another model that is trained.

Optimizers are those that each brings: StableAdamW here, AdamW there.
"""

import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from modernbert.bench.peers import Absent
from modernbert.bench.process import in_new_process
from modernbert.bench.steps import time_steps
from modernbert.device import choose_device, peak_memory
from modernbert.errors import InputError
from modernbert.model.attention import choose_backend
from modernbert.model.config import ModelConfig
from modernbert.train.flops import step_flops

__all__ = ["SYSTEMS", "TrainingRow", "TrainingWork", "measure_training", "mixed_lengths"]

SYSTEMS = ("modernbert", "trainer", "trainer-best", "trainer-concatenated")
_MASK_RATE = 0.3
_GROUPED_BATCHES = 50  # of `transformers.trainer_pt_utils.get_length_grouped_indices`
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
    while sum(lengths) < num_tokens:
        lengths.append(int(np.clip(random.lognormal(5.3, 1.2), 8, longest)))
    lengths[-1] -= sum(lengths) - num_tokens
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
    backend = choose_backend("auto", device, dtype, work.model)
    _, *seconds = time_steps(
        work.model, work.lengths, device=device, dtype=dtype, backend=backend, num_steps=work.num_steps,
        mask_rate=_MASK_RATE,
    )  # fmt: skip
    return _row(work, f"ragged, {backend}", sum(work.lengths) / statistics.median(seconds), device, 1.0)


def _row(work: TrainingWork, setting: str, tokens_per_s: float, device: torch.device, real_share: float) -> TrainingRow:
    num_tokens = sum(work.lengths)
    flops = step_flops(work.model, work.lengths, round(_MASK_RATE * num_tokens)) / num_tokens
    return TrainingRow(work.system, setting, tokens_per_s, tokens_per_s * flops, peak_memory(device), real_share)


def _trainer(work: TrainingWork) -> TrainingRow:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        from transformers import ModernBertConfig, ModernBertForMaskedLM, Trainer, TrainerCallback, TrainingArguments
    except ImportError:
        raise Absent("transformers is not installed") from None
    if importlib.util.find_spec("accelerate") is None:
        raise Absent("the Trainer needs accelerate, which is not installed")
    device = choose_device(work.device)
    shape = work.model
    model = ModernBertForMaskedLM._from_config(
        ModernBertConfig(
            vocab_size=shape.vocab_size, hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_hidden_layers, num_attention_heads=shape.num_attention_heads,
            max_position_embeddings=shape.max_position_embeddings, sparse_prediction=work.system == "trainer-best",
            pad_token_id=0, bos_token_id=1, cls_token_id=1, eos_token_id=2, sep_token_id=2,
        ),
        attn_implementation="sdpa",
    )  # fmt: skip
    rows, batch_rows = _rows(work)
    tokens: list[int] = []
    places: list[int] = []
    marks: list[float] = []

    def collate(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = _padded_batch([feature["input_ids"] for feature in features], work.seed + len(tokens))
        tokens.append(int(batch["attention_mask"].sum()))
        places.append(batch["attention_mask"].numel())
        return batch

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=work.num_steps + 1, per_device_train_batch_size=batch_rows,
            bf16=work.dtype == "bfloat16", use_cpu=device.type == "cpu", seed=work.seed, max_grad_norm=0.0,
            train_sampling_strategy="sequential" if work.system == "trainer-best" else "random",
            remove_unused_columns=False, save_strategy="no", report_to="none", logging_steps=1000, disable_tqdm=True,
        )  # fmt: skip
        Trainer(model, arguments, data_collator=collate, train_dataset=rows, callbacks=[Watch()]).train()
    timed = slice(1, len(marks))  # collating runs ahead of steps; the first step warms up
    share = sum(tokens[timed]) / sum(places[timed])
    return _row(work, "padded, sdpa", sum(tokens[timed]) / (marks[-1] - marks[0]), device, share)


def _rows(work: TrainingWork) -> tuple[list[dict[str, Any]], int]:
    """Return rows for all steps, and how many make about as many real tokens a step as ours takes."""
    random = np.random.default_rng(work.seed)
    lengths = list(work.lengths) * (work.num_steps + 3)
    if work.system == "trainer-concatenated":
        longest = max(work.lengths)
        lengths = [longest] * (sum(lengths) // longest)
    batch_rows = max(1, round(sum(work.lengths) * len(lengths) / sum(lengths)))
    if work.system == "trainer-best":
        lengths = _grouped(work.lengths, batch_rows, work.num_steps)
    rows = [{"input_ids": random.integers(_FIRST_ID, _LAST_ID + 1, length)} for length in lengths]
    return rows, batch_rows


def _grouped(lengths: Sequence[int], batch_rows: int, num_steps: int) -> list[int]:
    """Return the rows of the longest batch and of `num_steps` others, as grouping by length would make them."""
    in_order = sorted(_GROUPED_BATCHES * list(lengths), reverse=True)
    num_batches = len(in_order) // batch_rows
    chosen = [0, *(int((step + 0.5) / num_steps * num_batches) for step in range(num_steps))]
    return [length for batch in chosen for length in in_order[batch * batch_rows : (batch + 1) * batch_rows]]


def _padded_batch(rows: Sequence[np.ndarray], seed: int) -> dict[str, torch.Tensor]:
    """Pad rows to the longest, and mask 30 % of the real tokens."""
    random = np.random.default_rng(seed)
    shape = len(rows), max(map(len, rows))
    tokens, mask, labels = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.full(shape, -100)
    for number, row in enumerate(rows):
        chosen = random.random(len(row)) < _MASK_RATE
        tokens[number, : len(row)] = np.where(chosen, _MASK_ID, row)
        mask[number, : len(row)] = 1
        labels[number, : len(row)] = np.where(chosen, row, -100)
    arrays = {"input_ids": tokens, "attention_mask": mask, "labels": labels}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
