"""Embedding folders: every format gives the vectors of the library that wrote it, or a one-line error."""

import json
import shutil
import string
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense

from modernbert import ModernBert
from modernbert.checkpoints.colbert_format import write_stanford
from modernbert.checkpoints.convert import ConvertConfig, run
from modernbert.checkpoints.folder import ModelFolder
from modernbert.errors import InputError
from modernbert.model.embedding_config import EmbeddingConfig

LATE = EmbeddingConfig(
    pooling="tokens", query_prompt="[unused0] ", document_prompt="[unused1] ", query_length=16, document_length=30,
    expand_queries=True, skip=list(string.punctuation),
)  # fmt: skip
QUERIES = ["the capital, of country 3.", "rivers"]
DOCUMENTS = ["The capital of country 3 is city 21.", "a land; of 3 rivers", "is " * 60]


def linear(out: int = 24, width: int = 64) -> torch.nn.Linear:
    return torch.nn.Linear(width, out, bias=False)


def write(folder: Path, bert: ModernBert, vectors: EmbeddingConfig, projection: torch.nn.Linear | None = None) -> Path:
    bert.save(folder.with_name("plain"))
    model = ModelFolder(folder.with_name("plain")).load_model()
    ModelFolder.save(folder, model.encoder, bert.tokenizer, 1_000, vectors=vectors, projection=projection)
    return folder


def load(folder: Path) -> ModernBert:
    return ModernBert.load(folder, device="cpu", dtype="float32", engine="torch")


def assert_alike(ours: Any, theirs: Any) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, small_bert: ModernBert) -> Path:
    return write(tmp_path_factory.mktemp("late") / "late", small_bert, LATE, linear())


@pytest.fixture
def late(tmp_path: Path, written: Path) -> Path:
    """A folder in PyLate's layout, for one test to change."""
    return shutil.copytree(written, tmp_path / "late")


@pytest.mark.parametrize("prefix", ["model", "bert"])
def test_a_folder_of_stanfords_library_makes_the_vectors_of_pylates(tmp_path: Path, late: Path, prefix: str) -> None:
    projection = ModelFolder(late).load_projection(64)
    assert projection is not None
    write_stanford(tmp_path / "stanford", late, prefix, ModelFolder(late).embedding_config, projection)
    assert not (tmp_path / "stanford" / "modules.json").exists()
    ours, theirs = load(tmp_path / "stanford"), load(late)
    assert ours.vectors == theirs.vectors and ours.is_late and ours.vector_width == 24
    assert_alike(ours.embed_queries(QUERIES).vectors, theirs.embed_queries(QUERIES).vectors)
    assert_alike(ours.embed_documents(DOCUMENTS).vectors, theirs.embed_documents(DOCUMENTS).vectors)
    np.testing.assert_array_equal(ours.similarity(QUERIES, DOCUMENTS), theirs.similarity(QUERIES, DOCUMENTS))
    ranked = [model.rerank(QUERIES[0], DOCUMENTS, overflow="truncate") for model in (ours, theirs)]
    assert ranked[0] == ranked[1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", ["stanford", "pylate", "saved"])
def test_sentence_transformers_makes_the_same_vectors_of_every_layout(tmp_path: Path, late: Path, layout: str) -> None:
    folder = tmp_path / layout
    projection = ModelFolder(late).load_projection(64)
    assert projection is not None
    if layout == "stanford":
        write_stanford(folder, late, "model", LATE, projection)
    theirs = MultiVectorEncoder(str(folder if layout == "stanford" else late), device="cpu")
    if layout == "saved":
        theirs.save(str(folder))
        assert json.loads((folder / "config_sentence_transformers.json").read_text())["model_type"] != "ColBERT"
    ours = load(folder if layout != "pylate" else late)
    assert ours.vectors == LATE
    assert_alike(ours.embed_queries(QUERIES).vectors, theirs.encode_query(QUERIES, convert_to_numpy=True))
    assert_alike(ours.embed_documents(DOCUMENTS).vectors, theirs.encode_document(DOCUMENTS, convert_to_numpy=True))


@pytest.mark.filterwarnings("ignore")
def test_queries_of_a_multi_vector_model_are_cut_where_it_cuts_all_texts(tmp_path: Path, late: Path) -> None:
    theirs = MultiVectorEncoder(str(late), device="cpu")
    theirs[0].query_expansion, theirs[0].query_length, theirs[0].document_length = None, None, None
    theirs[0].max_seq_length = 7
    theirs.save(str(tmp_path / "saved"))
    ours = load(tmp_path / "saved")
    assert_alike(ours.embed_queries(DOCUMENTS).vectors, theirs.encode_query(DOCUMENTS, convert_to_numpy=True))
    assert_alike(ours.embed_documents(DOCUMENTS).vectors, theirs.encode_document(DOCUMENTS, convert_to_numpy=True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_what_sentence_transformers_saved_is_read_as_it_computes(
    tmp_path: Path, small_bert: ModernBert, pooling: str
) -> None:
    """Its newer folders name pooling, prompts and lengths otherwise than its older ones."""
    vectors = EmbeddingConfig(pooling=pooling, query_prompt="ask: ", document_length=9)
    theirs = SentenceTransformer(str(write(tmp_path / "old", small_bert, vectors)), device="cpu")
    square = Dense(64, 64, bias=False, activation_function=torch.nn.Identity(), use_residual=True)
    theirs.insert(2, Dense(64, 24, bias=False, activation_function=torch.nn.Identity(), use_residual=True))
    theirs.insert(2, square)
    theirs.save(str(tmp_path / "new"))
    ours = load(tmp_path / "new")
    assert ours.vectors.pooling == pooling and ours.vectors.document_length == 9 and ours.vector_width == 24
    assert_alike(ours.embed_documents(DOCUMENTS).vectors, theirs.encode_document(DOCUMENTS))
    assert_alike(ours.embed_queries(QUERIES).vectors, theirs.encode_query(QUERIES))
    assert_alike(ours.embed(["a land"]), theirs.encode(["a land"]))


@pytest.mark.filterwarnings("ignore")
def test_text_is_put_in_lower_case_where_the_folder_says_so(tmp_path: Path, small_bert: ModernBert) -> None:
    folder = write(tmp_path / "lower", small_bert, EmbeddingConfig(query_prompt="Ask: "))
    cased = load(folder).embed_documents(DOCUMENTS).vectors
    edited("sentence_bert_config.json", do_lower_case=True)(folder)
    ours, theirs = load(folder), SentenceTransformer(str(folder), device="cpu")
    assert_alike(ours.embed_queries(QUERIES).vectors, theirs.encode_query(QUERIES))
    found = ours.embed_documents(DOCUMENTS).vectors
    assert_alike(found, theirs.encode_document(DOCUMENTS))
    assert np.abs(found[0] - cased[0]).max() > 0.01
    ours.save(tmp_path / "saved")
    assert_alike(load(tmp_path / "saved").embed_documents(DOCUMENTS).vectors, found)


def test_a_dense_that_is_a_pickle_is_converted_by_the_command_that_is_named(tmp_path: Path, late: Path) -> None:
    expected = load(late).embed_documents(DOCUMENTS).vectors
    place = late / "1_Dense"
    torch.save(load_file(place / "model.safetensors"), place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"modernbert convert (\S+bin) --output (\S+safetensors)") as told:
        load(late)
    assert "\n" not in str(told.value)
    run(ConvertConfig(place / "pytorch_model.bin", output=place / "model.safetensors"))
    assert_alike(load(late).embed_documents(DOCUMENTS).vectors, expected)


def edited(name: str, **changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        place = folder / name
        found = json.loads(place.read_text()) if place.exists() else {}
        place.parent.mkdir(exist_ok=True)
        place.write_text(json.dumps(found | changes))

    return edit


def dense(**tensors: torch.Tensor) -> Callable[[Path], None]:
    named = {name.replace("_", "."): tensor for name, tensor in tensors.items()}
    return lambda folder: save_file(named, folder / "1_Dense" / "model.safetensors")


def listed(*kinds: str) -> Callable[[Path], None]:
    paths = ["" if kind == "Transformer" else f"{n}_x" for n, kind in enumerate(kinds)]
    full = [kind if "." in kind else f"sentence_transformers.models.{kind}" for kind in kinds]
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": kind}
        for n, (path, kind) in enumerate(zip(paths, full, strict=True))
    ]
    return lambda folder: (folder / "modules.json").write_text(json.dumps(modules))  # type: ignore[return-value]


def expanding(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / "config_sentence_transformers.json").write_text('{"model_type": "MultiVectorEncoder"}')
        expansion = {"strategy": "fixed", "attend": True, "token": None, "length": 16} | changes
        edited("sentence_bert_config.json", query_expansion=expansion)(folder)

    return edit


def masked(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        expanding()(folder)
        listed("sentence_transformers.multi_vector_encoder.modules.MultiVectorMask")(folder)
        edited("0_x/config.json", **changes)(folder)

    return edit


def stanford(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        edited("config.json", architectures=["HF_ColBERT"])(folder)
        edited("artifact.metadata", **({"attend_to_mask_tokens": True, "dim": 24} | changes))(folder)
        weights = load_file(folder / "model.safetensors") | {"linear.weight": torch.ones(24, 64)}
        save_file(weights, folder / "model.safetensors")

    return edit


SETTINGS, DENSE = "config_sentence_transformers.json", "1_Dense/config.json"


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (edited(DENSE, activation_function="torch.nn.modules.activation.Tanh"), "activation_function is .*Tanh'"),
        (dense(linear_weight=torch.ones(24, 64), linear_bias=torch.ones(24)), "has 'linear.bias'.* without a bias"),
        (dense(linear_weight=torch.ones(24, 63)), r"linear.weight is \[24, 63\], expected \[any, 64\]"),
        (dense(other_weight=torch.ones(24, 64)), "has 'other.weight', expected linear.weight"),
        (edited(DENSE, use_residual=True), "has no residual.weight"),
        (listed("sentence_transformers.models.LayerNorm"), "lists 'sentence_transformers.models.LayerNorm'"),
        (lambda folder: (folder / "modules.json").write_text("{}"), "found dict, expected a list"),
        (lambda folder: (folder / "modules.json").write_text('[{"path": "../x", "type": "pylate.models.Dense"}]'),
         "outside"),
        (edited(SETTINGS, attend_to_expansion_tokens=False), "attend_to_expansion_tokens is false"),
        (edited(SETTINGS, skiplist_words="!"), "skiplist_words is '!', expected a list"),
        (expanding(attend=False), "query_expansion.attend is false"),
        (expanding(strategy="min"), "to a fixed length"),
        (expanding(token="[PAD]"), "to a fixed length"),
        (expanding(length=0), "length is 0, expected a number of tokens"),
        (masked(skiplist_tasks=["query"]), "skips tokens in texts other than documents"),
        (masked(keep_only_token_ids=[3]), "skips tokens in texts other than documents"),
        (listed("Transformer", "Normalize", "Dense"), "lists Normalize before Dense, expected it last"),
        (listed("Transformer", "Normalize", "Pooling"), "lists Normalize before Pooling"),
        (edited(DENSE, module_output_name="other"), "module_output_name is 'other', expected module_input_name"),
        (stanford(attend_to_mask_tokens=False), "attend_to_mask_tokens is false"),
        (stanford(similarity="l2"), "similarity is 'l2', expected 'cosine'"),
        (stanford(query_maxlen="32"), "query_maxlen is '32', expected a number"),
        (stanford(dim=128), "linear.weight has 24 rows, expected dim = 128"),
    ],
)  # fmt: skip
def test_a_late_folder_of_other_parts_is_refused(late: Path, edit: Callable[[Path], Any], line: str) -> None:
    edit(late)
    with pytest.raises(InputError, match=line) as told:
        load(late)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"pooling_mode": "max"}, "pools by max, expected mean or cls"),
        ({"pooling_mode": ["mean", "cls"]}, "pools by"),
        ({"pooling_mode_max_tokens": True}, "pools by"),
        ({"pooling_mode_cls_token": True}, "pools by"),
        ({"include_prompt": False}, "include_prompt is false"),
    ],
)
def test_poolings_that_are_not_ours_are_refused(
    tmp_path: Path, small_bert: ModernBert, changes: dict[str, Any], line: str
) -> None:
    folder = write(tmp_path / "model", small_bert, EmbeddingConfig())
    edited("1_Pooling/config.json", **changes)(folder)
    with pytest.raises(InputError, match=line):
        load(folder)


@pytest.mark.parametrize(
    ("late", "settings", "kinds", "line"),
    [
        (False, {"similarity_fn_name": "dot"}, ["Pooling"], "similarity_fn_name is 'dot', expected cosine"),
        (False, {"similarity_fn_name": "euclidean"}, ["Pooling", "Normalize"], "similarity_fn_name is 'euclidean'"),
        (True, {"similarity_fn_name": "meanmaxsim"}, ["Normalize"], "similarity_fn_name is 'meanmaxsim'"),
        (True, {}, [], "lists no Normalize of token_embeddings, expected one"),
        (False, {"similarity_fn_name": "dot"}, ["Pooling", "Normalize"], None),
        (True, {"similarity_fn_name": "maxsim"}, ["Normalize"], None),
    ],
)
def test_texts_of_another_similarity_are_not_compared(
    tmp_path: Path, small_bert: ModernBert, late: bool, settings: dict[str, Any], kinds: list[str], line: str | None
) -> None:
    small_bert.save(tmp_path / "model")
    listed("Transformer", *kinds)(tmp_path / "model")
    model_type = "MultiVectorEncoder" if late else "SentenceTransformer"
    edited(SETTINGS, model_type=model_type, **settings)(tmp_path / "model")
    names = {"module_input_name": "token_embeddings"} if late else {}
    edited(f"{len(kinds)}_x/config.json", **names)(tmp_path / "model")
    bert = load(tmp_path / "model")
    assert_alike(bert.embed(["a land"]), small_bert.embed(["a land"]))
    if line is None:
        assert bert.similarity(QUERIES, DOCUMENTS).shape == (2, 3)
        return
    for call in (bert.embed_queries, bert.embed_documents, lambda texts: bert.rerank("a", texts)):
        with pytest.raises(InputError, match=line):
            call(["rivers"])
    if late:
        with pytest.raises(InputError, match=line):
            bert.save(tmp_path / "saved")


@pytest.mark.filterwarnings("ignore")
def test_what_is_saved_does_what_the_folder_did_in_its_own_library(tmp_path: Path, small_bert: ModernBert) -> None:
    folder = write(tmp_path / "model", small_bert, EmbeddingConfig(query_prompt="ask: ", document_length=9))
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:-1]))
    prompts = {"query": "ask: ", "document": "", "other": "some "}
    edited(SETTINGS, prompts=prompts, default_prompt_name="other", similarity_fn_name="dot")(folder)
    load(folder).save(tmp_path / "saved")
    before, after = (SentenceTransformer(str(tmp_path / name), device="cpu") for name in ("model", "saved"))
    assert (after.prompts, after.default_prompt_name, after.similarity_fn_name) == (prompts, "other", "dot")
    np.testing.assert_array_equal(before.encode(DOCUMENTS), after.encode(DOCUMENTS))
    np.testing.assert_array_equal(before.encode_query(DOCUMENTS), after.encode_query(DOCUMENTS))
    assert np.abs(np.linalg.norm(after.encode(DOCUMENTS), axis=1) - 1).min() > 0.01


def test_components_that_are_no_number_are_refused(tmp_path: Path, small_bert: ModernBert) -> None:
    folder = write(tmp_path / "model", small_bert, EmbeddingConfig())
    edited("config_sentence_transformers.json", truncate_dim="16")(folder)
    with pytest.raises(InputError, match="truncate_dim is '16', expected a number of components"):
        load(folder)


def test_a_dense_of_sentence_transformers_that_names_no_activation_has_tanh(tmp_path: Path, late: Path) -> None:
    (late / "modules.json").write_text(
        (late / "modules.json").read_text().replace("pylate.models", "sentence_transformers")
    )
    found = json.loads((late / DENSE).read_text())
    del found["activation_function"]
    (late / DENSE).write_text(json.dumps(found))
    with pytest.raises(InputError, match="activation_function is 'torch.nn.Tanh', expected Identity"):
        load(late)


def test_stanfords_defaults_are_those_of_its_library(late: Path) -> None:
    stanford(mask_punctuation=None)(late)
    found = ModelFolder(late).embedding_config
    assert found == replace(LATE, query_length=32, document_length=220, skip=[])
