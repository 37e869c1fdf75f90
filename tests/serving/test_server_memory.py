"""The memory of a server is bounded for outputs that are as wide as the vocabulary."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import Served

from modernbert import ModernBert
from modernbert.checkpoints.folder import ModelFolder
from modernbert.model.config import ModelConfig
from modernbert.model.heads import MaskedLM
from modernbert.model.initialization import initialize

pytest.importorskip("fastapi")
pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts a process's memory")

MOST_BYTES = 300_000_000
ENTRIES = 50_368


@pytest.fixture(scope="module")
def folder(small_bert: ModernBert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow model with the published vocabulary's number of entries, and a tokenizer with as many."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    config = ModelConfig(
        vocab_size=ENTRIES, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=8_192,
    )  # fmt: skip
    model = MaskedLM(config)
    initialize(model, config, seed=0)

    ModelFolder.save(folder, model.eval(), small_bert.tokenizer, 8_192)
    place = folder / "tokenizer.json"
    found = json.loads(place.read_text())
    # Added tokens keep their ids if they are in the vocabulary too.
    found["model"]["vocab"] |= {token["content"]: token["id"] for token in found["added_tokens"]}
    found["model"]["vocab"] |= {f"entry{n}": n for n in range(small_bert.tokenizer.vocab_size, ENTRIES)}
    place.write_text(json.dumps(found))
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    with Served(folder) as server:
        yield server


def status_of(process: int) -> dict[str, int]:
    """Return the memory of a process in bytes: VmRSS now, VmHWM at its peak."""
    found = re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return {name: 1024 * int(kilobytes) for name, kilobytes in found}


def growth(server: Served, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    """Return by how many bytes a request raises the server's peak memory, and the answer."""
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
    before = status_of(server.process.pid)["VmRSS"]
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=120)
    assert answer.status_code == 200, answer.text[:300]
    return status_of(server.process.pid)["VmHWM"] - before, answer.json()


def test_thousands_of_masks_take_as_much_memory_as_a_few(server: Served, folder: Path) -> None:
    growth(server, "/fill-mask", {"inputs": "a [MASK]"})
    grown, found = growth(server, "/fill-mask", {"inputs": "[MASK]" * 3_000})
    assert grown < MOST_BYTES
    assert len(found) == 3_000 and {len(guesses) for guesses in found} == {5}
    bert = ModernBert.load(folder, device="cpu", dtype="float32")
    text = "a [MASK] and [MASK]"
    _, found = growth(server, "/fill-mask", {"inputs": text})
    expected = [[(each.token, each.text) for each in guesses] for guesses in bert.fill_mask(text)]  # type: ignore[union-attr]
    assert [[(each["token"], each["token_str"]) for each in guesses] for guesses in found] == expected
