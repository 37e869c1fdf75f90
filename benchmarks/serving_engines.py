"""Embedding engines with the same weights: this package, transformers, ONNX Runtime, OpenVINO, ...

Each is a function from the token ids of documents to one mean-pooled vector each.
"""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.peers import Absent, Documents, pad
from modernbert.checkpoints.folder import ModelFolder
from modernbert.devices import choose_device, dtype_name
from modernbert.engines.registry import REFERENCE, choose_engine
from modernbert.errors import InputError
from modernbert.export.onnx_graph import build
from modernbert.export.onnx_nodes import write_model
from modernbert.inference.loading import choose_dtype, load_model_for_inference
from modernbert.inference.outputs import PooledVectors, compute
from modernbert.model.config import ModelConfig
from modernbert.model.embedder import Embedder
from modernbert.model.encoder import Encoder
from modernbert.model.initialization import initialize
from modernbert.model.int8_linear import INT8
from modernbert.tokenizer.input_templates import EncodedText

__all__ = ["ENGINES", "Engine", "embed_all", "load_engine", "load_reference", "make_folder"]


@dataclass(frozen=True)
class Engine:
    """An engine; `embed` returns float32 [N, D] for a batch, `dtype` is the precision of its GEMMs.

    If `is_padded`, a batch should have documents of similar lengths.
    """

    setting: str
    dtype: torch.dtype
    embed: Callable[[Documents], np.ndarray]
    is_padded: bool


def make_folder(folder: Path, config: ModelConfig, seed: int = 0) -> None:
    """Write a model folder with random weights, for all engines."""
    model = Encoder(config)
    initialize(model, config, seed)
    ModelFolder.save(folder, model)


def load_engine(name: str, folder: Path, workspace: Path) -> Engine:
    """Load a model folder into an engine; `workspace` is a folder for exported models.

    Raises: InputError for an unknown name; Absent if a library is not installed.
    """
    if name not in ENGINES:
        raise InputError(f"engines: found {name!r}, expected {', '.join(ENGINES)}")
    return ENGINES[name](folder, workspace)


def load_reference(folder: Path, workspace: Path) -> Engine:
    """Return the reference of all engines: float32 of `transformers`, or our reference engine without it."""
    try:
        return _of_transformers(torch.float32)(folder, workspace)
    except Absent:
        return _ours("float32", REFERENCE.name)(folder, workspace)


def embed_all(engine: Engine, documents: Documents, budget_tokens: int) -> np.ndarray:
    """Embed documents in batches of at most `budget_tokens` with padding; padded engines get the longest first."""
    order = (
        sorted(range(len(documents)), key=lambda n: -len(documents[n])) if engine.is_padded else range(len(documents))
    )
    vectors: list[np.ndarray] = []
    batch: list[np.ndarray] = []
    taken = 0
    for number in order:
        document = documents[number]
        taken = (len(batch) + 1) * len(batch[0]) if engine.is_padded and batch else taken + len(document)
        if batch and taken > budget_tokens:
            vectors.append(engine.embed(batch))
            batch, taken = [], len(document)
        batch.append(document)
    vectors.append(engine.embed(batch))
    flat = np.concatenate(vectors)
    found = np.empty_like(flat)
    found[list(order)] = flat
    return found


def _ours(precision: str, engine_name: str = "auto") -> Callable[[Path, Path], Engine]:
    def load(folder: Path, workspace: Path) -> Engine:
        cpu = choose_device("cpu")
        dtype = choose_dtype(precision, "cpu")
        opened = ModelFolder(folder)
        engine = choose_engine(engine_name, cpu, dtype, opened.config)
        model = load_model_for_inference(opened, cpu, dtype, engine, int8=precision == INT8)
        output = PooledVectors("mean", normalize=False)

        def embed(documents: Documents) -> np.ndarray:
            texts = [EncodedText(np.asarray(ids)) for ids in documents]
            return np.concatenate([vectors for _, vectors in compute(model, texts, output, sys.maxsize)])

        if precision == INT8:
            return Engine(f"ragged, {engine.name}, int8 and {dtype_name(dtype)}", torch.int8, embed, is_padded=False)
        return Engine(f"ragged, {engine.name}, {dtype_name(dtype)}", dtype, embed, is_padded=False)

    return load


class _Pooled(nn.Module):
    """A model of `transformers` with the mean over real tokens."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, masks: dict[str, Tensor] | None = None) -> Tensor:
        hidden = self.model(input_ids=input_ids, attention_mask=masks or attention_mask).last_hidden_state.float()
        mask = attention_mask[..., None].float()
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1)


def _of_transformers(dtype: torch.dtype, *, compiled: bool = False) -> Callable[[Path, Path], Engine]:
    def load(folder: Path, workspace: Path) -> Engine:
        model = _pooled(folder, dtype)
        if compiled:
            # Compiling the whole model with dynamic shapes does not end; layers of a kind share their code.
            for layer in model.model.layers:
                layer.compile(dynamic=True)

        @torch.inference_mode()
        def embed(documents: Documents) -> np.ndarray:
            return model(*map(torch.from_numpy, pad(documents))).numpy()  # type: ignore[no-any-return]

        setting = f"padded, sdpa, {dtype_name(dtype)}{', layers compiled' if compiled else ''}"
        return Engine(setting, dtype, embed, is_padded=True)

    return load


def _sentence_transformers(folder: Path, workspace: Path) -> Engine:
    modules = _import("sentence_transformers.models")
    # Token ids are given to the modules, so that no tokenizer is timed.
    model = _pooled(folder, torch.bfloat16).model
    pooling = modules.Pooling(model.config.hidden_size, pooling_mode="mean")

    @torch.inference_mode()
    def embed(documents: Documents) -> np.ndarray:
        ids, mask = map(torch.from_numpy, pad(documents))
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        found = pooling({"token_embeddings": hidden, "attention_mask": mask})["sentence_embedding"]
        return found.float().numpy()  # type: ignore[no-any-return]

    return Engine("padded, sdpa, bfloat16", torch.bfloat16, embed, is_padded=True)


def _onnxruntime(dtype: torch.dtype) -> Callable[[Path, Path], Engine]:
    def load(folder: Path, workspace: Path) -> Engine:
        runtime = _import("onnxruntime")
        _import("onnx")
        file = workspace / "model.onnx"
        if not file.exists():
            # The graph of this package: local layers are faster than in torch's export of the model of transformers.
            write_model(build(Embedder(ModelFolder(folder).load_model(dtype=torch.float32), "mean")), file)
        if dtype == torch.int8:
            exact, file = file, workspace / "model-int8.onnx"
            if not file.exists():
                library = _import("onnxruntime.quantization")
                library.quantize_dynamic(exact, file, per_channel=True, weight_type=library.QuantType.QInt8)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

        def embed(documents: Documents) -> np.ndarray:
            ids, mask = pad(documents)
            (found,) = session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": mask})
            return found  # type: ignore[no-any-return]

        setting = "int8, dynamic, per channel" if dtype == torch.int8 else dtype_name(dtype)
        return Engine(f"padded, {setting}", dtype, embed, is_padded=True)

    return load


class _WithFiniteMasks(nn.Module):
    """A pooled model with finite attention masks.

    A padding position whose window holds only padding has no key; OpenVINO returns NaN for its softmax.
    """

    _HIDDEN = -1e4

    def __init__(self, pooled: _Pooled) -> None:
        super().__init__()
        self.pooled = pooled
        self.half_window: int = pooled.model.config.local_attention // 2

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[1])
        far = (positions[None, :] - positions[:, None]).abs() > self.half_window
        everywhere = (1 - attention_mask)[:, None, None, :].float() * self._HIDDEN
        everywhere = everywhere.expand(-1, 1, input_ids.shape[1], -1)
        masks = {"full_attention": everywhere, "sliding_attention": everywhere + far.float() * self._HIDDEN}
        return self.pooled(input_ids, attention_mask, masks)


def _openvino(dtype: torch.dtype) -> Callable[[Path, Path], Engine]:
    def load(folder: Path, workspace: Path) -> Engine:
        library = _import("openvino")
        file = workspace / "model.xml"
        if not file.exists():
            example = {name: torch.ones(2, 9, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
            model = _WithFiniteMasks(_pooled(folder, torch.float32)).eval()
            library.save_model(library.convert_model(model, example_input=example), file, compress_to_fp16=False)
        if dtype == torch.int8:
            exact, file = file, workspace / "model-int8.xml"
            if not file.exists():
                library.save_model(_calibrated(library.Core().read_model(exact)), file)
        floats = choose_dtype(dtype_name(dtype), "cpu")  # of what is not int8
        hint = "bf16" if floats == torch.bfloat16 else "f32"
        compiled = library.Core().compile_model(
            file, "CPU", {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        )

        def embed(documents: Documents) -> np.ndarray:
            return np.asarray(compiled(list(pad(documents)))[0], dtype=np.float32)

        setting = f"int8 by NNCF, {hint}" if dtype == torch.int8 else dtype_name(dtype)
        return Engine(f"padded, {setting}", dtype, embed, is_padded=True)

    return load


def _calibrated(model: Any) -> Any:
    """Quantize an OpenVINO model with NNCF, as its documentation does for transformers, on 32 random texts."""
    library = _import("nncf")
    random = np.random.default_rng(0)
    texts = [pad([random.integers(100, 4_000, length)]) for length in random.integers(8, 512, 32)]
    inputs = [{"input_ids": ids, "attention_mask": mask} for ids, mask in texts]
    return library.quantize(
        model, library.Dataset(inputs), model_type=library.ModelType.TRANSFORMER, subset_size=len(inputs)
    )


def _pooled(folder: Path, dtype: torch.dtype) -> Any:
    library = _import("transformers")
    model = library.AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True)
    return _Pooled(model).eval()


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Absent(f"{name} is not installed: pip install --group peers") from None


ENGINES: dict[str, Callable[[Path, Path], Engine]] = {
    "modernbert": _ours("auto"),
    "modernbert-float32": _ours("float32"),
    "modernbert-int8": _ours(INT8),
    "transformers-bfloat16": _of_transformers(torch.bfloat16),
    "transformers-bfloat16-compiled": _of_transformers(torch.bfloat16, compiled=True),
    "transformers-float32": _of_transformers(torch.float32),
    "sentence-transformers": _sentence_transformers,
    "onnxruntime": _onnxruntime(torch.float32),
    "onnxruntime-int8": _onnxruntime(torch.int8),
    "openvino-bfloat16": _openvino(torch.bfloat16),
    "openvino-float32": _openvino(torch.float32),
    "openvino-int8": _openvino(torch.int8),
}
