"""The Triton kernels against torch, on a GPU if there is one, else in Triton's interpreter."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modernbert.batch import SequenceLengths
from modernbert.engines.cpu import build, calls
from modernbert.engines.engine import RopeAttention, Window
from modernbert.engines.registry import find_engine
from modernbert.model.config import ModelConfig
from modernbert.model.encoder import rope_angles
from modernbert.model.heads import MaskedLM
from modernbert.model.initialization import initialize
from modernbert.planning.step_timing import random_batch
from modernbert.training.losses import masked_lm
from modernbert.training.optimizers import StableAdamW

pytest.importorskip("triton")
from modernbert.engines.cuda import attention_kernels as attention  # noqa: E402
from modernbert.engines.cuda import cross_entropy_kernel as cross_entropy  # noqa: E402
from modernbert.engines.cuda import elementwise_kernels as elementwise  # noqa: E402
from modernbert.engines.cuda import optimizer_kernels as moments  # noqa: E402
from modernbert.engines.cuda import rope_kernels as rotary  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HEADS, WIDTH = 2, 64
# A GPU multiplies float32 in the precision of TF32.
NEAR = 1e-5 if DEVICE == "cpu" else 4e-3
LENGTHS = [[7], [300], [5, 130, 64, 1, 200], [64, 64, 128]]


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE)


def check(found: Sequence[Tensor], expected: Sequence[Tensor], share: float = NEAR) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        assert float((ours - theirs).detach().norm()) <= share * float(theirs.detach().norm())


@pytest.mark.parametrize("window", [None, (64, 64), (3, 3)], ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_attention_equals_dense_forward_and_backward(lengths: list[int], window: Window) -> None:
    layout = SequenceLengths.from_lengths(lengths).to(DEVICE)
    angles = rope_angles(layout.positions, WIDTH, 10_000.0)
    cosines, sines = (part[:, 0] for part in angles)
    values, upstream = randn(layout.num_tokens, 3, HEADS, WIDTH), randn(layout.num_tokens, HEADS, WIDTH)
    outcomes = []
    for attend in (
        lambda qkv: attention.attend(qkv, cosines, sines, attention.key_ranges(layout, window)),
        find_engine("reference").plan_attention(layout, window, angles, torch.float32),
    ):
        qkv = values.clone().requires_grad_()
        attn_out = attend(qkv * 1)  # a copy, since RoPE is applied in place
        outcomes.append((attn_out, *torch.autograd.grad(attn_out, qkv, upstream)))
    check(*outcomes)


def test_a_range_is_a_window_within_a_document() -> None:
    first, last = attention.key_ranges(SequenceLengths.from_lengths([4, 1, 5]), (1, 2))
    assert first.tolist() == [0, 0, 1, 2, 4, 5, 5, 6, 7, 8]
    assert last.tolist() == [3, 4, 4, 4, 5, 8, 9, 10, 10, 10]


def test_split_rotated_qkv_and_its_gradients_equal_torch() -> None:
    layout = SequenceLengths.from_lengths([9, 40]).to(DEVICE)
    angles = rope_angles(layout.positions, WIDTH, 160_000.0)
    values = randn(layout.num_tokens, 3, HEADS, WIDTH)
    upstream = [randn(layout.num_tokens, HEADS, WIDTH) for _ in range(3)]
    outcomes = []
    for split in (
        lambda qkv: rotary.split_rotated_qkv(qkv, *(part[:, 0] for part in angles)),
        RopeAttention(angles, lambda q, k, v: v).rotate,
    ):
        qkv = values.clone().requires_grad_()
        rotated = split(qkv * 1)
        outcomes.append((*rotated, *torch.autograd.grad(rotated, qkv, upstream)))
    check(*outcomes)


@pytest.mark.parametrize("delta_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(13, 48), (3, 768)], ids=str)
def test_residual_layer_norm_equals_torch(shape: tuple[int, int], delta_dtype: torch.dtype) -> None:
    hidden, weight = randn(*shape).requires_grad_(), randn(shape[1]).requires_grad_()
    delta = randn(*shape).to(delta_dtype).requires_grad_()
    upstream = randn(*shape), randn(*shape).to(delta_dtype)
    total, normed = elementwise.residual_layer_norm(hidden, delta, weight, 1e-5)
    ours = total, normed, *torch.autograd.grad((total, normed), (hidden, delta, weight), upstream)
    total = hidden + delta
    normed = F.layer_norm(total, shape[1:], weight, None, 1e-5).to(delta_dtype)
    theirs = total, normed, *torch.autograd.grad((total, normed), (hidden, delta, weight), upstream)
    check(ours, theirs, NEAR if delta_dtype == torch.float32 else 8e-3)


def test_dropout_has_one_mask_forward_and_backward_and_differs_between_calls() -> None:
    hidden, delta = torch.zeros(100, 64, device=DEVICE), torch.ones(100, 64, device=DEVICE, requires_grad=True)
    weight = torch.ones(64, device=DEVICE)
    torch.manual_seed(3)
    totals = [elementwise.residual_layer_norm(hidden, delta, weight, 1e-5, dropout=0.25)[0] for _ in range(2)]
    (grads,) = torch.autograd.grad(totals[0], delta, torch.ones_like(delta))
    assert torch.equal(grads, totals[0])
    assert totals[0].unique().tolist() == pytest.approx([0.0, 4 / 3])
    kept = [total > 0 for total in totals]
    # Three standard deviations of all draws; the shares of rows and columns have the deviation of independent draws.
    assert abs(float(kept[0].float().mean()) - 0.75) < 3 * (0.75 * 0.25 / 6_400) ** 0.5
    assert float(kept[0].float().mean(0).std()) < 1.5 * (0.75 * 0.25 / 100) ** 0.5
    assert float(kept[0].float().mean(1).std()) < 1.5 * (0.75 * 0.25 / 64) ** 0.5
    assert abs(float((kept[0] & kept[1]).float().mean()) - 0.75**2) < 0.02
    torch.manual_seed(3)
    assert torch.equal(elementwise.residual_layer_norm(hidden, delta, weight, 1e-5, dropout=0.25)[0], totals[0])


@pytest.mark.skipif(build.unavailable_reason() is not None, reason=f"cpu {build.unavailable_reason()}")
def test_dropout_equals_that_of_the_cpu() -> None:
    hidden, delta, weight = torch.zeros(100, 64), torch.ones(100, 64), torch.ones(64)
    torch.manual_seed(3)
    on_gpu, _ = elementwise.residual_layer_norm(
        hidden.to(DEVICE), delta.to(DEVICE), weight.to(DEVICE), 1e-5, dropout=0.25
    )
    torch.manual_seed(3)
    on_cpu, _ = calls.residual_layer_norm(hidden, delta, weight, 1e-5, dropout=0.25)
    assert torch.equal(on_gpu.cpu(), on_cpu)


@pytest.mark.parametrize("feed", [70, 256])
def test_geglu_equals_torch(feed: int) -> None:
    both, upstream = randn(11, 2 * feed).requires_grad_(), randn(11, feed)
    activated, gate = both.chunk(2, dim=-1)
    outcomes = [
        (out, *torch.autograd.grad(out, both, upstream)) for out in (elementwise.geglu(both), F.gelu(activated) * gate)
    ]
    check(*outcomes)


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_of_a_model_equal_torch(small_config: ModelConfig, recompute: bool) -> None:
    config = replace(small_config, num_hidden_layers=2, vocab_size=96, global_attn_every_n_layers=2)
    batch = random_batch(config, [30, 9], 0.3).to(DEVICE)
    outcomes = []
    for engine in ("cuda", "torch"):
        model = MaskedLM(config, find_engine(engine))
        initialize(model, config, seed=0)
        model.to(DEVICE).train()
        model.model.recompute = recompute and engine == "cuda"
        total, _ = masked_lm(model, batch)
        outcomes.append((total.detach(), *torch.autograd.grad(total, list(model.parameters()))))
    check(*outcomes, 10 * NEAR)


@pytest.mark.parametrize("entries", [5, 5_000])
def test_cross_entropy_equals_torch(entries: int) -> None:
    logits, bias = 10 * randn(9, entries), randn(entries)
    labels = torch.randint(0, entries, (9,), device=DEVICE)
    plain = (logits + bias).requires_grad_()
    expected = F.cross_entropy(plain, labels, reduction="sum")
    (grads,) = torch.autograd.grad(expected, plain)
    untouched = logits.clone()
    check([cross_entropy.cross_entropy_(untouched, bias, labels, write_grad=False)], [expected])
    assert torch.equal(untouched, logits)
    check([cross_entropy.cross_entropy_(logits, bias, labels, write_grad=True), logits], [expected, grads])


@pytest.mark.parametrize("shards", [1, 2])
def test_the_optimizer_equals_its_formula_in_torch(shards: int) -> None:
    """Tensors below, at and above a block; a gradient that exceeds its second moment shortens the step."""
    shapes = [(3,), (moments._BLOCK,), (70, 513), (1,)]
    both = [[nn.Parameter(torch.ones(shape, device=DEVICE)) for shape in shapes] for _ in range(2)]
    optimizers = [
        StableAdamW(weights, lr=1e-2, weight_decay=0.1, kernels=kernels, sum_shards=lambda squares: shards * squares)
        for weights, kernels in zip(both, (moments, None), strict=True)
    ]
    for step in range(6):
        for mine, other in zip(*both, strict=True):
            mine.grad = randn(*mine.shape) * 10.0 ** (step % 3 - 1)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other in zip(*both, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)
    first, second = (optimizer.state[weights[2]] for optimizer, weights in zip(optimizers, both, strict=True))
    for name in ("exp_avg", "exp_avg_sq"):  # smaller than 1 only where terms cancel
        torch.testing.assert_close(first[name], second[name], rtol=1e-5, atol=2e-6)
