"""Losses against closed forms and against the plain definition."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modernbert.batch import Batch, SequenceLengths
from modernbert.engines import linear_cross_entropy as decoding
from modernbert.errors import InputError
from modernbert.model.config import ModelConfig
from modernbert.model.heads import MaskedLM
from modernbert.model.initialization import initialize
from modernbert.training.losses import masked_lm, masked_lm_rows
from modernbert.training.retrieval_losses import Comparison, RetrievalLoss


class Lookup(nn.Module):
    """Decode row `label_positions` of a table: the smallest thing with the call of MaskedLM."""

    def __init__(self, vocab_size=11):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(vocab_size, vocab_size)

        self.decoder = nn.Linear(vocab_size, vocab_size)
        nn.init.eye_(self.decoder.weight)
        nn.init.zeros_(self.decoder.bias)

    def features(self, batch):
        return self.table(batch.tokens[batch.label_positions])


def batch_of(where, labels, num_tokens=8):
    tokens = torch.arange(num_tokens) % 11
    return Batch(
        tokens,
        SequenceLengths.from_lengths([num_tokens]),
        torch.tensor(where, dtype=torch.int64),
        torch.tensor(labels, dtype=torch.int64),
    )


def test_masked_lm_sums_over_masked_rows_only():
    model = Lookup()
    total, count = masked_lm(model, batch_of([1, 4, 6], [3, 0, 10]))
    rows = model.table.weight.double().log_softmax(-1)
    assert count == 3
    assert total.item() == pytest.approx(-(rows[1, 3] + rows[4, 0] + rows[6, 10]).item(), rel=1e-6)


def test_uniform_logits_give_ln_vocab_a_row():
    model = Lookup()
    nn.init.zeros_(model.table.weight)
    total, count = masked_lm(model, batch_of([0, 1], [2, 3]))
    assert total.item() / count == pytest.approx(math.log(11))


def test_no_masked_row_is_zero_with_zero_gradients():
    model = Lookup()
    total, count = masked_lm(model, batch_of([], []))
    total.backward()
    assert (total.item(), count) == (0.0, 0)
    assert torch.equal(model.table.weight.grad, torch.zeros_like(model.table.weight))


def test_rows_tell_losses_and_first_guesses():
    model = Lookup()
    with torch.no_grad():
        model.table.weight.copy_(5 * torch.eye(11))
    losses, correct = masked_lm_rows(model, batch_of([1, 4, 6], [1, 4, 0]))
    assert correct.tolist() == [True, True, False]
    right = -math.log(math.exp(5) / (math.exp(5) + 10))
    assert losses.tolist() == pytest.approx([right, right, right + 5], rel=1e-5)
    assert not losses.requires_grad


def small_lm(dtype, vocab_size=96):
    config = ModelConfig.preset(
        "tiny", vocab_size=vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, attention_output_dropout=0.0, pad_token_id=0, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    model = MaskedLM(config)
    initialize(model, config, seed=3)
    return model.to(dtype)


def large_batch(num_rows=300, vocab_size=96):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, vocab_size, (400,), generator=generator)
    where = torch.randperm(400, generator=generator)[:num_rows].sort().values
    labels = torch.randint(3, vocab_size, (num_rows,), generator=generator)
    return Batch(tokens, SequenceLengths.from_lengths([150, 250]), where, labels)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("chunk_rows", [1, 64, 300, 1024])
def test_chunks_give_the_plain_loss_and_gradients(monkeypatch, dtype, tolerance, chunk_rows):
    monkeypatch.setattr(decoding, "CHUNK_ROWS", chunk_rows)
    gradients = []
    for loss in (masked_lm, plain):
        model = small_lm(dtype)
        total, _ = loss(model, large_batch())
        (total / 7).backward()
        gradients.append([total.detach(), *(parameter.grad for parameter in model.parameters())])
    for ours, theirs in zip(*gradients, strict=True):
        scale = theirs.abs().max().clamp(min=1)
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=tolerance)


def plain(model, batch):
    return F.cross_entropy(model(batch), batch.labels, reduction="sum"), batch.num_labels


def test_chunks_under_autocast_are_as_good_as_the_plain_loss():
    exact = small_lm(torch.float64)
    plain(exact, large_batch())[0].backward()
    errors = []
    for loss in (masked_lm, plain):
        model = small_lm(torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total, _ = loss(model, large_batch())
        total.backward()
        found, expected = model.decoder.weight.grad.double(), exact.decoder.weight.grad
        errors.append(((found - expected).norm() / expected.norm()).item())
    assert errors[0] < max(0.02, 1.2 * errors[1])


def test_no_tensor_has_a_row_for_each_masked_token_and_entry(monkeypatch):
    monkeypatch.setattr(decoding, "CHUNK_ROWS", 16)
    vocab_size, sizes = 4096, []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.extend(each.numel() for each in tree_leaves(out) if isinstance(each, torch.Tensor))
            return out

    model = small_lm(torch.float32, vocab_size)
    with Sizes():
        masked_lm(model, large_batch(vocab_size=vocab_size))[0].backward()
    assert 16 * vocab_size in sizes
    assert max(sizes) <= vocab_size * 32  # the embedding
    assert max(sizes) < 300 * vocab_size


def test_batch_without_masks_is_refused():
    tokens = Batch(torch.zeros(3, dtype=torch.int64), SequenceLengths.from_lengths([3]))
    with pytest.raises(InputError, match="no masked rows"):
        masked_lm(Lookup(), tokens)


def test_info_nce_equals_its_definition():
    rng = np.random.default_rng(0)
    queries, passages = rng.normal(size=(3, 5)), rng.normal(size=(7, 5))
    expected = 0.0
    for i, query in enumerate(queries):
        cosines = passages @ query / np.linalg.norm(passages, axis=1) / np.linalg.norm(query) / 0.05
        expected += np.log(np.exp(cosines).sum()) - cosines[i]
    vectors = F.normalize(torch.from_numpy(np.concatenate([queries, passages])).float(), dim=-1)
    total, count = RetrievalLoss(temperature=0.05).compare(vectors, Comparison(3, [1] * 10))
    assert count == 3
    assert total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("num_queries", [0, 5])
def test_a_passage_per_query_is_required(num_queries):
    with pytest.raises(InputError, match="one each"):
        RetrievalLoss(0.1).compare(torch.randn(8, 4), Comparison(num_queries, [1] * 8))
