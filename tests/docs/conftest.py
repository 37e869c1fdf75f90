"""A stand-in for the Hub, and a process that runs the commands of pages."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_cache import add_to_cache

from docs.page_shell import CommandServer
from modernbert.inference.modernbert import ModernBert
from modernbert.model.config import ModelConfig
from modernbert.model.heads import MaskedLM
from modernbert.model.initialization import initialize
from modernbert.tokenizer.bpe_training import train_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory, minilm_folder: Path) -> Iterator[Path]:
    """A cache of the Hub: a small random model of the width of ModernBERT-base by its name, and the real MiniLM."""
    cache = tmp_path_factory.mktemp("hub")
    texts = [path.read_text() for path in (ROOT / "modernbert" / "data" / "example_files").rglob("*.*")]
    tokenizer = train_tokenizer(texts, 1024)
    config = ModelConfig(
        vocab_size=1024, hidden_size=768, intermediate_size=64, num_hidden_layers=1, num_attention_heads=12,
        pad_token_id=tokenizer.pad_id, cls_token_id=tokenizer.cls_id, sep_token_id=tokenizer.sep_id,
    )  # fmt: skip
    model = MaskedLM(config)
    initialize(model, config, seed=0)
    for name, write in {
        "answerdotai/ModernBERT-base": ModernBert(tokenizer, model.eval()).save,
        "sentence-transformers/all-MiniLM-L6-v2": lambda folder: shutil.copytree(minilm_folder, folder),
    }.items():
        add_to_cache(cache, name, write)
    yield cache
    shutil.rmtree(cache)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, hub: Path) -> Iterator[CommandServer]:
    server = CommandServer(tmp_path_factory.mktemp("server"), PYTHONPATH=str(ROOT), HF_HUB_CACHE=str(hub))
    yield server
    server.close()
