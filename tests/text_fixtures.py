"""Texts of a small artificial language, a tokenizer trained on them, and their shards."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from modernbert.data.corpus import Document, Tally
from modernbert.data.shards import Shards, write_shards
from modernbert.tokenizer.bpe_training import train_tokenizer
from modernbert.tokenizer.tokenizer import Tokenizer

MakeTexts = Callable[..., list[str]]
MakeShards = Callable[..., Shards]


def _sentences(num: int, seed: int, longest: int = 120) -> list[str]:
    """Return sentences of an artificial language with Zipf-distributed words."""
    rng = random.Random(seed)
    syllables = [a + b + c for a in "bdkmnprstv" for b in "aeiou" for c in ("", "n", "r", "st")]
    words = ["".join(random.Random(n).choices(syllables, k=1 + n % 3)) for n in range(800)]
    weights = [1 / (n + 1) for n in range(len(words))]
    return [" ".join(rng.choices(words, weights, k=rng.randint(1, longest))).capitalize() + "." for _ in range(num)]


@pytest.fixture(scope="session")
def make_texts() -> MakeTexts:
    return _sentences


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(_sentences(400, seed=1), 512)


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_folder(folder, 1024)
    return folder


@pytest.fixture
def make_shards(tokenizer_folder: Path, tmp_path: Path) -> MakeShards:
    def make(texts: Sequence[str], name: str = "shards", shard_chars: int = 5_000) -> Shards:
        documents = (Document(text, f"{name}:{n}") for n, text in enumerate(texts))
        write_shards(documents, tokenizer_folder, tmp_path / name, tally=Tally(), shard_chars=shard_chars)
        return Shards.open(tmp_path / name)

    return make
