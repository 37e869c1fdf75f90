"""The loop on a real, very small encoder."""

import math

import pytest
import torch
import torch.nn.functional as F

from modernbert.batch import Batch, SequenceLengths
from modernbert.errors import InputError
from modernbert.model.config import ModelConfig
from modernbert.model.heads import MaskedLM
from modernbert.model.initialization import initialize
from modernbert.training.distributed import Objective
from modernbert.training.losses import info_nce, masked_lm
from modernbert.training.optimizers import StableAdamW, parameter_groups
from modernbert.training.schedules import Schedule
from modernbert.training.training_loop import evaluate, train, train_step

CPU = torch.device("cpu")
PLACE = {"device": CPU, "dtype": torch.float32}
SHAPE = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2,
}  # fmt: skip


def model_of(dropout=0.0):
    config = ModelConfig(**SHAPE, attention_output_dropout=dropout)
    model = MaskedLM(config)
    initialize(model, config, seed=1)
    return model, StableAdamW(parameter_groups(model, 1e-5), lr=1e-3)


def batch_of(seed, lengths=(5, 9, 12), rows=4):
    generator = torch.Generator().manual_seed(seed)
    num_tokens = sum(lengths)
    where = torch.randperm(num_tokens, generator=generator)[:rows].sort().values
    labels = torch.randint(3, 64, (rows,), generator=generator)
    return Batch(
        torch.randint(3, 64, (num_tokens,), generator=generator), SequenceLengths.from_lengths(lengths), where, labels
    )


def joined(batches):
    offsets = [sum(batch.num_tokens for batch in batches[:i]) for i in range(len(batches))]
    return Batch(
        torch.cat([batch.tokens for batch in batches]),
        SequenceLengths.from_lengths([length for batch in batches for length in batch.layout.lengths]),
        torch.cat([batch.label_positions + offset for batch, offset in zip(batches, offsets, strict=True)]),
        torch.cat([batch.labels for batch in batches]),
    )


def test_four_micro_batches_equal_one_large_batch():
    # Different numbers of masked rows, one of them none: a mean of means would differ.
    parts = [batch_of(seed, rows=rows) for seed, rows in enumerate([1, 7, 0, 20])]
    results, gradients = [], []
    for micro_batches in (parts, [joined(parts)]):
        model, optimizer = model_of()
        results.append(train_step(Objective(model, masked_lm), micro_batches, optimizer, 1e-3, seed=0, **PLACE))
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert results[0].num_rows == results[1].num_rows == 28
    assert results[0].num_tokens == results[1].num_tokens
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-6)
    assert results[0].grad_norm == pytest.approx(results[1].grad_norm, rel=1e-5)
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


def test_first_loss_is_that_of_a_uniform_guess():
    model, optimizer = model_of()
    result = train_step(Objective(model, masked_lm), [batch_of(0, rows=20)], optimizer, 1e-3, seed=0, **PLACE)
    assert result.loss == pytest.approx(math.log(64), rel=0.02)


def test_dropout_is_a_function_of_seed_and_micro_batch():
    def loss_with(seed):
        model, optimizer = model_of(dropout=0.5)
        model.train()
        return train_step(Objective(model, masked_lm), [batch_of(0)] * 2, optimizer, 1e-3, seed=seed, **PLACE).loss

    first = loss_with(3)
    torch.manual_seed(999)
    assert loss_with(3) == first
    assert loss_with(4) != first


def steps(model, optimizer, first_step, last_step):
    schedule = Schedule(tokens=26 * last_step, micro_batch_tokens=26, peak_lr=1e-2, warmup_tokens=50, decay_tokens=100)
    batches = (batch_of(seed) for seed in range(first_step, 1000))
    return list(
        train(Objective(model, masked_lm), optimizer, schedule, batches, seed=5, first_step=first_step, **PLACE)
    )


def test_training_learns_and_counts():
    model, optimizer = model_of()
    schedule = Schedule(
        tokens=26 * 6 * 12, micro_batch_tokens=26, peak_lr=1e-2, max_micro_batches=3, batch_warmup_tokens=26 * 6
    )
    taken = []
    batches = (taken.append(0) or batch_of(0, rows=8) for _ in iter(int, 1))
    results = []
    for plan, result in train(Objective(model, masked_lm), optimizer, schedule, batches, seed=5, **PLACE):
        results.append(result)
        assert len(taken) * 26 == plan.tokens_before + result.num_tokens
        assert result.num_rows == plan.num_micro_batches * 8
    assert results[-1].loss < 0.5 * results[0].loss


def test_stopping_between_steps_changes_no_bit():
    straight = steps(*model_of(dropout=0.1), 0, 8)
    model, optimizer = model_of(dropout=0.1)
    schedule = Schedule(tokens=26 * 8, micro_batch_tokens=26, peak_lr=1e-2, warmup_tokens=50, decay_tokens=100)
    batches = (batch_of(seed) for seed in range(1000))
    run = train(Objective(model, masked_lm), optimizer, schedule, batches, seed=5, **PLACE)
    begun = [next(run) for _ in range(3)]
    torch.rand(7)  # whatever else draws random numbers in between
    assert begun + steps(model, optimizer, 3, 8) == straight


def test_a_loss_that_is_not_finite_stops_with_the_step_named():
    model, optimizer = model_of()

    def broken(model, batch):
        total, count = masked_lm(model, batch)
        return total * (float("nan") if batch.tokens[0] == batch_of(2).tokens[0] else 1.0), count

    schedule = Schedule(tokens=26 * 9, micro_batch_tokens=26, peak_lr=1e-3)
    run = train(Objective(model, broken), optimizer, schedule, (batch_of(seed) for seed in range(9)), seed=0, **PLACE)
    with pytest.raises(InputError, match="step 3: loss nan"):
        list(run)


def test_contrastive_training_runs_through_the_same_loop():
    model, optimizer = model_of()

    def loss(model, batch):
        hidden = model.model(batch.tokens, batch.layout)
        vectors = F.normalize(hidden[batch.layout.starts], dim=-1)
        return info_nce(vectors[:3] @ vectors[3:].T / 0.1)

    queries, passages = batch_of(0), batch_of(1)
    batch = joined([queries, passages])
    schedule = Schedule(tokens=52 * 30, micro_batch_tokens=52, peak_lr=1e-2)
    results = [
        r for _, r in train(Objective(model, loss), optimizer, schedule, (batch for _ in iter(int, 1)), seed=0, **PLACE)
    ]
    assert results[0].num_rows == 3
    assert results[-1].loss < 0.5 * results[0].loss


def test_evaluation_is_without_dropout_and_leaves_the_mode():
    model, _ = model_of(dropout=0.5)
    model.train()
    batches = [batch_of(seed) for seed in range(3)]
    first, second = (evaluate(Objective(model, masked_lm), batches, **PLACE) for _ in range(2))
    assert first == second
    assert model.training
    # The mean over rows, however they are shared out among batches.
    assert evaluate(Objective(model, masked_lm), [joined(batches)], **PLACE).loss == pytest.approx(first.loss, rel=1e-6)
    assert first.perplexity == pytest.approx(math.exp(first.loss))
    with pytest.raises(InputError, match="no masked token"):
        evaluate(Objective(model, masked_lm), [batch_of(0, rows=0)], **PLACE)
