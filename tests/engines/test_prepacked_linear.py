"""Prepacked weights do not change the outputs."""

import copy

import pytest
import torch

from modernbert.batch import Batch
from modernbert.engines.cpu.prepacked_linear import PrepackedLinears, can_prepack
from modernbert.inference.loading import permit_plans
from modernbert.model.config import ModelConfig
from modernbert.model.encoder import Encoder
from modernbert.model.initialization import initialize

DTYPES = [dtype for dtype in (torch.float32, torch.bfloat16) if can_prepack(torch.device("cpu"), dtype)]


@pytest.fixture
def encoder() -> Encoder:
    config = ModelConfig.preset("tiny")
    model = Encoder(config)
    initialize(model, config, seed=1)
    return model.eval()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 2, 17, 300])
def test_a_layer_computes_the_same_outputs(encoder: Encoder, dtype: torch.dtype, num_rows: int) -> None:
    torch.manual_seed(0)
    engine = PrepackedLinears(encoder.to(dtype)).engine
    with torch.inference_mode():
        for layer in (encoder.layers[0].attn.Wqkv, encoder.layers[1].mlp.Wo):
            rows = torch.randn(num_rows, layer.in_features).to(dtype)
            exact = rows.double() @ layer.weight.double().T
            error = (engine.linear(layer, rows).double() - exact).abs().max() / exact.abs().max()
            assert error < (1e-6 if dtype == torch.float32 else 2**-8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_encoder_computes_the_same(encoder: Encoder, dtype: torch.dtype) -> None:
    plain = encoder.to(dtype)
    planned = copy.deepcopy(plain)
    permit_plans(planned)
    batch = Batch.from_documents([list(range(3, 40)), [5], list(range(200))])
    with torch.inference_mode():
        expected, found = (model(batch.tokens, batch.layout).float() for model in (plain, planned))
        assert isinstance(planned.plans.find(planned, batch.tokens, batch.layout), PrepackedLinears)
    assert (found - expected).abs().max() < (1e-5 if dtype == torch.float32 else 0.1)
