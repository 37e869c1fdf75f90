"""The example engine of CONTRIBUTING.md works with its file alone."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from modernbert import InputError, ModernBert, engines
from modernbert.engines import registry
from modernbert.engines.engine_names import EngineName
from modernbert.engines.registry import choose_engine, find_engine

ROOT = Path(__file__).parents[2]
TEXTS = ["The capital of country 3 is city 21.", "rivers " * 200]


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Add the file of the example to the folder of engines, for one test."""
    monkeypatch.setattr(engines, "__path__", [*engines.__path__, str(written(tmp_path))])
    registry.engines.cache_clear()
    yield find_engine("counting")
    registry.engines.cache_clear()
    sys.modules.pop("modernbert.engines.counting_engine", None)


def written(folder: Path) -> Path:
    """Write the file of the example into a folder."""
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Add an engine")[1]
    (code, *_) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (folder / "engines").mkdir()
    (folder / "engines" / "counting_engine.py").write_text(code)
    return folder / "engines"


def test_every_engine_is_a_choice() -> None:
    assert set(get_args(EngineName)) == {"auto", *(engine.name for engine in registry.engines())}
    assert [engine.name for engine in registry.engines()] == ["cuda", "flash", "cpu", "torch", "reference"]


def test_the_command_line_takes_an_engine_of_one_file(small_bert: ModernBert, tmp_path: Path) -> None:
    small_bert.save(tmp_path / "model")
    code = (
        f"import modernbert.engines; modernbert.engines.__path__.append({str(written(tmp_path))!r}); "
        "from modernbert.cli.main import main; main()"
    )
    words = ["embed", str(tmp_path / "model"), "rivers", "--device", "cpu", "--dtype", "float32", "--engine"]
    found = [
        subprocess.run([sys.executable, "-c", code, *words, name], capture_output=True, text=True, check=True).stdout
        for name in ("counting", "torch")
    ]
    assert found[0] == found[1] and json.loads(found[0].splitlines()[0])


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
