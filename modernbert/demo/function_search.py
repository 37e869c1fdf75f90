"""Find a function by its docstring: scores of a model, and a short contrastive tuning.

In: pairs of a docstring and its function. Out: ranks of the right function among all, and tuned weights. The tuning
runs through the same loop as pretraining; only the loss and the batches differ.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from modernbert.batch import Batch
from modernbert.demo.pairs import Pair
from modernbert.evaluation.bm25 import bm25_scores
from modernbert.evaluation.ranking_metrics import mrr_of_ranks, ndcg_of_ranks, ranks_of
from modernbert.inference.modernbert import ModernBert
from modernbert.model.encoder import Encoder
from modernbert.model.heads import pool
from modernbert.tokenizer.tokenizer import Tokenizer
from modernbert.training.distributed import Objective
from modernbert.training.losses import contrastive
from modernbert.training.optimizers import StableAdamW, load_named_state, named_state, parameter_groups
from modernbert.training.run_checkpoint import latest, save
from modernbert.training.schedules import Schedule
from modernbert.training.training_loop import derive_seed, train

__all__ = ["Ranking", "Tuning", "rank_by_bm25", "rank_by_vectors", "tune"]


@dataclass(frozen=True)
class Ranking:
    """Where each query's function was ranked, and what was ranked first."""

    ranks: list[int]
    first: list[int]
    ndcg: float
    mrr: float


@dataclass(frozen=True)
class Tuning:
    """How long to tune, on how many pairs a step, and at which rates."""

    num_steps: int
    pairs_per_step: int = 64
    max_len: int = 96
    lr: float = 2e-3
    temperature: float = 0.05
    save_every_steps: int = 20


def rank_by_vectors(bert: ModernBert, pairs: Sequence[Pair]) -> Ranking:
    """Rank all functions for each docstring by the cosine of their vectors."""
    queries = bert.embed([pair.query for pair in pairs])
    passages = bert.embed([pair.passage for pair in pairs], overflow="truncate")
    return _ranking(queries @ passages.T)


def rank_by_bm25(pairs: Sequence[Pair]) -> Ranking:
    """Rank all functions for each docstring by the words they share."""
    return _ranking(bm25_scores([pair.query for pair in pairs], [pair.passage for pair in pairs]))


def tune(
    encoder: Encoder, tokenizer: Tokenizer, pairs: Sequence[Pair], tuning: Tuning, *, checkpoints: Path, seed: int
) -> Iterator[float]:
    """Teach an encoder to put a docstring beside its function, in place; yield the loss of each step.

    A step's docstrings are told from each other's functions. A tuning that was stopped goes on from its checkpoint.
    """
    optimizer = StableAdamW(parameter_groups(encoder, weight_decay=1e-5), lr=tuning.lr)
    checkpoint = latest(checkpoints)
    first_step = checkpoint.step if checkpoint else 0
    if checkpoint:
        encoder.load_state_dict(checkpoint.tensors("model"))
        load_named_state(encoder, optimizer, checkpoint.tensors("optimizer"))
    # In steps of one "token" each: the learning rate rises over a tenth of them, then falls to nothing.
    schedule = Schedule(
        tokens=tuning.num_steps,
        micro_batch_tokens=1,
        peak_lr=tuning.lr,
        warmup_tokens=tuning.num_steps // 10,
        decay_tokens=tuning.num_steps - tuning.num_steps // 10,
    )

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        vectors = pool(model(batch.tokens, batch.layout), batch.layout, "mean")
        return contrastive(vectors, batch.layout.num_docs // 2, tuning.temperature)

    batches = _batches(tokenizer, pairs, tuning, seed, first_step)
    device = encoder.embeddings.tok_embeddings.weight.device
    steps = train(
        Objective(encoder, loss), optimizer, schedule, batches,
        seed=seed, device=device, dtype=torch.float32, first_step=first_step,
    )  # fmt: skip
    for step, (_, result) in enumerate(steps, first_step + 1):
        if step % tuning.save_every_steps == 0 or step == tuning.num_steps:
            state = {"model": dict(encoder.state_dict()), "optimizer": named_state(encoder, optimizer)}
            save(checkpoints, step, state, {}, keep=2)
        yield result.loss
    encoder.eval()


def _batches(
    tokenizer: Tokenizer, pairs: Sequence[Pair], tuning: Tuning, seed: int, first_step: int
) -> Iterator[Batch]:
    """Yield Q docstrings, then their Q functions; which pairs a step sees is a function of the seed and the step."""
    queries = tokenizer.encode([pair.query for pair in pairs])
    passages = tokenizer.encode([pair.passage for pair in pairs])
    number = min(tuning.pairs_per_step, len(pairs))
    steps_per_epoch = len(pairs) // number
    for step in range(first_step, tuning.num_steps):
        epoch, place = divmod(step, steps_per_epoch)
        order = np.random.default_rng(derive_seed(seed, epoch)).permutation(len(pairs))
        chosen = order[place * number : (place + 1) * number]
        rows = [queries[i] for i in chosen] + [passages[i] for i in chosen]
        yield Batch.from_documents([tokenizer.cut(row, tuning.max_len) for row in rows])


def _ranking(scores: np.ndarray) -> Ranking:
    ranks = ranks_of(scores, np.arange(len(scores)))
    return Ranking(
        ranks=ranks.tolist(),
        first=scores.argmax(axis=1).tolist(),
        ndcg=ndcg_of_ranks(10, ranks),
        mrr=mrr_of_ranks(10, ranks),
    )
