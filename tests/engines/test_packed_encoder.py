"""The packed encoder equals the encoder layer by layer, at any lengths and number of threads."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modernbert.batch import Batch
from modernbert.checkpoints.folder import ModelFolder
from modernbert.engines.cpu import build, calls
from modernbert.engines.cpu.cpu_engine import supports_gemm
from modernbert.engines.cpu.packed_encoder import PackedEncoder
from modernbert.engines.registry import find_engine
from modernbert.inference.loading import load_model_for_inference, permit_plans
from modernbert.model.config import ModelConfig
from modernbert.model.encoder import Encoder
from modernbert.model.heads import MaskedLM
from modernbert.model.initialization import initialize

pytestmark = pytest.mark.skipif(build.unavailable_reason() is not None, reason=f"cpu {build.unavailable_reason()}")

LENGTHS = [[1], [15], [16, 1], [127], [64, 64], [129, 1, 300], [1] * 40, [700], [3] * 3 + [250] * 2]


def make(dtype: torch.dtype = torch.float32, **changes: int) -> tuple[Encoder, Encoder]:
    """Return an encoder without and with a plan; it has local and global layers, and windows shorter than texts."""
    config = ModelConfig.preset("tiny", **changes)
    plain = Encoder(config, find_engine("cpu"))
    initialize(plain, config, seed=1)
    plain = plain.to(dtype).eval()
    planned = copy.deepcopy(plain)
    permit_plans(planned)
    return plain, planned


def batch_of(lengths: list[int]) -> Batch:
    generator = torch.Generator().manual_seed(len(lengths))
    return Batch.from_documents([torch.randint(5, 4000, (length,), generator=generator).tolist() for length in lengths])


@torch.inference_mode()
def error(found: torch.nn.Module, lengths: list[int], plain: Encoder) -> float:
    """Return the relative error against dense attention and plain layers in float64."""
    exact = copy.deepcopy(plain).double()
    exact.engine = find_engine("reference")
    batch = batch_of(lengths)
    expected = exact(batch.tokens, batch.layout)
    return float((found(batch.tokens, batch.layout).double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_it_equals_the_encoder(lengths: list[int], dtype: torch.dtype) -> None:
    plain, planned = make(dtype)
    assert error(planned, lengths, plain) < (2e-6 if dtype == torch.float32 else 1e-2)


def test_in_bfloat16_it_is_more_accurate_than_layer_by_layer() -> None:
    """Its residual stream stays in float32."""
    plain, planned = make(torch.bfloat16)
    assert error(planned, [200, 70], plain) < 0.7 * error(plain, [200, 70], plain)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 260), min_size=1, max_size=8), num_threads=st.integers(1, 5))
def test_any_lengths_at_any_number_of_threads(lengths: list[int], num_threads: int) -> None:
    plain, planned = make(hidden_size=64, num_attention_heads=1, intermediate_size=64, num_hidden_layers=3)
    threads = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        assert error(planned, lengths, plain) < 2e-6
    finally:
        torch.set_num_threads(threads)


def test_a_document_alone_and_among_others_gets_the_same_vectors() -> None:
    _, planned = make()
    whole = batch_of([40, 3, 200])
    with torch.inference_mode():
        together = planned(whole.tokens, whole.layout).split([40, 3, 200])
        for tokens, expected in zip(whole.tokens.split([40, 3, 200]), together, strict=True):
            alone = Batch.from_documents([tokens.tolist()])
            assert (planned(alone.tokens, alone.layout) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packed_weights_are_unpacked_bit_for_bit(dtype: torch.dtype) -> None:
    plain, _ = make(dtype)
    weight = plain.layers[1].mlp.Wi.weight.detach()
    assert torch.equal(calls.unpack_weight(calls.pack_weight(weight, transposed=True)), weight)


def test_a_packed_panel_holds_adjacent_outputs() -> None:
    weight = torch.arange(128 * 32).view(128, 32).float()
    packed = calls.pack_weight(weight, transposed=True)
    width = packed.shape[2]
    assert 64 % width == 0, "the halves of Wi and panels of 64 are whole packed panels"
    assert packed[1, 5, 3].tolist() == [weight[width + 3, 5]]
    narrow = weight.bfloat16()
    assert calls.pack_weight(narrow, transposed=True)[1, 5, 3].tolist() == narrow[width + 3, 10:12].tolist()


@pytest.mark.parametrize("with_head", [False, True])
def test_a_model_with_a_plan_is_saved_as_published(with_head: bool, tmp_path: Path) -> None:
    config = ModelConfig.preset("tiny")
    model = MaskedLM(config) if with_head else Encoder(config)
    initialize(model, config, seed=2)
    ModelFolder.save(tmp_path / "first", model)
    loaded = load_model_for_inference(
        ModelFolder(tmp_path / "first"), torch.device("cpu"), torch.float32, find_engine("cpu")
    )
    batch = batch_of([9])
    with torch.inference_mode():
        loaded.encode(batch)
    ModelFolder.save(tmp_path / "second", loaded)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert second == first
    assert isinstance(ModelFolder(tmp_path / "second").load_model(), type(model))


@pytest.mark.parametrize("changes", [{"intermediate_size": 208}, {"hidden_size": 96, "num_attention_heads": 3}])
def test_widths_without_a_packed_gemm_are_computed_layer_by_layer(changes: dict[str, int]) -> None:
    config = ModelConfig.preset("tiny", **changes)
    assert not supports_gemm(config.hidden_size, config.intermediate_size)
    plain = Encoder(config).eval()
    initialize(plain, config, seed=0)
    batch = batch_of([30, 5])
    with torch.inference_mode():
        expected = plain(batch.tokens, batch.layout)
        if config.head_width == 64:
            plain.engine = find_engine("cpu")
        permit_plans(plain)
        assert (plain(batch.tokens, batch.layout) - expected).abs().max() < 1e-5
        assert not isinstance(plain.plans.find(plain, batch.tokens, batch.layout), PackedEncoder)
