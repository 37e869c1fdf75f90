"""Time the Trainer of `transformers`.

The Trainer groups rows by length within 50 batches. A short run takes batches of those at equal distances, the longest
first.
"""

import importlib
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.peers import Absent
from modernbert.model.config import ModelConfig

__all__ = ["GROUPED_BATCHES", "TrainerSpeed", "config_of_transformers", "grouped", "import_trainer", "time_trainer"]

GROUPED_BATCHES = 50  # of `transformers.trainer_pt_utils.get_length_grouped_indices`


@dataclass(frozen=True)
class TrainerSpeed:
    """Result of a measurement; `real_share` is the share of positions that are not padding."""

    tokens_per_s: float
    real_share: float


def import_trainer() -> Any:
    """Return `transformers`.

    Raises: Absent if it, or accelerate, is not installed.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        raise Absent("transformers is not installed: pip install --group peers") from None
    if importlib.util.find_spec("accelerate") is None:
        raise Absent("the Trainer needs accelerate, which is not installed: pip install --group peers")
    return transformers


def config_of_transformers(shape: ModelConfig, **more: Any) -> Any:
    """Return the config of a ModernBERT of this shape in `transformers`."""
    return import_trainer().ModernBertConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers, num_attention_heads=shape.num_attention_heads,
        max_position_embeddings=shape.max_position_embeddings, pad_token_id=0, bos_token_id=1, cls_token_id=1,
        eos_token_id=2, sep_token_id=2, **more,
    )  # fmt: skip


def time_trainer(
    model: Any,
    rows: Sequence[dict[str, Any]],
    collate: Callable[[Sequence[dict[str, Any]], int], dict[str, torch.Tensor]],
    *,
    batch_rows: int,
    num_steps: int,
    in_order: bool,
    device: torch.device,
    dtype: str,
    seed: int,
) -> TrainerSpeed:
    """Train for `num_steps` steps after one that warms up, on rows in order or in random order.

    `collate(rows, number)` returns the batch of that number.
    """
    transformers = import_trainer()
    tokens: list[int] = []
    places: list[int] = []
    marks: list[float] = []

    def collate_and_count(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = collate(rows, len(tokens))
        tokens.append(int(batch["attention_mask"].sum()))
        places.append(batch["attention_mask"].numel())
        return batch

    class Watch(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder, max_steps=num_steps + 1, per_device_train_batch_size=batch_rows,
            bf16=dtype == "bfloat16", use_cpu=device.type == "cpu", seed=seed, max_grad_norm=0.0,
            train_sampling_strategy="sequential" if in_order else "random", remove_unused_columns=False,
            save_strategy="no", report_to="none", logging_steps=1000, disable_tqdm=True,
        )  # fmt: skip
        trainer = transformers.Trainer(
            model, arguments, data_collator=collate_and_count, train_dataset=rows, callbacks=[Watch()]
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    timed = slice(1, len(marks))  # collate is ahead of the steps; the first step warms up
    return TrainerSpeed(sum(tokens[timed]) / (marks[-1] - marks[0]), sum(tokens[timed]) / sum(places[timed]))


def grouped(lengths: Sequence[int], batch_rows: int, num_steps: int) -> list[int]:
    """Return the lengths of the longest batch and of `num_steps` others, as grouped by length."""
    in_order = sorted(lengths, reverse=True)
    num_batches = len(in_order) // batch_rows
    chosen = [0, *(int((step + 0.5) / num_steps * num_batches) for step in range(num_steps))]
    return [length for batch in chosen for length in in_order[batch * batch_rows : (batch + 1) * batch_rows]]
