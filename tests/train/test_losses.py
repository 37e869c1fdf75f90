"""Losses against closed forms and against the plain definition."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from modernbert.errors import InputError
from modernbert.ragged import Batch, Layout
from modernbert.train.losses import contrastive, masked_lm, masked_lm_scores


class Lookup(nn.Module):
    """Decode row `where` of a table: the smallest thing with the call of MaskedLM."""

    def __init__(self, vocab_size=11):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, batch):
        return self.table(batch.tokens[batch.where])


def batch_of(where, labels, num_tokens=8):
    tokens = torch.arange(num_tokens) % 11
    return Batch(
        tokens,
        Layout.from_lengths([num_tokens]),
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


def test_scores_count_first_guesses():
    model = Lookup()
    with torch.no_grad():
        model.table.weight.copy_(torch.eye(11) * 5)
    loss, correct, count = masked_lm_scores(model, batch_of([1, 4, 6], [1, 4, 0]))
    assert (correct.item(), count) == (2, 3)
    assert loss.item() == pytest.approx(masked_lm(model, batch_of([1, 4, 6], [1, 4, 0]))[0].item())


def test_batch_without_masks_is_refused():
    tokens = Batch(torch.zeros(3, dtype=torch.int64), Layout.from_lengths([3]))
    with pytest.raises(InputError, match="no masked rows"):
        masked_lm(Lookup(), tokens)


def test_contrastive_equals_its_definition():
    rng = np.random.default_rng(0)
    queries, passages = rng.normal(size=(3, 5)), rng.normal(size=(7, 5))
    expected = 0.0
    for i, query in enumerate(queries):
        cosines = passages @ query / np.linalg.norm(passages, axis=1) / np.linalg.norm(query) / 0.05
        expected += np.log(np.exp(cosines).sum()) - cosines[i]
    vectors = torch.from_numpy(np.concatenate([queries, passages])).float()
    total, count = contrastive(vectors, 3, temperature=0.05)
    assert count == 3
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_contrastive_does_not_see_length():
    torch.manual_seed(0)
    vectors = torch.randn(8, 4)
    scaled = vectors * torch.rand(8, 1).add(0.1)
    torch.testing.assert_close(contrastive(vectors, 4, 0.1)[0], contrastive(scaled, 4, 0.1)[0])


@pytest.mark.parametrize("num_queries", [0, 5])
def test_contrastive_wants_a_positive_each(num_queries):
    with pytest.raises(InputError, match="one positive each"):
        contrastive(torch.randn(8, 4), num_queries, 0.1)
