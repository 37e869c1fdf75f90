"""The C++ kernels against torch and closed forms, forward and backward, at any number of threads."""

import copy
import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils import prune

from modernbert.batch import Batch, SequenceLengths
from modernbert.engines import linear_cross_entropy as decoding
from modernbert.engines.cpu import build, calls
from modernbert.engines.engine import Window
from modernbert.engines.registry import choose_engine, find_engine, find_optimizer_kernels
from modernbert.errors import InputError
from modernbert.inference.loading import permit_plans
from modernbert.model.config import ModelConfig
from modernbert.model.encoder import Encoder, rope_angles
from modernbert.model.heads import MaskedLM
from modernbert.model.initialization import initialize
from modernbert.training.losses import masked_lm
from modernbert.training.optimizers import StableAdamW

pytestmark = pytest.mark.skipif(build.unavailable_reason() is not None, reason=f"cpu {build.unavailable_reason()}")

COMPILE = build._compile
WINDOW = (64, 64)
LENGTHS = [[1], [1, 1, 1], [64], [128, 64], [65, 63], [129, 1, 127], [3, 200, 2, 2, 2, 90], [640], [70] * 5, [257, 700]]
# Relative error of a result: the rounding of one float32 or bfloat16, and a little more.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 6e-3}


def attention(
    engine: str, lengths: list[int], window: Window, dtype: torch.dtype, exact: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the output and the gradient of the input; `exact` computes in float64 from the rounded inputs."""
    generator = torch.Generator().manual_seed(1)
    layout = SequenceLengths.from_lengths(lengths)
    qkv = torch.randn(sum(lengths), 3, 2, 64, generator=generator).to(dtype)
    upstream = torch.randn(sum(lengths), 2, 64, generator=generator).to(dtype)
    if exact:
        qkv, upstream = qkv.double(), upstream.double()
    angles = rope_angles(layout.positions, 64, 10_000.0)
    attn_out = find_engine(engine).plan_attention(layout, window, angles, qkv.dtype)(qkv.requires_grad_())
    (grad,) = torch.autograd.grad(attn_out, qkv, upstream)
    return attn_out.detach(), grad


def error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, WINDOW, (3, 3), (0, 5), (7, 0)], ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_attention_equals_dense_forward_and_backward(lengths: list[int], window: Window, dtype: torch.dtype) -> None:
    exact = attention("reference", lengths, window, dtype, exact=True)
    for found, expected in zip(attention("cpu", lengths, window, dtype), exact, strict=True):
        assert error(found, expected) < TOLERANCE[dtype]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=9),
    sides=st.tuples(st.integers(0, 150), st.integers(0, 150)),
    is_local=st.booleans(),
)
def test_attention_equals_dense_for_any_lengths(lengths: list[int], sides: tuple[int, int], is_local: bool) -> None:
    window = sides if is_local else None
    exact = attention("reference", lengths, window, torch.float32, exact=True)
    for found, expected in zip(attention("cpu", lengths, window, torch.float32), exact, strict=True):
        assert error(found, expected) < 2e-6


def assert_linear(widths: tuple[int, int], num_rows: int, dtype: torch.dtype) -> None:
    """Compare a linear layer, forward and backward, with float64."""
    generator = torch.Generator().manual_seed(num_rows)
    rows = torch.randn(num_rows, widths[0], generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(widths[1], widths[0], generator=generator, requires_grad=True)
    upstream = torch.randn(num_rows, widths[1], generator=generator).to(dtype)
    out = calls.linear(rows, weight)
    found = out, *torch.autograd.grad(out, (rows, weight), upstream)
    exact_rows, exact_weight = (x.detach().to(dtype).double().requires_grad_() for x in (rows, weight))
    out = F.linear(exact_rows, exact_weight)
    expected = out, *torch.autograd.grad(out, (exact_rows, exact_weight), upstream.double())
    assert found[2].dtype == torch.float32, "gradients of weights stay in float32"
    for mine, exact, tolerance in zip(found, expected, (TOLERANCE[dtype], TOLERANCE[dtype], 1e-6), strict=True):
        assert error(mine, exact) < tolerance if exact.norm() else not mine.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_rows", [0, 1, 31, 47, 145, 1_700])
@pytest.mark.parametrize("widths", [(64, 64), (192, 320), (1_600, 896)], ids=str)
def test_linear_equals_torch_forward_and_backward(widths: tuple[int, int], num_rows: int, dtype: torch.dtype) -> None:
    """Few and many rows, full and partial blocks, larger than a cache."""
    assert_linear(widths, num_rows, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_gemm_row_does_not_depend_on_other_rows_or_threads(dtype: torch.dtype) -> None:
    rows, weight = torch.randn(300, 192).to(dtype), torch.randn(128, 192)
    whole = calls.linear(rows, weight)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(torch.cat([calls.linear(part, weight) for part in rows.split(77)]), whole)
    finally:
        torch.set_num_threads(before)


def test_linear_accepts_strided_tensors() -> None:
    rows, weight = torch.randn(128, 100).t().requires_grad_(), torch.randn(128, 192).t().requires_grad_()
    upstream = torch.randn(100, 192)
    found = torch.autograd.grad(calls.linear(rows, weight), (rows, weight), upstream)
    for mine, other in zip(found, torch.autograd.grad(rows @ weight.T, (rows, weight), upstream), strict=True):
        assert error(mine, other) < 1e-6


def test_gemms_refuse_shapes_that_do_not_match() -> None:
    """Otherwise C++ would read past the end."""
    rows, packed = torch.ones(4, 64), calls.pack_weight(torch.ones(64, 128))
    for shape in ((100, 64), (64, 80)):
        with pytest.raises(ValueError, match="a matrix of"):
            calls.linear(torch.ones(4, shape[1]), torch.ones(shape))
    for out in (torch.zeros(5, 128), torch.zeros(4, 64), torch.zeros(4, 256)[:, :128], torch.zeros(4, 128).double()):
        with pytest.raises(ValueError, match="times|out: found"):
            calls.multiply_(out, rows, packed)
    with pytest.raises(ValueError, match="times packed"):
        calls.multiply_(torch.zeros(4, 128), torch.ones(4, 128), packed)
    with pytest.raises(ValueError, match="times packed"):
        calls.multiply_(torch.zeros(20, 128), torch.ones(64, 20), packed, transposed=True)
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        calls.linear(rows.double(), torch.ones(64, 64).double())
    with pytest.raises(IndexError, match="labels from -100 to 3, expected 0 to 49"):
        calls.cross_entropy_(torch.zeros(2, 50), torch.zeros(50), torch.tensor([-100, 3]), None)


def test_gemms_accumulate() -> None:
    out, rows, weight = torch.randn(100, 128), torch.randn(100, 64), torch.randn(64, 128)
    expected = out.double() + rows.double() @ weight.double()
    assert error(calls.multiply_(out, rows, calls.pack_weight(weight), add=True), expected) < 1e-6


def test_large_scores_do_not_overflow() -> None:
    """Scores of hundreds, as from untrained weights: the softmax picks one key."""
    layout = SequenceLengths.from_lengths([300])
    qkv = torch.randn(300, 3, 1, 64) * 40
    angles = rope_angles(layout.positions, 64, 10_000.0)
    for dtype in TOLERANCE:
        attn_out = find_engine("cpu").plan_attention(layout, None, angles, dtype)(qkv.to(dtype))
        wide = tuple(a.double() for a in angles)
        expected = find_engine("reference").plan_attention(layout, None, wide, torch.float64)(qkv.to(dtype).double())
        assert attn_out.isfinite().all()
        # Near ties flip between keys in bfloat16, where scores of a thousand are rounded to whole numbers.
        assert error(attn_out, expected) < (1e-4 if dtype == torch.float32 else 0.3)


def test_nan_propagates() -> None:
    """The loss spike guard looks for NaN, so no kernel may hide it; another document is not affected."""
    layout = SequenceLengths.from_lengths([20, 30])
    qkv = torch.randn(50, 3, 1, 64)
    qkv[3, 0, 0, 5] = torch.nan
    angles = rope_angles(layout.positions, 64, 10_000.0)
    attn_out = find_engine("cpu").plan_attention(layout, None, angles, torch.float32)(qkv)
    assert attn_out[3].isnan().all() and attn_out[20:].isfinite().all()
    hidden, normed = calls.residual_layer_norm(torch.full((2, 64), torch.nan), torch.zeros(2, 64), torch.ones(64), 1e-5)
    assert hidden.isnan().all() and normed.isnan().all()
    assert calls.geglu(torch.full((1, 64), torch.nan)).isnan().all()
    logits = torch.zeros(2, 50)
    logits[0, 7] = torch.nan
    assert calls.cross_entropy_(logits, torch.zeros(50), torch.tensor([1, 2]), torch.zeros(50)) != 0
    assert logits[0].isnan().all() and logits[1].isfinite().all()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("wide, narrow", [("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")])
def test_residual_layer_norm_equals_torch(wide: str, narrow: str, dropout: float) -> None:
    """The same seed applied to ones gives the dropout mask."""
    wide_type, narrow_type = getattr(torch, wide), getattr(torch, narrow)
    hidden, delta = (torch.randn(201, 96) * 3 + 1).to(wide_type), torch.randn(201, 96).to(narrow_type)
    scale = torch.rand(96) + 0.5
    upstream = torch.randn(201, 96).to(wide_type), torch.randn(201, 96).to(narrow_type)

    def gradients(outputs: tuple[Tensor, Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(outputs, inputs, [g.to(o.dtype) for g, o in zip(upstream, outputs, strict=True)])

    ours = [x.clone().requires_grad_() for x in (hidden, delta, scale)]
    torch.manual_seed(7)
    outputs = calls.residual_layer_norm(*ours, 1e-5, dropout)
    torch.manual_seed(7)
    mask, _ = calls.residual_layer_norm(torch.zeros(201, 96), torch.ones(201, 96), scale, 1e-5, dropout)
    theirs = [x.double().requires_grad_() for x in (hidden, delta, scale)]
    total = theirs[0] + theirs[1] * mask
    expected = total, F.layer_norm(total, (96,), theirs[2], None, 1e-5)
    for mine, other in zip(
        (*outputs, *gradients(outputs, ours)), (*expected, *gradients(expected, theirs)), strict=True
    ):
        assert error(mine, other) < (TOLERANCE[torch.float32] if wide == narrow == "float32" else 6e-3)


def test_the_sum_without_the_norm_has_a_gradient() -> None:
    hidden, delta = torch.randn(3, 64, requires_grad=True), torch.randn(3, 64, requires_grad=True)
    total, _ = calls.residual_layer_norm(hidden, delta, torch.ones(64), 1e-5)
    for grad in torch.autograd.grad(total.sum(), (hidden, delta)):
        assert torch.equal(grad, torch.ones(3, 64))


def test_dropout_keeps_the_mean_and_differs_between_calls() -> None:
    ones, scale = torch.ones(1_000, 64), torch.ones(64)
    first, second = (calls.residual_layer_norm(torch.zeros(1_000, 64), ones, scale, 1e-5, 0.1)[0] for _ in range(2))
    kept = torch.tensor(1 / 0.9)
    assert first.unique().tolist() == [0, kept]
    # 64,000 draws: five deviations.
    assert (first == 0).float().mean() == pytest.approx(0.1, abs=5 * (0.09 / 64_000) ** 0.5)
    assert ((first == 0) & (second == 0)).float().mean() == pytest.approx(0.01, abs=5 * (0.0099 / 64_000) ** 0.5)
    neighbours = (first[:, 1:] == 0) & (first[:, :-1] == 0)
    assert neighbours.float().mean() == pytest.approx(0.01, abs=5 * (0.0099 / 63_000) ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_geglu_equals_torch(dtype: torch.dtype) -> None:
    both = torch.cat([torch.linspace(-12, 12, 4_000).view(25, 160), torch.randn(25, 160)], dim=1).to(dtype)
    upstream = torch.randn(25, 160).to(dtype)
    ours, theirs = both.clone().requires_grad_(), both.double().requires_grad_()
    out = calls.geglu(ours)
    activated, gate = theirs.chunk(2, dim=-1)
    expected = F.gelu(activated) * gate
    assert error(out, expected) < TOLERANCE[dtype]
    (mine,) = torch.autograd.grad(out, ours, upstream)
    (other,) = torch.autograd.grad(expected, theirs, upstream.double())
    assert error(mine, other) < TOLERANCE[dtype]
    if dtype == torch.float32:
        torch.testing.assert_close(out, expected.float(), atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [512, 515, 3])
def test_cross_entropy_equals_torch(width: int, dtype: torch.dtype) -> None:
    logits, bias = (torch.randn(150, width) * 5).to(dtype), torch.randn(width)
    labels = torch.randint(0, width, (150,))
    plain = (logits.double(), bias.double())
    theirs = [x.clone().requires_grad_() for x in plain]
    expected = F.cross_entropy(theirs[0] + theirs[1], labels, reduction="sum")
    expected.backward()
    expected = expected.detach()
    found = logits.clone()
    assert calls.cross_entropy_(found, bias, labels, None) == pytest.approx(float(expected), rel=1e-5)
    assert torch.equal(found, logits), "without a gradient the logits are not changed"
    grad_bias = torch.ones(width)
    assert calls.cross_entropy_(found, bias, labels, grad_bias) == pytest.approx(float(expected), rel=1e-5)
    assert error(found, theirs[0].grad) < TOLERANCE[dtype]
    assert error(grad_bias - 1, theirs[1].grad) < 1e-5


def test_the_optimizer_equals_its_formula_in_torch() -> None:
    """Sizes below, at and above a vector and a block; a gradient that outgrows its second moment shortens the step."""
    shapes = [(3,), (16,), (70, 513), (1,)]
    ours, theirs = ([torch.nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    optimizers = [
        StableAdamW(weights, lr=1e-2, weight_decay=0.1, kernels=kernels)
        for weights, kernels in ((ours, find_optimizer_kernels(torch.device("cpu"))), (theirs, None))
    ]
    for step in range(6):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape) * 10.0 ** (step % 3 - 1)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-5)


def loss_and_gradients(model: MaskedLM, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randint(0, 512, (n,), generator=generator).numpy() for n in (5, 400, 64, 1, 130)]
    plain = Batch.from_documents(documents)
    where = torch.arange(0, 600, 3)
    batch = Batch(plain.tokens, plain.layout, where, plain.tokens[where])
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss, _ = masked_lm(model, batch)
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_training_step_equals_that_of_the_other_engines(small_model: MaskedLM, dtype: torch.dtype) -> None:
    exact = loss_and_gradients(small_model, torch.float32)
    small_model.model.engine = find_engine("cpu")
    native = loss_and_gradients(small_model, dtype)
    for found, expected in zip(native, exact, strict=True):
        assert error(found, expected) < (5e-6 if dtype == torch.float32 else 0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype) -> None:
    before = torch.get_num_threads()
    found = []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            torch.manual_seed(0)
            both = torch.randn(300, 256).to(dtype).requires_grad_()
            delta, scale = torch.randn(300, 128).to(dtype).requires_grad_(), torch.ones(128, requires_grad=True)
            hidden, normed = calls.residual_layer_norm(calls.geglu(both), delta, scale, 1e-5)
            # The last document is split into several tasks.
            cases = ([200, 900], WINDOW), ([200, 900], None), ([5_000], None)
            outputs = [tensor for lengths, window in cases for tensor in attention("cpu", lengths, window, dtype)]
            grads = torch.autograd.grad((hidden.float() + normed.float()).square().sum(), (both, delta, scale))
            logits, grad_bias = torch.randn(300, 700).to(dtype), torch.zeros(700)
            loss = calls.cross_entropy_(logits, torch.zeros(700), torch.arange(300), grad_bias)
            moments = [torch.zeros(90_000)], [torch.zeros(90_000)]
            (squares,) = calls.update_moments_([torch.randn(90_000)], *moments, (0.9, 0.98), 1e-6).tolist()
            found.append([*outputs, *grads, logits, grad_bias, torch.tensor([loss, squares], dtype=torch.float64)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("window", [None, WINDOW, (3, 3)], ids=str)
def test_attention_with_amx_tiles_equals_dense(window: Window, tiles: None) -> None:
    for lengths in (each for each in LENGTHS if max(each) <= 200):  # emulation is slow
        exact = attention("reference", lengths, window, torch.bfloat16, exact=True)
        for found, expected in zip(attention("cpu", lengths, window, torch.bfloat16), exact, strict=True):
            assert error(found, expected) < TOLERANCE[torch.bfloat16]


def test_an_encoder_with_amx_tiles_equals_dense(tiles: None) -> None:
    assert_whole_encoder(torch.bfloat16, [7], [3, 150, 65])
    assert_linear((192, 320), 47, torch.bfloat16)


def assert_whole_encoder(dtype: torch.dtype, *batches: list[int]) -> None:
    """All layers in one call, with a chunk of rows per thread and with shared rows."""
    config = ModelConfig.preset("tiny")
    plain = Encoder(config, find_engine("reference")).eval()
    initialize(plain, config, seed=0)
    plain = plain.to(dtype)
    exact, fused = copy.deepcopy(plain).double(), copy.deepcopy(plain)
    fused.engine = find_engine("cpu")
    permit_plans(fused)
    with torch.inference_mode():
        for lengths in batches:
            batch = Batch.from_documents([list(range(length)) for length in lengths])
            expected, found = (model(batch.tokens, batch.layout) for model in (exact, fused))
            assert error(found, expected) < 2 * TOLERANCE[dtype]


def gradients_of(
    engine: str, dtype: torch.dtype, vocabulary: int, *, recompute: bool = False, trained: str = ""
) -> dict[str, Tensor]:
    """Return the gradients of a small model with widths that the C++ GEMMs support."""
    config = ModelConfig.preset("tiny", vocab_size=vocabulary, attention_output_dropout=0.0)
    model = MaskedLM(config, find_engine(engine))
    initialize(model, config, seed=0)
    model = model.to(torch.float64 if engine == "reference" else torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    model.model.recompute = recompute
    documents = Batch.from_documents([list(range(length)) for length in (37, 200, 5)])
    where = torch.arange(0, 242, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        masked_lm(model, Batch(documents.tokens, documents.layout, where, where.clone()))[0].backward()
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("trained", ["", "layers.2.mlp.Wi", "layers.2.mlp_norm", "head", "embeddings"])
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_of_a_model_equal_the_reference(recompute: bool, trained: str) -> None:
    """With all parameters or only some trained, and with recomputed layers."""
    expected = gradients_of("reference", torch.float32, 4_096, trained=trained)
    found = gradients_of("cpu", torch.float32, 4_096, recompute=recompute, trained=trained)
    assert found.keys() == expected.keys() and found
    assert all(error(found[name], expected[name]) < 5e-6 for name in expected)


@pytest.mark.parametrize("vocabulary", [4_096, 4_020])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_decoder_is_trained_in_chunks(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, vocabulary: int) -> None:
    """With a vocabulary that the C++ GEMMs support, and one that they do not."""
    monkeypatch.setattr(decoding, "CHUNK_ROWS", 50)
    expected = gradients_of("reference", torch.float32, vocabulary, trained="decoder")
    found = gradients_of("cpu", dtype, vocabulary, trained="decoder")
    expected |= gradients_of("reference", torch.float32, vocabulary, trained="embeddings")
    found |= gradients_of("cpu", dtype, vocabulary, trained="embeddings")
    assert found.keys() == expected.keys() and len(found) == 3
    assert all(error(found[name], expected[name]) < (5e-6 if dtype == torch.float32 else 3e-2) for name in expected)


def test_changes_of_a_layer_take_effect() -> None:
    """Hooks, a bias that is added later, and pruning, which recomputes weights in every forward pass."""
    config = ModelConfig.preset("tiny")
    model = MaskedLM(config, find_engine("cpu")).eval()
    initialize(model, config, seed=0)
    batch, layer = Batch.from_documents([list(range(50))]), model.model.layers[0].attn.Wqkv
    plain, seen = model(batch), []
    handle = layer.register_forward_hook(lambda *passed: seen.append(1))
    assert error(model(batch), plain) < 1e-5 and seen == [1]
    handle.remove()
    layer.bias = torch.nn.Parameter(torch.ones(len(layer.weight)))
    assert error(model(batch), plain) > 1e-3
    prune.random_unstructured(model.model.layers[1].mlp.Wi, "weight", 0.5)
    for _ in range(2):
        model(batch).sum().backward()


def test_kernels_for_avx2_equal_dense(avx2: None) -> None:
    for window, dtype in itertools.product((None, WINDOW), TOLERANCE):
        exact = attention("reference", [3, 200, 65], window, dtype, exact=True)
        for found, expected in zip(attention("cpu", [3, 200, 65], window, dtype), exact, strict=True):
            assert error(found, expected) < TOLERANCE[dtype]
    for dtype in TOLERANCE:
        assert_whole_encoder(dtype, [7], [3, 200, 65], [400, 300])
        assert_linear((1_600, 896), 145, dtype)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and no loaded library."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build._load.cache_clear()
    yield tmp_path
    build._load.cache_clear()


@pytest.fixture(scope="module")
def library_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled library, without optimization, which would triple the time."""
    made = tmp_path_factory.mktemp("library") / "kernels.so"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_FLAGS", ["-O0" if flag == "-O3" else flag for flag in build._FLAGS])
        build._compile(made)
    return made


@pytest.fixture
def compilations(library_file: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Record compilations, which copy a library that is compiled already."""
    made: list[Path] = []

    def compile_library(target: Path) -> None:
        shutil.copy(library_file, target)
        made.append(target)

    monkeypatch.setattr(build, "_compile", compile_library)
    return made


def test_a_machine_without_a_compiler_says_so(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cpu, config = torch.device("cpu"), ModelConfig.preset("base")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert choose_engine("auto", cpu, torch.float32, config).name == "torch"
    assert "engine torch, since cpu needs a C++ compiler, found none (apt install g++)" in caplog.text
    with pytest.raises(InputError, match="cpu needs a C.. compiler"):
        choose_engine("cpu", cpu, torch.float32, config)


def test_a_cached_library_needs_no_compiler(
    empty_cache: Path, compilations: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build.unavailable_reason() is None
    build._load.cache_clear()
    monkeypatch.setattr(build, "_compile", COMPILE)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert build.unavailable_reason() is None


def test_the_library_is_compiled_once_and_again_if_damaged(
    empty_cache: Path, compilations: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        build._load.cache_clear()
        assert build.unavailable_reason() is None
    assert len(compilations) == 1
    (made,) = empty_cache.rglob("*.so")
    monkeypatch.setenv("XDG_CACHE_HOME", str(empty_cache / "other"))
    damaged = empty_cache / "other" / "modernbert" / made.name
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(made.read_bytes()[:1000])
    build._load.cache_clear()
    assert build.unavailable_reason() is None
    assert len(compilations) == 2 and damaged.stat().st_size == made.stat().st_size


def test_without_a_cache_the_library_is_used_by_one_process(
    empty_cache: Path, compilations: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (empty_cache / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(empty_cache / "file"))
    assert build.unavailable_reason() is None
    assert "the next process compiles the kernels again" in caplog.text
    assert calls.geglu(torch.ones(2, 32)).shape == (2, 16)


def test_a_user_without_a_home_has_a_cache(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert build._target({"avx2"}).is_absolute()


def test_a_library_that_another_user_may_have_made_is_not_loaded(
    empty_cache: Path, compilations: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    """The digest at the end of the file does not protect: another user could write a matching digest."""
    assert build.unavailable_reason() is None
    (made,) = empty_cache.rglob("*.so")
    assert made.parent.stat().st_mode & 0o077 == 0, "only this user can read the folder"
    code = b"another library"
    made.write_bytes(code + hashlib.sha256(code).digest())
    for planted, owner, mode in (
        (made, 0, 0o646), (made.parent, 0, 0o707), (made, 65534, 0o644), (made.parent, 65534, 0o700),
    ):  # fmt: skip
        if owner and os.getuid() != 0:
            continue  # only root can give a file away
        before = planted.stat()
        os.chown(planted, owner or before.st_uid, -1)
        planted.chmod(mode)
        caplog.clear()
        build._load.cache_clear()
        assert build.unavailable_reason() is None
        assert calls.geglu(torch.ones(2, 32)).shape == (2, 16)
        said = caplog.text
        assert f"{planted}: " in said and "so it is not used; the next process compiles the kernels again" in said
        assert made.read_bytes().startswith(code)
        os.chown(planted, before.st_uid, -1)
        planted.chmod(before.st_mode)


@pytest.mark.parametrize("width", [8, 24, 190, 200])
def test_widths_that_are_not_whole_vectors_use_torch(width: int) -> None:
    """A last vector that ends past its row would overwrite other memory."""
    cpu, config = torch.device("cpu"), ModelConfig.preset("base", intermediate_size=width)
    assert choose_engine("auto", cpu, torch.float32, config).name == "torch"
    with pytest.raises(InputError, match=f"cpu needs an intermediate_size that divides by 16, found {width}"):
        choose_engine("cpu", cpu, torch.float32, config)
    with pytest.raises(ValueError, match="expected a multiple of 16"):
        calls.geglu(torch.zeros(3, 2 * width))
    with pytest.raises(ValueError, match="expected a multiple of 16"):
        calls.residual_layer_norm(torch.zeros(3, width), torch.zeros(3, width), torch.ones(width), 1e-5)
