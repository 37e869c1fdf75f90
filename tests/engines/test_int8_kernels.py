"""Int8 layers: kernels against the formula, the formula against float32, and outliers that it must survive."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modernbert.batch import Batch
from modernbert.engines.cpu import build
from modernbert.engines.registry import find_engine
from modernbert.errors import InputError
from modernbert.inference.loading import permit_plans
from modernbert.model.config import ModelConfig
from modernbert.model.encoder import Encoder
from modernbert.model.initialization import initialize
from modernbert.model.int8_linear import Int8Linear, linear_slots

needs_kernels = pytest.mark.skipif(build.unavailable_reason() is not None, reason=f"cpu {build.unavailable_reason()}")

# Blocks of 128 inputs, and of 64: 192 is no multiple of 128.
WIDTHS = [{}, {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 320}]


def float_encoder(num_layers: int = 3, scale: float = 4, **changes: int) -> Encoder:
    """Return an encoder with weights of larger scale, so that its layers change the residual stream."""
    config = ModelConfig.preset("tiny", num_hidden_layers=num_layers, **changes)
    encoder = Encoder(config, find_engine("reference"))
    initialize(encoder, config, seed=1)
    with torch.no_grad():
        for _, _, linear in linear_slots(encoder):
            linear.weight *= scale
    return encoder.eval()


def quantized(encoder: Encoder) -> Encoder:
    encoder = copy.deepcopy(encoder)
    for parent, name, linear in linear_slots(encoder):
        parent.add_module(name, Int8Linear.quantize(linear.weight).eval())
    return encoder


def planned(encoder: Encoder, dtype: torch.dtype = torch.float32) -> Encoder:
    encoder = copy.deepcopy(encoder).to(dtype)
    encoder.engine = find_engine("cpu")
    permit_plans(encoder)
    return encoder


def batch_of(lengths: list[int]) -> Batch:
    generator = torch.Generator().manual_seed(len(lengths))
    return Batch.from_documents([torch.randint(5, 4000, (length,), generator=generator).tolist() for length in lengths])


@torch.inference_mode()
def states(encoder: Encoder, batch: Batch) -> Tensor:
    hidden: Tensor = encoder(batch.tokens, batch.layout)
    if encoder.plans is not None:
        assert encoder.plans.find(encoder, batch.tokens, batch.layout) is not None
    return hidden.float()


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def assert_kernels_equal_formula(bits: int, lengths: list[int]) -> None:
    """The kernels follow the roundings of the formula, but for attention, GELU and the last bits of float32.

    Independent roundings would make their difference 1.4 times the error of the formula.
    """
    for widths in WIDTHS:
        exact = float_encoder(**widths)
        formula, batch = quantized(exact), batch_of(lengths)
        expected, best = states(formula, batch), states(exact, batch)
        noise, found = error(expected, best), states(planned(formula), batch)
        bound = 1.3 if bits == 8 else 2.2  # of 7 bits, the noise of the activations is twice as large
        assert error(found, best) < bound * noise
        assert bits == 7 or error(found, expected) < 1.1 * noise
        narrow = torch.bfloat16
        rounding = error(states(planned(exact, narrow), batch), best)
        assert error(states(planned(formula, narrow), batch), best) < bound * (noise + rounding)


@needs_kernels
@pytest.mark.parametrize("lengths", [[1], [16, 1], [129, 1, 300], [3] * 30, [700]], ids=str)
def test_kernels_equal_the_formula(lengths: list[int]) -> None:
    assert_kernels_equal_formula(8, lengths)


@needs_kernels
def test_kernels_for_amx_equal_the_formula(tiles: None) -> None:
    assert_kernels_equal_formula(8, [3, 40])


@needs_kernels
def test_kernels_for_avx2_equal_the_formula_with_activations_of_seven_bits(avx2: None) -> None:
    assert_kernels_equal_formula(7, [129, 1, 300])


@needs_kernels
def test_kernels_for_avx_vnni_equal_the_formula(avx_vnni: None) -> None:
    assert_kernels_equal_formula(8, [129, 1, 30])


@needs_kernels
@settings(max_examples=20, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=6), num_threads=st.integers(1, 4))
def test_a_text_has_the_same_bits_alone_and_in_any_batch(lengths: list[int], num_threads: int) -> None:
    encoder = planned(quantized(float_encoder()), torch.bfloat16)
    whole, threads = batch_of(lengths), torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        together = states(encoder, whole).split(lengths)
        for tokens, expected in zip(whole.tokens.split(lengths), together, strict=True):
            assert torch.equal(states(encoder, Batch.from_documents([tokens.tolist()])), expected)
    finally:
        torch.set_num_threads(threads)


def test_products_are_those_of_float32_but_for_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    for width in (64, 128, 192, 768):
        weight, rows = (torch.randn(number, width, generator=generator) for number in (96, 50))
        found = Int8Linear.quantize(weight)(rows)
        assert error(found, rows @ weight.T) < 0.015, "two roundings to 8 bits of numbers up to 3 or 4 deviations"


@pytest.mark.parametrize("factor", [50, 300])
@pytest.mark.parametrize("where", ["residual stream", "GeGLU products"])
def test_massive_activations_do_not_take_the_range_of_the_others(where: str, factor: int) -> None:
    """Scales for each token alone, without the rotation, lose the other numbers of the row."""
    exact = float_encoder(4, hidden_size=768, num_attention_heads=12, intermediate_size=1152, scale=2)
    batch = batch_of([100, 28])
    noise = error(states(quantized(exact), batch), states(exact, batch))
    with torch.no_grad():  # one channel; the function of the encoder stays the same
        for layer in exact.layers:
            if where == "GeGLU products":
                layer.mlp.Wi.weight[exact.config.intermediate_size + 3] *= factor
                layer.mlp.Wo.weight[:, 3] /= factor
            elif layer is not exact.layers[0]:  # which has no attention norm
                for norm, linear in ((layer.attn_norm, layer.attn.Wqkv), (layer.mlp_norm, layer.mlp.Wi)):
                    norm.weight[7] *= factor
                    linear.weight[:, 7] /= factor
    expected = states(exact, batch)
    rotated = error(states(quantized(exact), batch), expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modernbert.model.int8_linear._rotate", lambda x: x * 128**0.5)
        plain = error(states(quantized(exact), batch), expected)
    assert rotated < {50: 1.5, 300: 2.5}[factor] * noise
    assert plain > {50: 1.2, 300: 2.0}[factor] * rotated


@needs_kernels
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(number: float) -> None:
    encoder = float_encoder()
    with torch.no_grad():
        encoder.embeddings.norm.weight[3] = number
    assert not states(planned(quantized(encoder)), batch_of([20])).isfinite().any()


def test_a_width_without_blocks_is_refused() -> None:
    with pytest.raises(InputError, match="int8 needs widths that divide by 64, found a linear layer of 80"):
        Int8Linear.quantize(torch.ones(64, 80))
