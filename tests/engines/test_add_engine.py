"""The example engine of CONTRIBUTING.md works with its file and an entry of the registry."""

import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from modernbert import InputError, ModernBert
from modernbert.engines import registry
from modernbert.engines.engine import Engine
from modernbert.engines.engine_names import EngineName
from modernbert.engines.registry import choose_engine

ROOT = Path(__file__).parents[2]
TEXTS = ["The capital of country 3 is city 21.", "rivers " * 200]


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Add the engine of the example to the registry."""
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Add an engine")[1]
    (code, *_) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    engine = names["CountingEngine"]()
    assert isinstance(engine, Engine)
    monkeypatch.setattr(registry, "ENGINES", [*registry.ENGINES, engine])
    return engine


def test_every_engine_is_a_choice() -> None:
    assert list(get_args(EngineName)) == ["auto", *(engine.name for engine in registry.ENGINES)]


def test_an_engine_of_one_file_gives_the_same_vectors(counting: Any, small_bert: ModernBert, tmp_path: Path) -> None:
    small_bert.save(tmp_path / "model")
    expected = ModernBert.load(tmp_path / "model", device="cpu", dtype="float32", engine="reference").embed(TEXTS)
    bert = ModernBert.load(tmp_path / "model", device="cpu", dtype="float32", engine="counting")
    np.testing.assert_allclose(bert.embed(TEXTS), expected, atol=1e-5)
    assert counting.num_gemms == 4 * bert.config.num_hidden_layers
    assert counting.flops > 0


def test_it_is_chosen_by_name_only(counting: Any, small_bert: ModernBert) -> None:
    cpu = torch.device("cpu")
    assert choose_engine("counting", cpu, torch.float32, small_bert.config) is counting
    assert choose_engine("auto", cpu, torch.float32, small_bert.config) is not counting
    with pytest.raises(
        InputError, match="engine: counting computes in float32, found torch.bfloat16; torch runs every"
    ):
        choose_engine("counting", cpu, torch.bfloat16, small_bert.config)
    with pytest.raises(InputError, match="expected auto, cuda, flash, cpu, torch, reference, counting"):
        choose_engine("count", cpu, torch.float32, small_bert.config)
