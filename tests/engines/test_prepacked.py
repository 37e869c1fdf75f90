"""Prepacked weights: the same products, the same bits back."""

import copy

import pytest
import torch
from torch import nn

from modernbert.batch import Batch
from modernbert.checkpoints.folder import unpacked
from modernbert.engines.cpu.prepacked_linear import PrepackedLinear, can_prepack, prepack_
from modernbert.model.config import ModelConfig
from modernbert.model.encoder import Encoder
from modernbert.model.initialization import initialize

DTYPES = [dtype for dtype in (torch.float32, torch.bfloat16) if can_prepack(dtype)]


@pytest.fixture
def encoder() -> Encoder:
    config = ModelConfig.preset("tiny")
    model = Encoder(config)
    initialize(model, config, seed=1)
    return model.eval()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 2, 17, 300])
def test_a_layer_computes_the_same_products(dtype, num_rows):
    torch.manual_seed(0)
    layers = [nn.Linear(96, 40, bias=False).to(dtype), nn.Linear(96, 40).to(dtype)]
    rows = torch.randn(num_rows, 96).to(dtype)
    with torch.inference_mode():
        for layer in layers:
            exact = rows.double() @ layer.weight.double().T + (0 if layer.bias is None else layer.bias.double())
            error = (PrepackedLinear(layer)(rows).double() - exact).abs().max() / exact.abs().max()
            assert error < (1e-6 if dtype == torch.float32 else 2**-8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_encoder_computes_the_same_and_gives_its_weights_back(encoder, dtype):
    plain = encoder.to(dtype)
    packed = copy.deepcopy(plain)
    prepack_(packed)
    assert not any(isinstance(module, nn.Linear) for module in packed.modules())
    batch = Batch.from_documents([list(range(3, 40)), [5], list(range(200))])
    with torch.inference_mode():
        expected, found = (model(batch.tokens, batch.layout).float() for model in (plain, packed))
    assert (found - expected).abs().max() < (1e-5 if dtype == torch.float32 else 0.1)
    back = unpacked(packed).state_dict()
    assert back.keys() == plain.state_dict().keys()
    assert all(torch.equal(back[name], weight) for name, weight in plain.state_dict().items())
    assert any(isinstance(module, PrepackedLinear) for module in packed.modules())  # a copy was unpacked
