"""Fuzzed model folders: each loads and computes, or is refused with an `InputError`."""

import copy
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modernbert import ModernBert
from modernbert.errors import InputError

EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", 15))
fuzzed = settings(
    max_examples=EXAMPLES, deadline=None, database=None, derandomize=EXAMPLES == 15,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

NUMBERS = st.one_of(
    st.integers(), st.sampled_from([0, -1, 1, 2**31, 2**63, 10**400, 0.5, 1e308, 1e-320, float("nan"), float("inf")])
)
TEXTS = st.one_of(st.text(max_size=8), st.sampled_from(["modernbert", "bert", "../x", "[CLS]", "\x1b[2J", "a" * 3_000]))
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)


def places(document: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to every value of a document; in long lists and objects, to the first and the last."""
    yield way
    keys = (
        list(document)
        if isinstance(document, dict)
        else list(range(len(document) if isinstance(document, list) else 0))
    )
    for key in keys if len(keys) < 40 else [*keys[:5], *keys[-5:]]:
        yield from places(document[key], (*way, key))


@st.composite
def damaged(draw: st.DrawFn, document: Any) -> Any:
    """Draw a document with some values replaced, removed or added."""
    changed = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from([each for each in places(changed) if each] or [("new",)]))
        holder = changed
        for key in way:
            holder = holder[key]
        if isinstance(holder, dict) and last in holder and draw(st.integers(0, 9)) == 0:
            del holder[last]
        else:
            holder[last] = draw(ANYTHING)
    return changed


def answers(folder: Path) -> bool:
    """Load a folder and use it; return whether it was accepted."""
    try:
        bert = ModernBert.load(folder, device="cpu", dtype="float32", engine="torch")
        bert.embed(["a city", "aaaa"])
        bert.embed_documents(["a city"])
        bert.tokenizer.encode_pairs([("a", "b")])
    except InputError as error:
        assert str(error).isprintable()
        return False
    return True


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, small_bert: ModernBert) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("good")
    small_bert.save(root / "ours")
    sizes = dict(vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)
    torch.manual_seed(0)
    bert = transformers.BertModel(transformers.BertConfig(**sizes, max_position_embeddings=300))
    bert.save_pretrained(root / "bert")
    small_bert.tokenizer.save_folder(root / "bert", 300)
    return {name: root / name for name in ("ours", "bert")}


@pytest.mark.parametrize(
    ("of", "file"),
    [
        ("ours", "config.json"), ("bert", "config.json"), ("ours", "tokenizer.json"), ("ours", "tokenizer_config.json"),
        ("ours", "special_tokens_map.json"), ("ours", "modules.json"), ("ours", "config_sentence_transformers.json"),
        ("ours", "1_Pooling/config.json"),
    ],
)  # fmt: skip
def test_any_settings_are_refused_or_do(good: dict[str, Path], tmp_path: Path, of: str, file: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(good[of], folder)
    assert answers(folder)
    usual = {
        "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}],
        "config_sentence_transformers.json": {"prompts": {"query": "a ", "document": ""}, "query_length": 8},
        "1_Pooling/config.json": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
    }
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    document = json.loads(path.read_text()) if path.exists() else usual[file]

    @fuzzed
    @given(st.one_of(damaged(document), ANYTHING))
    def attempt(content: Any) -> None:
        path.write_text(json.dumps(content))
        answers(folder)

    attempt()


def test_any_header_of_weights_is_refused_or_does(good: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(good["ours"], folder)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]

    @fuzzed
    @given(damaged(header), st.binary(max_size=3), st.integers(0, length), st.booleans())
    def attempt(changed: Any, noise: bytes, place: int, by_bytes: bool) -> None:
        written = json.dumps(changed).encode()
        if by_bytes:
            written = whole[8 : 8 + place] + noise + whole[8 + place + len(noise) : 8 + length]
        path.write_bytes(len(written).to_bytes(8, "little") + written + data)
        answers(folder)

    attempt()


def test_any_index_is_refused_or_does(good: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(good["ours"], folder)
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {"model.final_norm.weight": "a.safetensors", "b": "a.safetensors"},
    }
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    assert answers(folder)

    @fuzzed
    @given(st.one_of(damaged(index), ANYTHING))
    def attempt(content: Any) -> None:
        path.write_text(json.dumps(content))
        answers(folder)

    attempt()
