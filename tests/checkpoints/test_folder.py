"""Model folders: round trips with `transformers`, old and new config keys, and folders that must be refused."""

import json
import os
import pickle
import resource
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    ModernBertModel,
)

from modernbert import ModernBert, safe_files
from modernbert.batch import Batch
from modernbert.checkpoints.folder import ModelFolder
from modernbert.checkpoints.hf_config import config_from_json, config_to_json
from modernbert.errors import InputError
from modernbert.hub_download import find_folder
from modernbert.model.config import PRESETS, ModelConfig
from modernbert.model.embedding_config import EmbeddingConfig
from modernbert.model.encoder import Encoder
from modernbert.model.heads import MaskedLM
from modernbert.tasks.task import start_classifier

SIZES: dict[str, Any] = dict(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=2,
    pad_token_id=3,
    bos_token_id=1,
    cls_token_id=1,
    eos_token_id=2,
    sep_token_id=2,
)


@pytest.fixture
def theirs() -> ModernBertForMaskedLM:
    return ModernBertForMaskedLM(ModernBertConfig(**SIZES)).eval()


@pytest.fixture
def batch() -> Batch:
    return Batch.from_documents([torch.arange(200).remainder(512).numpy()])


def test_folder_of_transformers_loads_with_equal_logits_and_comes_back_byte_for_byte(
    tmp_path: Path, theirs: ModernBertForMaskedLM, batch: Batch
) -> None:
    theirs.save_pretrained(tmp_path / "theirs")
    ours = ModelFolder(tmp_path / "theirs").load_model()
    assert isinstance(ours, MaskedLM)
    with torch.no_grad():
        torch.testing.assert_close(ours(batch), theirs(batch.tokens[None]).logits[0], atol=1e-5, rtol=0)
    ModelFolder.save(tmp_path / "ours", ours)
    weights = [tmp_path / name / "model.safetensors" for name in ("theirs", "ours")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_folder_of_ours_loads_unedited_in_transformers(tmp_path: Path, small_model: MaskedLM, batch: Batch) -> None:
    ModelFolder.save(tmp_path / "ours", small_model)
    read = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        torch.testing.assert_close(small_model(batch), read(batch.tokens[None]).logits[0], atol=1e-5, rtol=0)
    read.save_pretrained(tmp_path / "again")
    assert ModelFolder(tmp_path / "again").config == small_model.model.config


def _save_for_an_unknown_task(folder: Path, kind: Any = ModernBertForSequenceClassification) -> Any:
    """Save a model whose config names a task that this package does not have."""
    model = kind(ModernBertConfig(**SIZES)).eval()
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"problem_type": "ordinal_regression"}))
    return model


def test_folders_of_a_bare_or_an_unknown_head_give_the_encoder(tmp_path: Path, batch: Batch) -> None:
    for number, kind in enumerate((ModernBertModel, ModernBertForSequenceClassification)):
        model = _save_for_an_unknown_task(tmp_path / str(number), kind)
        ours = ModelFolder(tmp_path / str(number)).load_model()
        assert isinstance(ours, Encoder)
        expected = getattr(model, "model", model)(batch.tokens[None]).last_hidden_state[0]
        torch.testing.assert_close(ours(batch.tokens, batch.layout), expected, atol=1e-5, rtol=0)


def test_weights_in_several_files_and_in_half_precision(
    tmp_path: Path, theirs: ModernBertForMaskedLM, batch: Batch
) -> None:
    theirs.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    kept = ModelFolder(tmp_path).load_model()
    assert {parameter.dtype for parameter in kept.parameters()} == {torch.bfloat16}
    wide = ModelFolder(tmp_path).load_model(dtype=torch.float32)
    assert isinstance(wide, MaskedLM)
    with torch.no_grad():
        expected = theirs.float()(batch.tokens[None]).logits[0]
        torch.testing.assert_close(wide(batch), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", PRESETS)
def test_both_dialects_say_the_same(name: str) -> None:
    config = ModelConfig.preset(name)
    words = config_to_json(config, "ModernBertForMaskedLM", "float32")
    assert config_from_json(words, "x") == config
    new = {k: v for k, v in words.items() if k not in ("global_attn_every_n_layers", "layer_norm_eps")}
    new = {k: v for k, v in new.items() if not k.endswith("rope_theta")}
    old = {k: v for k, v in words.items() if k not in ("layer_types", "rope_parameters", "norm_eps")}
    assert config_from_json(new, "x") == config_from_json(old, "x") == config
    assert ModernBertConfig(**words).layer_types == words["layer_types"]


def test_a_null_local_theta_means_that_of_global_layers() -> None:
    read = config_from_json({"global_rope_theta": 80_000.0, "local_rope_theta": None}, "x")
    assert read.local_rope_theta == read.global_rope_theta == 80_000.0


def test_role_ids_that_are_null_or_absent_are_not_given() -> None:
    read = config_from_json({"vocab_size": 600, "pad_token_id": None, "bos_token_id": 7}, "x")
    assert (read.pad_token_id, read.cls_token_id, read.sep_token_id) == (None, 7, None)


def test_heads_that_are_not_loaded_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _save_for_an_unknown_task(tmp_path)
    with caplog.at_level("WARNING", logger="modernbert"):
        ModelFolder(tmp_path).load_model()
    assert "weights of a head that is not loaded: classifier.bias, classifier.weight" in caplog.text
    said = "names no task of this package (architectures ['ModernBertForSequenceClassification'], problem_type ordinal"
    assert said in caplog.text
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": None, "problem_type": None}))
    with caplog.at_level("WARNING", logger="modernbert"):
        assert isinstance(ModelFolder(tmp_path).load_model(), Encoder)
    assert (
        "names no task of this package (architectures None, problem_type None), so its head is not loaded"
        in caplog.text
    )


def test_keys_that_other_readers_insist_on_are_written() -> None:
    words = config_to_json(ModelConfig(), "ModernBertForMaskedLM", "float32")
    for_tei = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads hidden_activation "
        "max_position_embeddings initializer_range initializer_cutoff_factor norm_eps norm_bias pad_token_id "
        "eos_token_id bos_token_id cls_token_id sep_token_id global_rope_theta local_rope_theta "
        "global_attn_every_n_layers attention_bias attention_dropout local_attention classifier_activation"
    )
    for_others = "layer_norm_eps layer_types rope_parameters architectures dtype torch_dtype classifier_pooling"
    for key in (for_tei + " " + for_others).split():
        assert words[key] is not None, key


def test_output_dropout_survives_the_folder(tmp_path: Path) -> None:
    config = ModelConfig(**{k: v for k, v in SIZES.items() if k[:3] not in ("bos", "eos")})
    ModelFolder.save(tmp_path / "m", MaskedLM(config))
    assert ModelFolder(tmp_path / "m").config.attention_output_dropout == 0.1


REFUSED_CONFIGS = {
    "hidden_size: found '64', expected int": {"hidden_size": "64"},
    "hidden_size: found 65, expected a multiple of 4": {"hidden_size": 65},
    "num_hidden_layers: found True, expected int": {"num_hidden_layers": True, "layer_types": None},
    "vocab_size: found -1": {"vocab_size": -1},
    "initializer_range: found 1e+39, expected at most 1,000": {"initializer_range": 1e39},
    "initializer_cutoff_factor: found 0.001, expected at least 0.1": {"initializer_cutoff_factor": 0.001},
    "norm_eps: found 0.0": {"norm_eps": 0.0},
    "local_attention: found 127": {"local_attention": 127},
    "hidden_activation: found 'silu', expected 'gelu'": {"hidden_activation": "silu"},
    "norm_bias: found True": {"norm_bias": True},
    "classifier_bias: found True, expected False": {"classifier_bias": True},
    "classifier_activation: found 'silu', expected 'gelu'": {"classifier_activation": "silu"},
    "model_type: found 'bert', expected 'modernbert'": {"model_type": "bert"},
    "rope_scaling: found": {"rope_scaling": {"type": "yarn", "factor": 4}},
    "rope_parameters.full_attention.rope_type: found 'yarn'": {
        "rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 1.0}}
    },
    "layer_types: found an irregular pattern": {
        "layer_types": ["full_attention", "full_attention", "sliding_attention", "full_attention"]
    },
    "layer_types: found 1 entries, expected num_hidden_layers = 4": {"layer_types": ["full_attention"]},
    "layer_types: found [{'a': 1}]": {"layer_types": [{"a": 1}]},
    "global_rope_theta: found inf": {"global_rope_theta": float("inf"), "rope_parameters": None},
    "pad_token_id: found 512": {"pad_token_id": 512},
    "tie_word_embeddings: found False": {"tie_word_embeddings": False},
}


def read_shape_and_weights(path: Path) -> None:
    folder = ModelFolder(path)
    assert folder.config.num_hidden_layers
    folder.load_model()


@pytest.mark.parametrize("message", REFUSED_CONFIGS)
def test_wrong_values_are_refused_by_name(tmp_path: Path, theirs: ModernBertForMaskedLM, message: str) -> None:
    theirs.save_pretrained(tmp_path)
    words = json.loads((tmp_path / "config.json").read_text()) | REFUSED_CONFIGS[message]
    (tmp_path / "config.json").write_text(json.dumps(words))
    with pytest.raises(InputError) as caught:
        read_shape_and_weights(tmp_path)
    assert message in str(caught.value) and "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_head_that_is_not_there_may_be_of_any_kind(tmp_path: Path, theirs: ModernBertForMaskedLM) -> None:
    theirs.model.save_pretrained(tmp_path)
    words = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(words | {"classifier_activation": "silu"}))
    assert isinstance(ModelFolder(tmp_path).load_model(), Encoder)


def test_unknown_config_keys_are_ignored(tmp_path: Path, theirs: ModernBertForMaskedLM) -> None:
    theirs.save_pretrained(tmp_path)
    words = json.loads((tmp_path / "config.json").read_text())
    extra = {"auto_map": {"AutoModel": "evil.Model"}, "reference_compile": None, "something_new": [1]}
    (tmp_path / "config.json").write_text(json.dumps(words | extra))
    assert isinstance(ModelFolder(tmp_path).load_model(), MaskedLM)


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_is_named_and_never_opened(tmp_path: Path, theirs: ModernBertForMaskedLM) -> None:
    theirs.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has no weights, expected model.safetensors"):
        ModelFolder(tmp_path).load_model()
    canary = tmp_path / "executed"
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(_Canary(canary)))
    with pytest.raises(InputError, match=r"pytorch_model.bin, a pickle, which is never loaded"):
        ModelFolder(tmp_path).load_model()
    # The same bytes under the right name are not taken for weights either.
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="is not a readable safetensors file"):
        ModelFolder(tmp_path).load_model()
    assert not canary.exists()


def test_wrong_weights_are_named(tmp_path: Path, theirs: ModernBertForMaskedLM) -> None:
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    good = load_file(file)
    name = "model.layers.2.attn.Wqkv.weight"
    cases = {
        r"layers.2.attn.Wqkv.weight has shape \[2, 2\], expected \[192, 64\]": good | {name: torch.zeros(2, 2)},
        "weights have no layers.2.attn.Wqkv.weight": {k: v for k, v in good.items() if k != name},
        "layers.2.attn.Wqkv.weight holds torch.int64": good | {name: torch.zeros(192, 64, dtype=torch.int64)},
        "have layers.9.attn.Wo.weight, which no": good | {"model.layers.9.attn.Wo.weight": torch.zeros(1)},
    }
    for message, weights in cases.items():
        save_file(weights, file)
        with pytest.raises(InputError, match=message):
            ModelFolder(tmp_path).load_model()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is not a readable safetensors file"):
        ModelFolder(tmp_path).load_model()


def test_an_index_may_only_name_files_of_its_folder(tmp_path: Path, theirs: ModernBertForMaskedLM) -> None:
    theirs.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"weight_map": {"model.final_norm.weight": "../outside.safetensors"}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"names '../outside.safetensors', expected a .safetensors file of the same"):
        ModelFolder(tmp_path / "model").load_model()


def test_what_tells_models_apart_is_of_files_alone(tmp_path: Path, small_model: MaskedLM) -> None:
    ModelFolder.save(tmp_path / "a", small_model)
    ModelFolder.save(tmp_path / "b", small_model)
    same = ModelFolder(tmp_path / "a").digest
    assert same == ModelFolder(tmp_path / "b").digest
    (tmp_path / "b" / "README.md").write_text("Anything.")
    (tmp_path / "b" / "all_results.json").write_text("{}")
    assert same == ModelFolder(tmp_path / "b").digest
    met = {same}
    (tmp_path / "b" / "1_Pooling").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "modules.json", "1_Pooling/config.json", "config.json"):
        (tmp_path / "b" / name).write_text("{}")
        met.add(ModelFolder(tmp_path / "b").digest)
    (tmp_path / "b" / "1_Pooling").rename(tmp_path / "b" / "2_Pooling")
    assert len(met | {ModelFolder(tmp_path / "b").digest}) == 7
    os.mkfifo(tmp_path / "b" / "more.safetensors")
    with pytest.raises(InputError, match="more.safetensors: is a pipe or a device"):
        _ = ModelFolder(tmp_path / "b").digest


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder, and not a name on the hub"):
        find_folder(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file, expected a model folder"):
        find_folder(tmp_path / "file")
    with pytest.raises(InputError, match="config.json: no such file"):
        ModelFolder(tmp_path).load_model()
    (tmp_path / "config.json").write_text("{" * 5)
    with pytest.raises(InputError, match="config.json: is not readable JSON"):
        ModelFolder(tmp_path).load_model()


def test_the_layout_of_old_folders_of_sentence_transformers_is_named(tmp_path: Path, small_model: MaskedLM) -> None:
    ModelFolder.save(tmp_path / "0_Transformer", small_model)
    with pytest.raises(InputError, match="has its model in 0_Transformer, .* expected these files beside modules.json"):
        ModernBert.load(tmp_path)


def test_saving_never_leaves_half_a_folder(
    tmp_path: Path, small_model: MaskedLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("modernbert.checkpoints.folder.verify_written", fails)
        with pytest.raises(InputError, match="no space left"):
            ModelFolder.save(tmp_path / "model", small_model)
    assert list(tmp_path.iterdir()) == []
    ModelFolder.save(tmp_path / "model", small_model)
    with pytest.raises(InputError, match="exists already"):
        ModelFolder.save(tmp_path / "model", small_model)
    monkeypatch.setattr("modernbert.checkpoints.folder.verify_written", fails)
    with pytest.raises(InputError, match="no space left"):
        ModelFolder.save(tmp_path / "model", small_model, replace=True)
    assert isinstance(ModelFolder(tmp_path / "model").load_model(), MaskedLM)


def test_a_full_disk_and_a_broken_model_are_one_line(tmp_path: Path, small_model: MaskedLM) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(InputError, match=f"^{tmp_path / 'model'}: cannot be written"):
            ModelFolder.save(tmp_path / "model", small_model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    torch.nn.init.constant_(small_model.model.final_norm.weight, float("nan"))
    with pytest.raises(InputError, match=f"^{tmp_path / 'model'}: the model computes values that are not finite"):
        ModelFolder.save(tmp_path / "model", small_model)
    # The weights may be hours of work: they are kept, and say nothing of a model that is whole.
    assert [path.name for path in tmp_path.iterdir()] == ["model.unverified"]
    assert (tmp_path / "model.unverified" / "model.safetensors").is_file()


@pytest.mark.parametrize("task", ["regress", "rerank"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_score_near_zero_is_no_reason_to_refuse_a_model(
    tmp_path: Path, small_model: MaskedLM, task: str, dtype: torch.dtype
) -> None:
    """A score is a sum of terms that may cancel; rounding is a share of the terms."""
    batch = Batch.from_documents([[number * 7919 % 512 for number in range(length)] for length in (21, 150)])
    read_out = start_classifier(small_model, "classify", [str(number) for number in range(128)], 0).eval()
    read_out.classifier.weight.data, read_out.classifier.bias.data = torch.eye(128), torch.zeros(128)
    with torch.no_grad():
        one, other = read_out(batch)
    apart = (one - other) / (one - other).norm()
    for seed in range(20):
        model = start_classifier(small_model, task, ["score"], seed)
        weight = torch.randn(128, generator=torch.Generator().manual_seed(seed))
        # Both documents score the same, and the bias takes that away.
        weight -= apart * (weight @ apart)
        model.classifier.weight.data, model.classifier.bias.data = weight[None], -(weight @ one)[None]
        ModelFolder.save(tmp_path / str(seed), model.to(dtype))
    assert len(list(tmp_path.iterdir())) == 20


def test_golden_config_of_the_published_base(data_folder: Path) -> None:
    words = json.loads((data_folder / "tokenizer/modernbert/config.json").read_text())
    read = config_from_json(words, "config.json")
    # The file does not have the output dropout of training.
    assert read == ModelConfig(attention_output_dropout=0.0)


def test_an_opened_folder_reads_each_file_once(
    small_bert: ModernBert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = EmbeddingConfig(pooling="cls", query_prompt="query: ", truncate_dim=8)
    projection = torch.nn.Linear(small_bert.width, 16, bias=False)
    ModelFolder.save(
        tmp_path / "m", small_bert.model, small_bert.tokenizer, 300, vectors=vectors, projection=projection
    )
    reads: Counter[str] = Counter()
    read = safe_files._parsed

    def counted(path: Path) -> Any:
        reads[path.relative_to(tmp_path / "m").as_posix()] += 1
        return read(path)

    monkeypatch.setattr(safe_files, "_parsed", counted)
    folder = ModelFolder.open(tmp_path / "m")
    assert folder.is_modernbert and folder.config == small_bert.config
    assert (folder.max_length, folder.num_positions) == (300, small_bert.config.max_position_embeddings)
    assert folder.embedding_config.pooling == "cls" and folder.embedding_config.query_prompt == "query: "
    assert folder.settings.normalize and folder.unused_head is None
    found = folder.load_projection(folder.config.hidden_size)
    assert found is not None and found.weight.equal(projection.weight)
    assert folder.load_model(dtype=torch.float32).task == "fill-mask"
    folder.check_no_default_prompt()
    assert set(reads) >= {"config.json", "modules.json", "config_sentence_transformers.json"}
    assert set(reads.values()) == {1}
