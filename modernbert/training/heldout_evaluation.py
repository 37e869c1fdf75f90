"""Scores on held-out text, by source and length.

The text is cut, packed and masked in the same way in all phases and all runs of one seed, so scores are comparable.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from modernbert.data.shards import Shards
from modernbert.data.stream import heldout_batches
from modernbert.tokenizer.tokenizer import Tokenizer
from modernbert.training.distributed import World
from modernbert.training.pretraining_config import PretrainConfig
from modernbert.training.run_log import number
from modernbert.training.training_loop import evaluate

__all__ = ["mean_loss", "position_lines", "score_heldout"]

Row = Mapping[str, Any]


def score_heldout(
    objective: nn.Module,
    sources: Mapping[str, Shards],
    tokenizer: Tokenizer,
    config: PretrainConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    world: World,
) -> list[dict[str, Any]]:
    """Score each source at each of `evaluation.lengths`; by default, at the length of the first phase."""
    first = next(iter(config.phases.values()))
    rows = []
    for source, shards in sources.items():
        for max_len in config.evaluation.lengths or [first.max_len]:
            batches = heldout_batches(
                shards,
                tokenizer,
                seed=config.seed,
                max_len=max_len,
                budget_tokens=max(max_len, first.micro_batch_tokens),
                mask_rate=config.evaluation.mask_rate,
                limit_tokens=config.evaluation.max_tokens,
            )
            score = evaluate(objective, batches, device=device, dtype=dtype, world=world)
            rows.append(
                {
                    "source": source,
                    "max_len": max_len,
                    "loss": number(score.loss),
                    "accuracy": round(score.accuracy, 6),
                    "perplexity": number(score.perplexity, 4),
                    "masked": score.num_rows,
                    "positions": {
                        f"{first}-{last}": {"loss": number(loss), "masked": masked}
                        for (first, last), (loss, masked) in score.by_position.items()
                    },
                }
            )
    return rows


def mean_loss(rows: Sequence[Row]) -> float | None:
    """Return the mean loss over all sources at the first length, by which checkpoints are ranked.

    It is None if the loss of one source is not finite.
    """
    first = [row for row in rows if row["max_len"] == rows[0]["max_len"]]
    if any(row["loss"] is None for row in first):
        return None
    return sum(row["loss"] * row["masked"] for row in first) / sum(row["masked"] for row in first)


def position_lines(log: Sequence[Row]) -> list[str]:
    """Return lines with the first and last loss at each range of positions, for lengths with more than one range.

    A successful context extension lowers the loss at late positions.
    """
    scored = [row for row in log if row.get("kind") == "heldout" and len(row.get("positions", {})) > 1]
    lines = []
    for source, max_len in dict.fromkeys((row["source"], row["max_len"]) for row in scored):
        of_kind = [row for row in scored if (row["source"], row["max_len"]) == (source, max_len)]
        start, end = of_kind[0], of_kind[-1]
        lines.append(f"held out {source} at {max_len:,} tokens, loss after step {start['step']:,} and {end['step']:,}:")
        for positions, last in end["positions"].items():
            first = start["positions"][positions]
            lines.append(f"  positions {positions:>12}: {_format(first['loss'])} -> {_format(last['loss'])}")
    return lines


def _format(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.3f}"
