"""Selected rows: hidden states and gradients equal a pass over all rows."""

import pytest
import torch

from modernbert.batch import Batch
from modernbert.engines.cpu import build
from modernbert.engines.registry import choose_engine, find_engine
from modernbert.inference.loading import permit_plans
from modernbert.model.config import ModelConfig
from modernbert.model.encoder import Encoder
from modernbert.model.heads import MaskedLM
from modernbert.model.initialization import initialize
from modernbert.training.losses import masked_lm

ENGINES = ["reference", "torch", pytest.param("cpu", marks=pytest.mark.skipif(
    build.unavailable_reason() is not None, reason=f"cpu {build.unavailable_reason()}"))]  # fmt: skip
WHERE = [[0], [3, 4, 80, 199], list(range(200)), []]


@pytest.fixture
def batch() -> Batch:
    return Batch.from_documents([torch.arange(length).remainder(500).numpy() for length in (5, 190, 4, 1)])


def gradients(model: Encoder, total: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(total, [*model.parameters()]))


@pytest.mark.parametrize("where", WHERE, ids=lambda where: f"{len(where)} rows")
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_rows_and_gradients_equal_those_of_all_rows(
    engine: str, recompute: bool, where: list[int], batch: Batch, small_config: ModelConfig
) -> None:
    model = Encoder(small_config, find_engine(engine))
    initialize(model, small_config, seed=0)
    model.recompute = recompute
    rows = torch.tensor(where, dtype=torch.int64)
    upstream = torch.randn(len(where), small_config.hidden_size)
    alone = model(batch.tokens, batch.layout, rows)
    among = model(batch.tokens, batch.layout)[rows]
    torch.testing.assert_close(alone, among, atol=1e-5, rtol=1e-5)
    for found, expected in zip(
        gradients(model, (alone * upstream).sum()), gradients(model, (among * upstream).sum()), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_last_layer_computes_only_the_selected_rows(batch: Batch, small_config: ModelConfig) -> None:
    model = MaskedLM(small_config)
    initialize(model, small_config, seed=0)
    heights: dict[str, int] = {}
    for name, module in model.named_modules():
        if name.endswith("mlp.Wi"):
            module.register_forward_hook(lambda _, given, __, name=name: heights.update({name: len(given[0])}))
    where = torch.tensor([1, 7, 150])
    masked_lm(model, Batch(batch.tokens, batch.layout, where, batch.tokens[where]))[0].backward()
    last = small_config.num_hidden_layers - 1
    assert heights == {f"model.layers.{n}.mlp.Wi": 3 if n == last else 200 for n in range(last + 1)}


@pytest.mark.skipif(build.unavailable_reason() is not None, reason=f"cpu {build.unavailable_reason()}")
def test_an_inference_plan_returns_only_the_selected_rows(batch: Batch, small_config: ModelConfig) -> None:
    engine = choose_engine("cpu", torch.device("cpu"), torch.float32, small_config)
    model = Encoder(small_config, engine).eval()
    initialize(model, small_config, seed=0)
    where = torch.tensor([0, 199, 17])
    with torch.inference_mode():
        expected = model(batch.tokens, batch.layout)[where]
        found = permit_plans(model)(batch.tokens, batch.layout, where)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
