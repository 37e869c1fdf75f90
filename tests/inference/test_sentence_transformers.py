"""Our module inside sentence-transformers gives the vectors of that library's own modules."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense

from modernbert import ModernBert
from modernbert.checkpoints.folder import ModelFolder
from modernbert.errors import InputError
from modernbert.inference.sentence_transformers_module import UnpaddedEncoder, sentence_transformer
from modernbert.model.embedding_config import EmbeddingConfig

pytestmark = pytest.mark.filterwarnings("ignore")

TEXTS = ["The capital of country 3 is city 21.", "rivers", "a land of 3 rivers, and of 4", "is " * 40]
CPU: dict[str, str] = {"device": "cpu", "dtype": "float32"}


@pytest.fixture
def write(tmp_path: Path, small_bert: ModernBert) -> Callable[..., Path]:
    """Write a folder that makes vectors in a way."""

    def write_folder(vectors: EmbeddingConfig, projection: torch.nn.Linear | None = None) -> Path:
        small_bert.save(tmp_path / "plain")
        model: Any = ModelFolder(tmp_path / "plain").load_model()

        ModelFolder.save(
            tmp_path / "model", model.model, small_bert.tokenizer, 1_000, vectors=vectors, projection=projection
        )
        return tmp_path / "model"

    return write_folder


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_are_those_of_sentence_transformers_and_of_the_package(
    write: Callable[..., Path], pooling: str
) -> None:
    folder = write(EmbeddingConfig(pooling=pooling, query_prompt="ask: ", document_prompt="read: ", document_length=33))
    theirs, ours = SentenceTransformer(str(folder), device="cpu"), sentence_transformer(folder, **CPU)
    bert = ModernBert.load(folder, engine="torch", **CPU)
    assert ours.max_seq_length == theirs.max_seq_length == 33
    assert ours.prompts == theirs.prompts and ours.get_embedding_dimension() == theirs.get_embedding_dimension()
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=1e-5)
    np.testing.assert_allclose(ours.encode(TEXTS[:3]), bert.embed(TEXTS[:3]), atol=1e-5)
    np.testing.assert_allclose(ours.encode_query(TEXTS), theirs.encode_query(TEXTS), atol=1e-5)
    np.testing.assert_allclose(ours.encode_document(TEXTS), theirs.encode_document(TEXTS), atol=1e-5)
    np.testing.assert_allclose(ours.encode_document(TEXTS), bert.embed_documents(TEXTS).vectors, atol=1e-5)
    options: list[dict[str, Any]] = [
        {"truncate_dim": 8}, {"normalize_embeddings": True, "truncate_dim": 8}, {"batch_size": 1}, {"prompt": "x "},
        {"prompt_name": "query"}, {"precision": "int8"}, {"convert_to_tensor": True},
    ]  # fmt: skip
    for option in options:
        found, expected = ours.encode(TEXTS, **option), theirs.encode(TEXTS, **option)
        assert type(found) is type(expected) and found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, atol=1 if option.get("precision") else 1e-5)
    np.testing.assert_allclose(ours.encode(TEXTS[1]), theirs.encode(TEXTS[1]), atol=1e-5)
    similar = [model.similarity(model.encode(TEXTS), model.encode(TEXTS)) for model in (ours, theirs)]
    torch.testing.assert_close(*similar, atol=1e-5, rtol=0)


def test_as_many_components_are_kept_as_the_folder_says(write: Callable[..., Path], tmp_path: Path) -> None:
    folder = write(EmbeddingConfig(document_prompt="read: ", truncate_dim=16))
    theirs, ours = SentenceTransformer(str(folder), device="cpu"), sentence_transformer(folder, **CPU)
    assert ours.get_embedding_dimension() == theirs.get_embedding_dimension() == 16
    expected = theirs.encode_document(TEXTS)
    np.testing.assert_allclose(ours.encode_document(TEXTS), expected, atol=1e-5)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    for written in (folder, tmp_path / "again"):
        bert = ModernBert.load(written, engine="torch", **CPU)
        assert bert.vector_width == 16
        np.testing.assert_allclose(bert.embed_documents(TEXTS).vectors, expected, atol=1e-5)
        np.testing.assert_allclose(bert.embed(TEXTS, prompt="read: "), expected, atol=1e-5)
        assert bert.embed("a", truncate_dim=64).shape == (1, 64)
        if written == folder:
            bert.save(tmp_path / "again")


def test_tokens_are_handed_out_without_padding(write: Callable[..., Path]) -> None:
    folder = write(EmbeddingConfig())
    theirs, ours = SentenceTransformer(str(folder), device="cpu"), sentence_transformer(folder, **CPU)
    found = ours.encode(TEXTS, output_value="token_embeddings", convert_to_numpy=False)
    expected = theirs.encode(TEXTS, output_value="token_embeddings", convert_to_numpy=False)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=0)


def test_a_linear_layer_and_vectors_of_any_length_stay_as_the_folder_has_them(write: Callable[..., Path]) -> None:
    folder = write(EmbeddingConfig(), torch.nn.Linear(64, 24, bias=False))
    modules = json.loads((folder / "modules.json").read_text())
    # Without the last, vectors have the length that the linear layer gives them.
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Dense", "3_Normalize"]
    (folder / "modules.json").write_text(json.dumps(modules[:3]))
    theirs, ours = SentenceTransformer(str(folder), device="cpu"), sentence_transformer(folder, **CPU)
    assert np.abs(np.linalg.norm(theirs.encode(TEXTS), axis=1) - 1).min() > 0.01
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=1e-4)
    assert ours.encode(TEXTS).shape == (4, 24)


def test_a_model_is_saved_and_loaded_with_what_was_set(tmp_path: Path, write: Callable[..., Path]) -> None:
    ours = sentence_transformer(write(EmbeddingConfig(pooling="cls", document_prompt="read: ")), **CPU)
    ours.max_seq_length = 12
    ours.prompts["other"] = "some "
    expected = ours.encode(TEXTS, prompt_name="other")
    for _ in range(2):  # the second time over the first
        ours.save(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    of_library = SentenceTransformer(
        str(tmp_path / "saved"), device="cpu", trust_remote_code=True, model_kwargs={"dtype": "float32"}
    )
    for again in (of_library, sentence_transformer(tmp_path / "saved", **CPU)):
        assert type(again[0]) is UnpaddedEncoder and again.max_seq_length == 12
        np.testing.assert_array_equal(again.encode(TEXTS, prompt_name="other"), expected)
    bert = ModernBert.load(tmp_path / "saved", engine="torch", **CPU)
    assert (bert.vectors.pooling, bert.vectors.document_prompt, bert.vectors.document_length) == ("cls", "read: ", 12)
    np.testing.assert_allclose(bert.embed_documents(TEXTS).vectors, ours.encode_document(TEXTS), atol=1e-5)


def test_what_a_folder_says_of_length_stays_when_it_is_saved(tmp_path: Path, write: Callable[..., Path]) -> None:
    folder = write(EmbeddingConfig(query_length=5, document_length=12))
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:-1]))
    ours = sentence_transformer(folder, **CPU)
    ours.save(str(tmp_path / "saved"))
    again = sentence_transformer(tmp_path / "saved", **CPU)
    np.testing.assert_array_equal(again.encode(TEXTS), ours.encode(TEXTS))
    assert np.abs(np.linalg.norm(again.encode(TEXTS), axis=1) - 1).min() > 0.01
    vectors = ModernBert.load(tmp_path / "saved", **CPU).vectors
    assert (vectors.query_length, vectors.document_length) == (5, 12)


def test_modules_of_the_library_may_follow(write: Callable[..., Path]) -> None:
    bert = ModernBert.load(write(EmbeddingConfig()), **CPU)
    dense = Dense(64, 8, bias=True, activation_function=torch.nn.Tanh())
    ours = SentenceTransformer(modules=[UnpaddedEncoder(bert), dense], device="cpu")
    with torch.no_grad():
        expected = torch.tanh(dense.linear(torch.from_numpy(bert.embed(TEXTS))))
    np.testing.assert_allclose(ours.encode(TEXTS), expected, atol=1e-5)


def test_precision_can_be_changed_and_a_copy_computes_the_same(write: Callable[..., Path]) -> None:
    import pickle

    ours = sentence_transformer(write(EmbeddingConfig()), **CPU)
    expected = ours.encode(TEXTS)
    copied = pickle.loads(pickle.dumps(ours[0]))  # as it goes to other processes
    np.testing.assert_array_equal(SentenceTransformer(modules=[copied], device="cpu").encode(TEXTS), expected)
    np.testing.assert_array_equal(ours.encode(TEXTS), expected)
    half = ours.bfloat16().encode(TEXTS)
    cosines = (half * expected).sum(1) / np.linalg.norm(half, axis=1)
    assert ours.dtype == torch.bfloat16 and cosines.min() > 0.999 and np.abs(half - expected).max() > 1e-5
    np.testing.assert_allclose(ours.float().encode(TEXTS), expected, atol=0.05)
    # Which the loops for a CPU do not compute in.
    found = ours.half().encode(TEXTS)
    assert ours.dtype == torch.float16
    np.testing.assert_allclose(found, ours.float().encode(TEXTS), atol=0.01)


def test_what_the_module_is_not_for_is_refused(write: Callable[..., Path]) -> None:
    folder = write(EmbeddingConfig())
    ours = sentence_transformer(folder, **CPU)
    with pytest.raises(InputError, match="inputs: found tuple, expected str"):
        ours.encode(["a", ("a", "b")])  # type: ignore[list-item]
    ours.train()
    with pytest.raises(InputError, match="not for training"):
        ours(ours.preprocess(["a"]))
    with pytest.raises(InputError, match="attn_implementation: is not supported"):
        UnpaddedEncoder.load(str(folder), model_kwargs={"attn_implementation": "sdpa"})
    settings = folder / "config_sentence_transformers.json"
    settings.write_text(json.dumps({"model_type": "ColBERT", "do_query_expansion": False}))
    with pytest.raises(InputError, match="a vector for each token"):
        sentence_transformer(folder, **CPU)
