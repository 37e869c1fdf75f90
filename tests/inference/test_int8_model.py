"""Models with int8 layers: loaded, served, written by `quantize`, and refused where they cannot serve."""

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run_here
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from modernbert import InputError, ModernBert, quantize
from modernbert.checkpoints.folder import ModelFolder
from modernbert.model.heads import MaskedLM
from modernbert.model.initialization import initialize

TEXTS = [f"The capital of country {n} is city {n * 7}, in a land of rivers. " * (n % 5 + 1) for n in range(40)]


@pytest.fixture(scope="module")
def folder(small_bert: ModernBert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of widths that divide by 64, as those of all published models do."""
    config = replace(small_bert.config, hidden_size=128, num_attention_heads=2, intermediate_size=192)
    model = MaskedLM(config)
    initialize(model, config, seed=0)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.Wo.weight *= 3
    path = tmp_path_factory.mktemp("float") / "model"
    ModelFolder.save(path, model, small_bert.tokenizer)
    return path


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("".join(f"{text}\n" for text in TEXTS))
    return path


@pytest.fixture(scope="module")
def written(folder: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize(str(folder), output=tmp_path_factory.mktemp("int8") / "model", texts=texts)


def load(folder: Path, **options: str) -> ModernBert:
    return ModernBert.load(folder, **{"device": "cpu", **options})


def test_a_folder_is_quantized_as_it_is_loaded(folder: Path) -> None:
    bert = load(folder, dtype="int8")
    assert bert.dtype == "int8" and ", int8 on cpu" in repr(bert)
    vectors = bert.embed(TEXTS)
    cosines = (vectors * load(folder, dtype="float32").embed(TEXTS)).sum(axis=1)
    assert 0.999 < cosines.min() < 1 - 1e-6, "near float32, and computed in int8"


def test_a_text_has_the_same_bits_alone(folder: Path) -> None:
    bert = load(folder, dtype="int8")
    for text, together in zip(TEXTS[:7], bert.embed(TEXTS), strict=False):
        np.testing.assert_array_equal(bert.embed(text)[0], together)


def test_every_engine_computes_the_same_layers(folder: Path) -> None:
    first, second = (load(folder, dtype="int8", engine=engine).embed(TEXTS) for engine in ("torch", "auto"))
    assert (first * second).sum(axis=1).min() > 0.999


def test_a_pickled_model_gives_the_same_vectors(folder: Path) -> None:
    bert = load(folder, dtype="int8")
    copy = pickle.loads(pickle.dumps(bert))
    np.testing.assert_array_equal(copy.embed(TEXTS), bert.embed(TEXTS))


def test_a_command_computes_in_int8(folder: Path, tmp_path: Path, texts: Path) -> None:
    out = tmp_path / "vectors.npy"
    ended = run_here("embed", str(folder), "--input", str(texts), "--output", str(out), "--dtype", "int8")
    assert ended.returncode == 0, ended.stderr
    np.testing.assert_array_equal(np.load(out), load(folder, dtype="int8").embed(TEXTS))


def test_a_written_folder_is_smaller_and_gives_the_vectors_of_its_card(folder: Path, written: Path) -> None:
    kinds = {name: tensor.dtype for name, tensor in load_file(written / "model.safetensors").items()}
    assert {name for name, kind in kinds.items() if kind == torch.int8} == {
        f"model.layers.{layer}.{part}.weight"
        for layer in range(4)
        for part in ("attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo")
    }
    bert = load(written)
    assert bert.dtype == "int8"
    cosines = (bert.embed(TEXTS) * load(folder, dtype="float32").embed(TEXTS)).sum(axis=1)
    card = (written / "README.md").read_text()
    assert float(re.search(r"least (\d\.\d+)", card)[1]) == pytest.approx(cosines.min(), abs=2e-5)
    assert "transformers import" not in card, "other libraries do not load int8 layers of this kind"


def test_transformers_refuses_a_written_folder(written: Path) -> None:
    with pytest.raises(ValueError, match="modernbert_int8"):
        AutoModel.from_pretrained(written)


def test_texts_that_show_nothing_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("a text\n" * 19 + "\n \n")
    with pytest.raises(InputError, match=r"few.txt: found 19 texts, expected at least 20"):
        quantize(str(folder), output=tmp_path / "int8", texts=tmp_path / "few.txt")


def test_a_written_folder_is_saved_and_loaded_again(written: Path, tmp_path: Path) -> None:
    bert = load(written)
    bert.save(tmp_path / "again")
    np.testing.assert_array_equal(load(tmp_path / "again").embed(TEXTS), bert.embed(TEXTS))


def test_a_model_whose_vectors_change_too_much_is_not_written(folder: Path, texts: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in folder.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if name.endswith(("attn.Wqkv.weight", "mlp.Wi.weight")) and "layers.0.attn" not in name:
            norm = name.replace("attn.Wqkv", "attn_norm").replace("mlp.Wi", "mlp_norm")
            tensors[norm][5] *= 1e4  # one number takes the range of all others of its row
            tensors[name][:, 5] /= 1e4
        elif name.endswith("mlp.Wo.weight"):
            tensors[name] *= 4
    save_file(tensors, damaged / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"cosine to float32 on 40 texts: mean .*expected at least 0.999 and 0.995"):
        quantize(str(damaged), output=tmp_path / "int8", texts=texts)
    assert not (tmp_path / "int8").exists()


def test_what_needs_floating_point_refuses_int8_layers(written: Path, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dtype: found bfloat16, but .* has int8 layers; expected auto or int8"):
        load(written, dtype="bfloat16")
    with pytest.raises(InputError, match="has int8 layers already"):
        quantize(str(written), output=tmp_path / "twice", texts=texts)
    with pytest.raises(InputError, match="has int8 layers, for inference only"):
        ModelFolder(written).load_classifier("classify", ["a", "b"], 0)


def test_a_folder_that_says_int8_and_holds_floats_is_refused(folder: Path, written: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_bytes((written / "config.json").read_bytes())
    with pytest.raises(InputError, match=r"the weights have no .*scale"):
        load(tmp_path)
    tensors = load_file(written / "model.safetensors")
    name = next(each for each in tensors if each.endswith("Wi.weight"))
    save_file(tensors | {name: tensors[name].float()}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"Wi.weight holds torch.float32, expected int8 by config.json"):
        load(tmp_path)


def test_other_quantized_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="quantization_config: found .*gptq.*, expected no such key"):
        load(tmp_path)
