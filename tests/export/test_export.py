"""Exported folders: ONNX Runtime computes the outputs of the model, or there is no folder."""

import copy
import json
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import modernbert
from safetensors.torch import load_file, save_file

from modernbert import Batch, InputError, ModernBert
from modernbert.checkpoints.folder import ModelFolder
from modernbert.export import onnx_nodes as nodes
from modernbert.export.onnx_folder import export_folder
from modernbert.model.embedding_config import EmbeddingConfig
from modernbert.model.heads import Classifier, MaskedLM
from modernbert.tasks.task import classifier_task, start_classifier

runtime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

LENGTHS = (1, 5, 64, 66, 130, 700, 3)
LABELS = {"classify": ["no", "yes", "maybe"], "rerank": ["score"], "tag": ["O", "B-x", "I-x"],
          "extract": ["start", "end"]}  # fmt: skip
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def documents() -> list[np.ndarray]:
    return [np.random.default_rng(length).integers(0, 512, length) for length in LENGTHS]


@pytest.fixture
def make(small_bert: ModernBert, tmp_path: Path) -> Make:
    """Write a model folder: a head for a task, or vectors by a pooling with a projection."""

    def make(task: str = "", pooling: str = "mean", dtype: torch.dtype = torch.float32, name: str = "model") -> Path:
        model: Any = copy.deepcopy(small_bert.model)
        assert isinstance(model, MaskedLM)
        if task in LABELS:
            model = start_classifier(model, task, LABELS[task], seed=3)
            config = replace(model.model.config, classifier_pooling=pooling)
            changed = Classifier(config, classifier_task(task).head_spec, LABELS[task])
            changed.load_state_dict(model.state_dict())
            model = changed.eval()
            torch.nn.init.normal_(model.classifier.weight, std=0.5)
        elif task != "masked":
            model = model.model

        embeds = task == "embed"
        ModelFolder.save(
            tmp_path / name, model.to(dtype), small_bert.tokenizer, 1_000,
            vectors=EmbeddingConfig(pooling=pooling) if embeds else None,
            projection=torch.nn.Linear(64, 24, bias=False) if embeds else None,
        )  # fmt: skip
        return tmp_path / name

    return make


def test_a_limit_of_the_folder_is_kept(make: Make, tmp_path: Path) -> None:
    folder = make("classify")
    place = folder / "tokenizer_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"model_max_length": 20}))
    assert export_folder(ModelFolder(folder), tmp_path / "out", texts=["a " * 40]).num_truncated == 1
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["model_max_length"] == 20
    assert json.loads((tmp_path / "out" / "export.json").read_text())["max_length"] == 20


def run(file: Path, documents: Sequence[np.ndarray], *, columns: int = 0, left: bool = False) -> dict[str, np.ndarray]:
    """Run a file on documents and a row of nothing but padding; outputs of padding are finite, too."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    columns = max(columns, *map(len, documents))
    ids, mask = (np.full((len(documents) + 1, columns), value, dtype=np.int64) for value in (7, 0))
    for row, document in enumerate(documents):
        place = slice(columns - len(document), None) if left else slice(len(document))
        ids[row, place], mask[row, place] = document, 1
    names = [each.name for each in session.get_outputs()]
    found = dict(zip(names, session.run(names, {"input_ids": ids, "attention_mask": mask}), strict=True))
    assert all(np.isfinite(values).all() for values in found.values())
    return found


def apart(found: np.ndarray, expected: Sequence[np.ndarray]) -> float:
    """Return the largest difference of padded rows to the rows of documents, as a share of the largest value."""
    pairs = [(row[: len(own)] if row.ndim == own.ndim else row, own) for row, own in zip(found, expected, strict=False)]
    return max(float(np.abs(a - b).max()) for a, b in pairs) / max(float(np.abs(b).max()) for _, b in pairs)


@torch.no_grad()
def alone(model: Any, documents: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return what our model makes of each document alone."""
    batches = [Batch.from_documents([document]) for document in documents]
    made = [model(b) if hasattr(model, "head") else model(b.tokens, b.layout) for b in batches]
    return [each.numpy() for each in made]


def test_a_graph_is_what_the_standard_says_and_computes_the_same_in_its_reference(
    make: Make, documents: list[np.ndarray], tmp_path: Path
) -> None:
    """A second runtime, slow and plain, that shares nothing with ONNX Runtime."""
    from onnx.reference import ReferenceEvaluator

    export_folder(ModelFolder(make("embed")), tmp_path / "out", int8=True)
    for file in (tmp_path / "out/onnx").iterdir():
        onnx.checker.check_model(file, full_check=True)
        ids = np.stack([document[:66] for document in documents[3:5]])
        mask = (np.arange(66) < np.array([[66], [5]])).astype(np.int64)
        found = ReferenceEvaluator(str(file)).run(None, {"input_ids": ids, "attention_mask": mask})
        expected = run(file, [row[: int(length)] for row, length in zip(ids, mask.sum(1), strict=True)])
        for theirs, ours in zip(found, expected.values(), strict=True):
            real = mask.astype(bool) if theirs.shape[:2] == mask.shape else slice(None)
            np.testing.assert_allclose(theirs[real], ours[:2][real], atol=1e-2 if "quantized" in file.name else 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_masked_lm_gives_our_logits_and_those_of_transformers(
    dtype: torch.dtype, make: Make, documents: list[np.ndarray], tmp_path: Path
) -> None:
    from transformers import AutoModelForMaskedLM

    folder = make("masked", dtype=dtype)
    export_folder(ModelFolder(folder), tmp_path / "out")
    ((name, logits),) = run(tmp_path / "out/onnx/model.onnx", documents).items()
    assert name == "logits" and logits.shape == (8, 700, 512) and logits.dtype == np.float32
    assert apart(logits, alone(ModelFolder(folder).load_model(dtype=torch.float32), documents)) < 1e-5
    theirs = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = [theirs(input_ids=torch.from_numpy(each)[None]).logits[0].numpy() for each in documents]
    assert apart(logits, expected) < 1e-5


@pytest.mark.parametrize("task, pooling", [("classify", "mean"), ("classify", "cls"), ("tag", "mean")])
def test_heads_with_labels_give_our_scores(
    task: str, pooling: str, make: Make, documents: list[np.ndarray], tmp_path: Path
) -> None:
    folder = make(task, pooling)
    export_folder(ModelFolder(folder), tmp_path / "out")
    logits = run(tmp_path / "out/onnx/model.onnx", documents)["logits"]
    expected = alone(ModelFolder(folder).load_model(), documents)
    if task != "tag":
        expected = [each[0] for each in expected]
    assert logits.shape[-1] == len(LABELS[task]) and apart(logits, expected) < 1e-5
    assert json.loads((tmp_path / "out/config.json").read_text())["id2label"]["0"] == LABELS[task][0]


def test_answers_in_a_passage_have_two_outputs(make: Make, documents: list[np.ndarray], tmp_path: Path) -> None:
    folder = make("extract")
    export_folder(ModelFolder(folder), tmp_path / "out")
    found = run(tmp_path / "out/onnx/model.onnx", documents)
    expected = alone(ModelFolder(folder).load_model(), documents)
    assert list(found) == ["start_logits", "end_logits"]
    for column, name in enumerate(found):
        assert apart(found[name], [each[:, column] for each in expected]) < 1e-5


@pytest.mark.parametrize("pooling", ["mean", "cls", "tokens"])
def test_embedders_give_the_vectors_that_we_give(
    pooling: str, make: Make, documents: list[np.ndarray], tmp_path: Path
) -> None:
    folder = make("embed", pooling)
    report = export_folder(ModelFolder(folder), tmp_path / "out", texts=["the capital of country 3", "w " * 2_000])
    found = run(tmp_path / "out/onnx/model.onnx", documents)
    ours = ModernBert.load(folder, device="cpu", dtype="float32", engine="torch")
    hidden = alone(ours.encoder, documents)
    assert ours.projection is not None
    with torch.no_grad():
        weight = ours.projection.weight.numpy()
    made = {"mean": lambda each: each.mean(0), "cls": lambda each: each[0], "tokens": lambda each: each}[pooling]
    expected = [made(each) @ weight.T for each in hidden]
    expected = [each / np.linalg.norm(each, axis=-1, keepdims=True) for each in expected]
    if pooling == "tokens":
        assert list(found) == ["token_embeddings"] and apart(found["token_embeddings"], expected) < 1e-5
    else:
        assert list(found) == ["last_hidden_state", "sentence_embedding"]
        assert apart(found["last_hidden_state"], hidden) < 1e-5
        assert apart(found["sentence_embedding"], expected) < 1e-5
        text = ours.tokenizer.encode(["rivers"])
        vector = run(tmp_path / "out/onnx/model.onnx", text)["sentence_embedding"][0]
        np.testing.assert_allclose(vector, ours.embed_documents(["rivers"]).vectors[0], atol=1e-6)
    assert (report.num_documents, report.num_truncated) == (21, 1)
    dense = "1_Dense/config.json" if pooling == "tokens" else "2_Dense/config.json"
    for name in ("modules.json", dense, "tokenizer.json", "special_tokens_map.json"):
        assert (tmp_path / "out" / name).exists(), name


def test_a_text_is_the_same_alone_and_padded_to_any_length_on_either_side(
    make: Make, documents: list[np.ndarray], tmp_path: Path
) -> None:
    export_folder(ModelFolder(make()), tmp_path / "out", int8=True)
    for file, bound in (("model.onnx", 1e-5), ("model_quantized.onnx", 1e-2)):
        expected = [run(tmp_path / "out/onnx" / file, [each])["last_hidden_state"][0] for each in documents]
        for columns in (0, 1_111):
            found = run(tmp_path / "out/onnx" / file, documents, columns=columns)["last_hidden_state"]
            assert apart(found, expected) < bound
        left = run(tmp_path / "out/onnx" / file, documents[1:4], left=True)["last_hidden_state"]
        assert apart(np.stack([row[::-1] for row in left]), [each[::-1] for each in expected[1:4]]) < bound


def test_int8_is_near_and_says_how_near(make: Make, documents: list[np.ndarray], tmp_path: Path) -> None:
    folder = make("masked")
    report = export_folder(ModelFolder(folder), tmp_path / "out", int8=True, texts=["a text"])
    found = run(tmp_path / "out/onnx/model_quantized.onnx", documents)["logits"]
    for row, own in zip(found, alone(ModelFolder(folder).load_model(), documents), strict=False):
        one, other = row[: len(own)].ravel(), own.ravel()
        assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.99
    said = json.loads((tmp_path / "out/export.json").read_text())
    assert said["files"]["onnx/model_quantized.onnx"] < 0.4 * said["files"]["onnx/model.onnx"]
    assert report.int8_agreement is not None and 0.99 < report.int8_agreement.cosine < 1
    assert said["verified"]["int8"]["cosine"] == report.int8_agreement.cosine
    assert said["verified"]["int8"]["in_float32"] == [] and said["outputs"] == {"logits": ["rows", "columns", 512]}
    assert said["verified"]["float32"]["logits"]["difference"] < 1e-5 and said["verified"]["documents"] == 20


def spoil(folder: Path, target: str, source: str, row: int) -> None:
    """Give the rows of products a large weight each, for an input that is always zero.

    In float32 nothing changes; of the other weights of such a row, int8 keeps nothing.
    """
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if name.endswith(target)]:
        weights[name] *= 100  # so that what such a product adds is heard
        weights[name][:, 0] = 1e5
        weights[name.replace(target, source)][row] = 0
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_what_int8_cannot_hold_stays_in_float32_or_is_refused(make: Make, tmp_path: Path) -> None:
    folder = make("embed")
    spoil(folder, "mlp.Wo.weight", "mlp.Wi.weight", 0)
    report = export_folder(ModelFolder(folder), tmp_path / "out", int8=True)
    assert report.kept == ("*.mlp.Wo",)
    assert json.loads((tmp_path / "out/export.json").read_text())["verified"]["int8"]["in_float32"] == ["*.mlp.Wo"]
    spoil(folder, "attn.Wo.weight", "attn.Wqkv.weight", 128)
    with pytest.raises(InputError, match=r"none: int8 keeps a cosine of 0\.\d+ to float32, expected at least 0.99"):
        export_folder(ModelFolder(folder), tmp_path / "none", int8=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "none.unverified", "out"]


def test_weights_too_large_for_one_file_lie_beside_it(
    make: Make, documents: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make()
    monkeypatch.setattr(nodes, "_MAX_FILE_BYTES", 100_000)
    export_folder(ModelFolder(folder), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out/onnx").iterdir()} == {"model.onnx", "model.onnx_data"}
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    found = run(tmp_path / "elsewhere/onnx/model.onnx", documents)["last_hidden_state"]
    assert apart(found, alone(ModelFolder(folder).load_model(), documents)) < 1e-5


def test_a_full_disk_leaves_nothing_and_a_graph_that_is_not_near_lies_aside(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(InputError, match=f"^{tmp_path / 'out'}: cannot be written"):
            export_folder(ModelFolder(folder), tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    monkeypatch.setattr("modernbert.export.onnx_folder._MAX_DIFFERENCE", -1.0)  # no graph is as near as that
    with pytest.raises(
        InputError, match=r"last_hidden_state of the graph differs .*; it is kept as .*out\.unverified$"
    ):
        export_folder(ModelFolder(folder), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out.unverified"]
    assert (tmp_path / "out.unverified" / "onnx" / "model.onnx").is_file()


def test_what_cannot_be_exported_is_named(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make("embed")

    def refused(file: str, content: Any, said: str) -> None:
        kept = (folder / file).read_text()
        (folder / file).write_text(json.dumps(content))
        with pytest.raises(InputError, match=said):
            export_folder(ModelFolder(folder), tmp_path / "out")
        (folder / file).write_text(kept)

    config = json.loads((folder / "config.json").read_text())
    refused("config.json", config | {"model_type": "bert"}, "is a bert, expected a modernbert")
    modules = json.loads((folder / "modules.json").read_text())
    refused("modules.json", [*modules, {"type": "x.LSTM", "path": "4_LSTM"}], "modules.json: lists 'x.LSTM'")
    refused("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pools by .*pooling_mode_max_tokens")
    dense = {"bias": False, "activation_function": "torch.nn.modules.activation.Tanh"}
    refused("2_Dense/config.json", dense, "2_Dense/config.json: activation_function is")
    (folder / "modules.json").unlink()
    refused("config.json", config | {"architectures": ["ModernBertForDepth"]}, "names ModernBertForDepth, whose head")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="exists already"):
        export_folder(ModelFolder(folder), tmp_path / "out")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"export: onnx is not installed: pip install 'modernbert\[export\]'"):
        export_folder(ModelFolder(folder), tmp_path / "new")


def test_the_verb_writes_a_folder_and_says_what_it_measured(make: Make, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("one\ntwo\n")
    words = ["--output", str(tmp_path / "out"), "--int8", "--input", str(tmp_path / "texts.txt")]
    done = modernbert("export", str(make("classify")), *words)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'out'}/onnx/model.onnx: ") and "model_quantized.onnx" in lines[1]
    assert lines[2].startswith("logits: 21 documents, largest difference ") and lines[3].startswith(
        "int8: least cosine 0.99"
    )
