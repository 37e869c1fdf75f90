"""Configs and other files of a model folder: used in the same way as by their own library, or refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import modernbert
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForQuestionAnswering,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
    ModernBertModel,
)

from modernbert import ModernBert
from modernbert.batch import Batch
from modernbert.checkpoints.folder import ModelFolder
from modernbert.errors import InputError
from modernbert.model.embedding_config import EmbeddingConfig
from modernbert.model.encoder import Encoder
from modernbert.model.heads import Classifier, MaskedLM

pytestmark = pytest.mark.filterwarnings("ignore")
SIZES: dict[str, Any] = dict(
    vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=2, pad_token_id=3,
    bos_token_id=1, cls_token_id=1, eos_token_id=2, sep_token_id=2,
)  # fmt: skip
TEXTS = ["The capital of country 3 is city 21.", "a land of many rivers", "x"]
FULL, SLIDING = "full_attention", "sliding_attention"
Edit = Callable[[Path], Any]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    ModernBertModel(ModernBertConfig(**SIZES)).save_pretrained(folder := tmp_path_factory.mktemp("bare") / "model")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, small_bert: ModernBert) -> Path:
    """A model with a tokenizer, as `transformers` writes it."""
    small_bert.save(folder := tmp_path_factory.mktemp("whole") / "model")
    return folder


def rewritten(source: Path, folder: Path, without: tuple[str, ...] = (), **changes: Any) -> Path:
    """Copy a folder with other keys in its config."""
    shutil.copytree(source, folder)
    found = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in found.items() if key not in without}
    (folder / "config.json").write_text(json.dumps(kept | changes))
    return folder


ENTRY = {"rope_type": "default"}
READ: dict[str, dict[str, Any]] = {
    "no theta": {},
    "the old keys": {"global_rope_theta": 80_000.0, "local_rope_theta": 5_000.0},
    "one of the old keys": {"local_rope_theta": 5_000.0},
    "an entry per layer type": {
        "rope_parameters": {FULL: ENTRY | {"rope_theta": 700.0}, SLIDING: ENTRY | {"rope_theta": 800.0}}
    },
    "entries without a type": {"rope_parameters": {FULL: {"rope_theta": 700.0}, SLIDING: {"rope_theta": 800.0}}},
    "an entry for one layer type": {"rope_parameters": {FULL: ENTRY | {"rope_theta": 700.0}}},
    "an entry without a theta": {"rope_parameters": {FULL: ENTRY, SLIDING: ENTRY | {"rope_theta": 800.0}}},
    "entries beside the old keys": {
        "rope_parameters": {FULL: ENTRY | {"rope_theta": 700.0}},
        "global_rope_theta": 80_000.0,
        "local_rope_theta": 5_000.0,
    },
    "no entries": {"rope_parameters": {}},
    "null": {"rope_parameters": None},
    "a bare theta equal to the others": {
        "rope_theta": 600.0,
        "global_rope_theta": 600.0,
        "local_rope_theta": 600.0,
    },
    "the window by its half": {"sliding_window": 8},
    "every second layer": {"layer_types": None, "global_attn_every_n_layers": 2},
    "keys that decide nothing": {
        "position_embedding_type": "absolute",
        "is_causal": False,
        "gradient_checkpointing": False,
        "reference_compile": None,
        "embedding_dropout": 0.1,
        "mlp_dropout": 0.2,
    },
}


@pytest.mark.parametrize("name", READ)
def test_a_config_means_what_it_means_to_transformers(bare: Path, tmp_path: Path, name: str) -> None:
    gone = ("rope_parameters", *(["local_attention"] if "sliding_window" in READ[name] else []))
    folder = rewritten(bare, tmp_path / "model", gone, **READ[name])
    theirs = AutoModel.from_pretrained(folder).eval()
    ours = ModelFolder(folder).load_model()
    assert isinstance(ours, Encoder)
    tokens = torch.arange(200).remainder(512)
    batch = Batch.from_documents([tokens.numpy()])
    with torch.no_grad():
        expected = theirs(tokens[None]).last_hidden_state[0]
        torch.testing.assert_close(ours(batch.tokens, batch.layout), expected, atol=1e-5, rtol=0)


UNCLEAR: dict[str, dict[str, Any]] = {
    "rope_parameters: found {'rope_type': 'default', 'rope_theta': 50000}, without layer types, expected": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 50_000}
    },
    "rope_parameters: found {'rope_type': 'yarn'": {
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 50_000}
    },
    "rope_parameters: found the unknown key 'global'": {"rope_parameters": {"global": ENTRY | {"rope_theta": 5.0}}},
    "rope_parameters: found the unknown key 'linear_attention'": {
        "rope_parameters": {FULL: ENTRY, "linear_attention": ENTRY}
    },
    "rope_parameters.full_attention: found the unknown key 'factor'": {
        "rope_parameters": {FULL: ENTRY | {"rope_theta": 700.0, "factor": 2.0}}
    },
    "rope_parameters.full_attention: found None, expected rope_type and rope_theta": {"rope_parameters": {FULL: None}},
    "rope_parameters.full_attention.type: found 'linear'": {"rope_parameters": {FULL: {"type": "linear"}}},
    "rope_parameters.sliding_attention.rope_theta: found None": {
        "rope_parameters": {SLIDING: ENTRY | {"rope_theta": None}}
    },
    "rope_parameters.sliding_attention.rope_theta: found '7', expected float": {
        "rope_parameters": {SLIDING: ENTRY | {"rope_theta": "7"}}
    },
    "rope_parameters.full_attention.partial_rotary_factor: found 0.5, expected 1.0": {
        "rope_parameters": {FULL: ENTRY | {"partial_rotary_factor": 0.5}}
    },
    "rope_parameters: found 0, expected": {"rope_parameters": 0},
    "rope_theta: found 50000, which does not name a layer type": {"rope_theta": 50_000},
    "rope_theta: found 50000, which does not name": {
        "rope_theta": 50_000, "global_rope_theta": 160_000, "local_rope_theta": 10_000
    },
    "partial_rotary_factor: found 0.5, expected 1.0": {"partial_rotary_factor": 0.5},
    "sliding_window: found 4, expected half of local_attention (128)": {"sliding_window": 4},
    "head_dim: found 64, expected 32": {"head_dim": 64},
    "num_key_value_heads: found 1, expected 2": {"num_key_value_heads": 1},
    "hidden_act: found 'relu', expected 'gelu'": {"hidden_act": "relu"},
    "is_causal: found True, expected False": {"is_causal": True},
    "per_layer_config: found {'0': {'hidden_size': 1}}": {"per_layer_config": {"0": {"hidden_size": 1}}},
    "quantization_config: found {'quant_method': 'x'}": {"quantization_config": {"quant_method": "x"}},
    "transformers_weights: found 'other.safetensors'": {"transformers_weights": "other.safetensors"},
    "attention_dropout: found None, expected float": {"attention_dropout": None},
    "embedding_dropout: found '0.1', expected a number": {"embedding_dropout": "0.1"},
    "mlp_dropout: found None, expected a number": {"mlp_dropout": None},
    "norm_eps: found None": {"norm_eps": None},
    "local_attention: found None": {"local_attention": None},
    "layer_norm_eps: found 'x', expected float": {"norm_eps": None, "layer_norm_eps": "x"},
    "eos_token_id: found [2, 3], expected": {"sep_token_id": None, "eos_token_id": [2, 3]},
}  # fmt: skip


@pytest.mark.parametrize("message", UNCLEAR)
def test_a_config_of_which_a_part_is_not_understood_is_refused_by_name(
    bare: Path, tmp_path: Path, message: str
) -> None:
    folder = rewritten(bare, tmp_path / "model", ("rope_parameters",), **UNCLEAR[message])
    with pytest.raises(InputError) as caught:
        ModelFolder(folder).load_model()
    assert f"config.json: {message}" in str(caught.value) and "\n" not in str(caught.value)


def test_dropouts_that_training_does_not_apply_are_named(
    bare: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ModelFolder(bare).load_model()
    assert not caplog.text
    ModelFolder(rewritten(bare, tmp_path / "model", mlp_dropout=0.2)).load_model()
    assert "config.json: mlp_dropout is 0.2; training does not apply it" in caplog.text


HEADS = {
    ModernBertModel: Encoder,
    ModernBertForMaskedLM: MaskedLM,
    ModernBertForSequenceClassification: Classifier,
    ModernBertForTokenClassification: Classifier,
    ModernBertForQuestionAnswering: Classifier,
}


@pytest.mark.parametrize("kind", HEADS)
def test_every_folder_that_transformers_writes_loads_without_a_message(
    tmp_path: Path, kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    kind(ModernBertConfig(**SIZES)).save_pretrained(tmp_path)
    assert isinstance(ModelFolder(tmp_path).load_model(), HEADS[kind])
    # A second time, after transformers has loaded and saved it again.
    kind.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert ModelFolder(tmp_path / "again").config == ModelFolder(tmp_path).config
    assert not caplog.text


def lora(folder: Path, **files: Any) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    save_file(
        {"base_model.model.layers.0.attn.Wqkv.lora_A.weight": torch.ones(2, 64)}, folder / "adapter_model.safetensors"
    )


def test_an_adapter_beside_a_model_is_refused_in_every_command(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    lora(folder)
    said = f"{folder}: has adapter_config.json: adapters are not supported, expected a whole model"
    with pytest.raises(InputError, match="merge_and_unload") as caught:
        ModernBert.load(folder, device="cpu")
    assert said in str(caught.value)
    data = tmp_path / "rows.tsv"
    data.write_text("text\tlabel\na\tx\nb\ty\n")
    for words in (
        ["embed", str(folder), "a"],
        ["finetune", str(folder), "--task", "classify", "--train", str(data), "--output", str(tmp_path / "out")],
        ["pretrain", "--init-from", str(folder), "--data.sources.a", "x", "--output", str(tmp_path / "out"),
         "--phases.a.tokens", "16384", "--phases.a.lr", "1e-3"],
        ["export", str(folder), "--output", str(tmp_path / "out")],
    ):  # fmt: skip
        done = modernbert(*words)
        assert (done.returncode, said in done.stderr, done.stderr.count("\n")) == (2, True, 1), done.stderr
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_without_its_config_is_refused(whole: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    (folder / name).write_bytes(b"")
    with pytest.raises(InputError, match=f"has {name}: adapters are not supported"):
        ModernBert.load(folder, device="cpu")


def test_a_folder_with_nothing_but_an_adapter_says_so(tmp_path: Path) -> None:
    lora(tmp_path)
    for load in (ModelFolder, ModernBert.load):
        with pytest.raises(InputError, match=r"has adapter_config.json, and no model beside it: adapters are not"):
            load(tmp_path)


def test_an_adapter_beside_a_model_of_another_family_is_refused(tmp_path: Path, small_bert: ModernBert) -> None:
    sizes = dict(vocab_size=512, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    BertModel(BertConfig(**sizes, pad_token_id=small_bert.tokenizer.pad_id)).save_pretrained(tmp_path)
    small_bert.tokenizer.save_folder(tmp_path, 100)
    ModernBert.load(tmp_path, device="cpu")
    weights = load_file(tmp_path / "model.safetensors")
    more = {"encoder.layer.0.attention.self.query.lora_A.default.weight": torch.ones(2, 32)}
    save_file(weights | more, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"the weights have encoder.layer.0.*lora_A.*, which config.json.s bert does not have"
    ):
        ModernBert.load(tmp_path, device="cpu")
    save_file(weights | {"encoder.layer.7.output.dense.bias": torch.ones(32)}, tmp_path / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(InputError, match=r"the weights have encoder.layer.7.output.dense.bias, which"):
        ModernBert.load(tmp_path, device="cpu")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    lora(tmp_path)
    with pytest.raises(InputError, match="has adapter_config.json: adapters are not supported"):
        ModernBert.load(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("model.layers.0.attn.Wqkv.lora_A.default.weight", "a tensor of an adapter"),
        ("head.dense.lora_B.default.weight", "a tensor of an adapter"),
        ("classifier.modules_to_save.default.weight", "a tensor of an adapter"),
        ("model.layers.0.mlp.Wi.base_layer.weight", "a tensor of an adapter"),
        ("score.weight", "score.weight of a second head"),
        ("classifier.weight", "classifier.weight of a second head"),
        ("pooler.dense.weight", "pooler.dense.weight, which no ModernBERT"),
    ],
)
def test_tensors_that_have_no_place_are_refused_by_name(whole: Path, tmp_path: Path, name: str, line: str) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    assert "decoder.bias" in weights
    save_file(weights | {name: torch.ones(3, 64)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=line):
        ModernBert.load(folder, device="cpu")


def test_two_sets_of_weights_are_refused(bare: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bare, tmp_path / "model")
    other = AutoModel.from_pretrained(bare)
    other.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    for file in (tmp_path / "sharded").glob("model*"):
        shutil.copy(file, folder)
    with pytest.raises(InputError, match=r"has model.safetensors and model.safetensors.index.json, which names other"):
        ModelFolder(folder).load_model()
    (folder / "model.safetensors").unlink()
    ModelFolder(folder).load_model()
    # An index of the same file is no contradiction.
    one = shutil.copytree(bare, tmp_path / "one")
    index = {"weight_map": dict.fromkeys(load_file(one / "model.safetensors"), "model.safetensors")}
    (one / "model.safetensors.index.json").write_text(json.dumps(index))
    ModelFolder(one).load_model()


def test_every_kind_of_model_that_sentence_transformers_writes_loads(whole: Path, tmp_path: Path) -> None:
    single, scored = tmp_path / "single", tmp_path / "scored"
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling"):
        assert not (whole / name).exists()
    theirs = SentenceTransformer(str(whole), device="cpu")
    theirs.save(str(single))
    ours = ModernBert.load(single, device="cpu", dtype="float32", engine="torch")
    np.testing.assert_allclose(ours.embed(TEXTS, normalize=False), theirs.encode(TEXTS), atol=1e-5)
    CrossEncoder(str(whole), num_labels=1, device="cpu").save(str(scored))
    assert isinstance(ModernBert.load(scored, device="cpu").model, Classifier)
    MultiVectorEncoder(str(whole), device="cpu").save(str(tmp_path / "late"))
    assert ModernBert.load(tmp_path / "late", device="cpu").is_late


def edited(name: str, **changes: Any) -> Edit:
    def edit(folder: Path) -> None:
        found = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(found | changes))

    return edit


def entry(number: int, **changes: Any) -> Edit:
    def edit(folder: Path) -> None:
        found = json.loads((folder / "modules.json").read_text())
        found[number:] = [found[number] | changes, *found[number + 1 :]]
        (folder / "modules.json").write_text(json.dumps(found))

    return edit


def more(kind: str, **config: Any) -> Edit:
    def edit(folder: Path) -> None:
        found = json.loads((folder / "modules.json").read_text())
        place = {"idx": len(found), "name": str(len(found)), "path": f"{len(found)}_more", "type": kind}
        (folder / "modules.json").write_text(json.dumps([*found, place]))
        (folder / str(place["path"])).mkdir()
        (folder / str(place["path"]) / "config.json").write_text(json.dumps(config))

    return edit


SETTINGS, LIMITS, POOLING = "config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling/config.json"
DENSE = dict(in_features=64, out_features=8, bias=False, activation_function="torch.nn.modules.linear.Identity")


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (edited(SETTINGS, matryoshka=8), f"{SETTINGS}: found the unknown key 'matryoshka'"),
        (edited(SETTINGS, model_type="SparseEncoder"), f"{SETTINGS}: model_type is 'SparseEncoder', expected one of"),
        (edited(SETTINGS, model_type="MultiVectorEncoder", skiplist_words=["!"]), "the unknown key 'skiplist_words'"),
        (edited(LIMITS, stride=8), f"{LIMITS}: found the unknown key 'stride'"),
        (edited(LIMITS, transformer_task="fill-mask"), "transformer_task is 'fill-mask', expected 'feature-extr"),
        (edited(LIMITS, module_output_name="sentence_embedding"), "module_output_name is 'sentence_embedding'"),
        (edited(LIMITS, modality_config={"text": {"method": "forward", "method_output_name": "pooler_output"}}),
         "modality_config.text.method_output_name is 'pooler_output'"),
        (edited(LIMITS, processing_kwargs={"text": {"max_length": 8}}), "processing_kwargs is"),
        (edited(LIMITS, tokenizer_args={"padding_side": "left"}), "tokenizer_args: found the unknown key 'padding_si"),
        (edited(LIMITS, config_kwargs={"num_hidden_layers": 1}), "config_kwargs: found the unknown key 'num_hidden"),
        (edited(POOLING, weights=[1, 2]), f"{POOLING}: found the unknown key 'weights'"),
        (edited(POOLING, pooling_mode=["cls", "mean"]), "pools by"),
        (edited(POOLING, include_prompt=False), "include_prompt is false"),
        (more("sentence_transformers.models.Pooling", pooling_mode="cls"), "lists 2 of Pooling, expected one"),
        (more("custom_st.Transformer"), "lists 'custom_st.Transformer', expected only"),
        (entry(0, type="custom_st.Transformer"), "lists 'custom_st.Transformer', expected only"),
        (entry(0, path="0_Transformer"), "the path of Transformer is '0_Transformer', expected ''"),
        (entry(1, weight=2), "the entry of Pooling: found the unknown key 'weight'"),
        (more("sentence_transformers.models.LSTM"), "lists 'sentence_transformers.models.LSTM'"),
        (more("sentence_transformers.models.Normalize", eps=1), "found the unknown key 'eps'"),
        (more("sentence_transformers.models.Normalize", module_output_name="other"), "module_output_name is 'other'"),
        (more("sentence_transformers.models.Dense", **DENSE, scale=2), "found the unknown key 'scale'"),
        (more("sentence_transformers.models.Dense", **DENSE, module_input_name="token_embeddings"),
         "module_input_name is 'token_embeddings', expected 'sentence_embedding' at its place"),
    ],
)  # fmt: skip
def test_settings_of_sentence_transformers_that_are_not_understood_are_refused_by_name(
    whole: Path, tmp_path: Path, edit: Edit, line: str
) -> None:
    folder = tmp_path / "model"
    SentenceTransformer(str(whole), device="cpu").save(str(folder))
    edit(folder)
    with pytest.raises(InputError) as caught:
        ModernBert.load(folder, device="cpu")
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "edit",
    [
        edited(SETTINGS, requirements={"transformers": ">=4"}, __version__={"pytorch": "2"}),
        edited(LIMITS, unpad_inputs=True, model_args={"trust_remote_code": True, "attn_implementation": "sdpa"}),
        edited(POOLING, pooling_mode_lasttoken=False, pooling_mode_max_tokens=False, word_embedding_dimension=64),
        entry(1, kwargs=["task"]),
        more("sentence_transformers.models.Dropout", dropout=0.1),
    ],
)
def test_settings_that_change_no_vector_are_allowed(whole: Path, tmp_path: Path, edit: Edit) -> None:
    SentenceTransformer(str(whole), device="cpu").save(str(tmp_path / "model"))
    expected = ModernBert.load(tmp_path / "model", device="cpu").embed(TEXTS)
    edit(tmp_path / "model")
    np.testing.assert_array_equal(ModernBert.load(tmp_path / "model", device="cpu").embed(TEXTS), expected)


PYLATE = {
    "__version__": {"sentence_transformers": "3.4.0"}, "prompts": {}, "default_prompt_name": None,
    "similarity_fn_name": "MaxSim", "query_prefix": "[unused0] ", "document_prefix": "[unused1] ", "query_length": 16,
    "document_length": 30, "attend_to_expansion_tokens": True, "do_query_expansion": True, "skiplist_words": ["."],
}  # fmt: skip


def pylate(whole: Path, folder: Path, **changes: Any) -> Path:
    """Write a folder of PyLate; its early versions did not name the type of model."""
    SentenceTransformer(str(whole), device="cpu").save(str(folder))
    modules = json.loads((folder / "modules.json").read_text())[:1]
    modules += [{"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Dense").mkdir()
    (folder / "1_Dense" / "config.json").write_text(json.dumps(DENSE | {"use_residual": False}))
    save_file({"linear.weight": torch.ones(8, 64)}, folder / "1_Dense" / "model.safetensors")
    (folder / SETTINGS).write_text(json.dumps(PYLATE | changes))
    return folder


@pytest.mark.parametrize("named", [{}, {"model_type": "ColBERT"}])
def test_a_folder_of_pylate_has_a_vector_for_each_token(whole: Path, tmp_path: Path, named: dict[str, str]) -> None:
    bert = ModernBert.load(pylate(whole, tmp_path / "model", **named), device="cpu")
    assert bert.vectors == EmbeddingConfig(
        pooling="tokens", query_prompt="[unused0] ", document_prompt="[unused1] ", query_length=16, document_length=30,
        expand_queries=True, skip=["."],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"pool_factor": 2}, "found the unknown key 'pool_factor'"),
        ({"prompts": {"query": "ask: "}}, "prompts.query is 'ask: ', expected none beside query_prefix"),
        ({"default_prompt_name": "query", "prompts": {"query": ""}}, "default_prompt_name is 'query', expected null"),
    ],
)
def test_settings_of_pylate_that_are_not_understood_are_refused(
    whole: Path, tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    with pytest.raises(InputError, match=line):
        ModernBert.load(pylate(whole, tmp_path / "model", **changes), device="cpu")


def stanford(whole: Path, folder: Path, metadata: dict[str, Any]) -> Path:
    shutil.copytree(whole, folder)
    edited("config.json", architectures=["HF_ColBERT"])(folder)
    kept = {f"bert.{name.removeprefix('model.')}": tensor for name, tensor in
            load_file(folder / "model.safetensors").items() if name.startswith("model.")}  # fmt: skip
    save_file(kept | {"linear.weight": torch.ones(8, 64)}, folder / "model.safetensors")
    (folder / "artifact.metadata").write_text(json.dumps(metadata))
    return folder


def test_settings_of_colberts_library_are_read_where_it_reads_them(whole: Path, tmp_path: Path) -> None:
    told = {"attend_to_mask_tokens": True, "query_maxlen": 12, "doc_maxlen": 40, "mask_punctuation": False}
    others = {"nbits": 2, "lr": 1e-5, "checkpoint": "x", "meta": {"version": "colbert-v0.4"}, "ncells": None}
    for name, metadata in (("flat", told | others), ("nested", {"config": told | others, "num_chunks": 3})):
        vectors = ModernBert.load(stanford(whole, tmp_path / name, metadata), device="cpu").vectors
        assert (vectors.query_length, vectors.document_length, vectors.skip) == (12, 40, [])
    with pytest.raises(InputError, match=r"artifact.metadata: found the unknown key 'query_expansion'"):
        ModernBert.load(stanford(whole, tmp_path / "other", told | {"query_expansion": 1}), device="cpu")
