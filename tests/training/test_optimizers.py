"""StableAdamW against torch-optimi, which the published models were trained with."""

import pytest
import torch
from torch import nn

from modernbert.errors import InputError
from modernbert.training.optimizers import StableAdamW, grad_norm, load_named_state, named_state, parameter_groups


class Tied(nn.Module):
    """An embedding tied to its decoder, a norm, a bias: every kind of parameter an encoder has."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(40, 16)
        self.dense = nn.Linear(16, 16, bias=False)
        self.norm = nn.LayerNorm(16, bias=False)
        self.decoder = nn.Linear(16, 40)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens):
        return self.decoder(self.norm(self.dense(self.embedding(tokens))))


def backward(model, step):
    torch.manual_seed(1000 + step)
    tokens = torch.randint(40, (32,))
    # A loss that jumps in scale, so that the update clipping has something to do.
    scale = 30.0 if step % 7 == 3 else 1.0
    loss = scale * nn.functional.cross_entropy(model(tokens), tokens.roll(1))
    model.zero_grad()
    loss.backward()


def test_fifty_steps_equal_optimi():
    optimi = pytest.importorskip("optimi")
    ours, theirs = Tied(), Tied()
    groups = parameter_groups(theirs, 5e-4)
    reference = optimi.StableAdamW(
        groups, lr=1e-2, max_lr=1e-2, betas=(0.9, 0.98), eps=1e-6, decouple_lr=True, foreach=False, triton=False
    )
    optimizer = StableAdamW(parameter_groups(ours, 5e-4), lr=1e-2)
    for step in range(50):
        for model, stepper in ((ours, optimizer), (theirs, reference)):
            for group in stepper.param_groups:
                group["lr"] = 1e-2 * min(1.0, (step + 1) / 10) * (1 - step / 60)
            backward(model, step)
            stepper.step()
    for (name, left), right in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=2e-5, atol=2e-6, msg=name)


def test_first_step_closed_form():
    # Debiased moments after one gradient are g and g^2, so RMS is 1 and the step is lr * sign(g).
    weight = nn.Parameter(torch.tensor([[1.0, -2.0, 3.0]]))
    weight.grad = torch.tensor([[0.5, -4.0, 1e-2]])
    StableAdamW([weight], lr=0.1, weight_decay=0.2, eps=1e-12).step()
    torch.testing.assert_close(weight.data, torch.tensor([[0.8 - 0.1, -1.6 + 0.1, 2.4 - 0.1]]))


def test_sudden_gradient_shortens_the_step():
    def after(second):
        weight = nn.Parameter(torch.zeros(1, 1))
        optimizer = StableAdamW([weight], lr=0.1, weight_decay=0.0)
        for gradient in (1e-3, second):
            weight.grad = torch.tensor([[gradient]])
            before = weight.item()
            optimizer.step()
        return abs(weight.item() - before)

    # At step 2 the debiased betas are 9/19 and 49/99. After the jump the moments are (10/19) g and (50/99) g^2 and the
    # RMS is sqrt(99/50), which cancels the root of the second moment: the step is lr * 10/19.
    assert after(1.0) == pytest.approx(0.1 * 10 / 19, rel=2e-3)
    assert after(1e-3) == pytest.approx(0.1, rel=1e-2)


def test_gradients_stay_readable():
    model = Tied()
    backward(model, 0)
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    StableAdamW(parameter_groups(model, 1e-5), lr=1e-3).step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, before[name])


def test_groups_decay_matrices_and_embeddings_once():
    model = Tied()
    decayed, undecayed = parameter_groups(model, 0.1)
    assert [id(parameter) for parameter in decayed["params"]] == [id(model.embedding.weight), id(model.dense.weight)]
    assert [id(parameter) for parameter in undecayed["params"]] == [id(model.norm.weight), id(model.decoder.bias)]
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.1, 0.0)


def test_state_by_name_continues_bit_for_bit():
    straight, stopped = Tied(), Tied()
    optimizers = [StableAdamW(parameter_groups(model, 1e-5), lr=1e-2) for model in (straight, stopped)]
    for step in range(6):
        for model, optimizer in zip((straight, stopped), optimizers, strict=True):
            backward(model, step)
            optimizer.step()
    resumed = Tied(seed=9)
    resumed.load_state_dict(stopped.state_dict())
    fresh = StableAdamW(parameter_groups(resumed, 1e-5), lr=1e-2)
    load_named_state(resumed, fresh, named_state(stopped, optimizers[1]))
    for step in range(6, 12):
        for model, optimizer in ((straight, optimizers[0]), (resumed, fresh)):
            backward(model, step)
            optimizer.step()
    for left, right in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right)


def test_state_of_another_model_is_refused():
    model = Tied()
    optimizer = StableAdamW(parameter_groups(model, 1e-5), lr=1e-2)
    step = torch.tensor(3)
    with pytest.raises(InputError, match="belongs to no parameter"):
        load_named_state(model, optimizer, {"step": step, "exp_avg.layers.0": torch.zeros(2)})
    with pytest.raises(InputError, match="expected \\(16, 16\\)"):
        load_named_state(model, optimizer, {"step": step, "exp_avg.dense.weight": torch.zeros(2, 16)})


def test_grad_norm_covers_every_parameter_and_large_tensors():
    model = Tied()
    backward(model, 0)
    flat = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).double()
    assert grad_norm(model.parameters()).item() == pytest.approx(flat.norm().item(), rel=1e-6)
    large = nn.Parameter(torch.empty(20_000, 256))
    large.grad = torch.full_like(large, 0.5)
    assert grad_norm([large]).item() == pytest.approx(0.5 * (20_000 * 256) ** 0.5, rel=1e-5)
