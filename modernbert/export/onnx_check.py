"""Comparison of an ONNX graph in ONNX Runtime with its model, output by output.

Documents are padded for the graph, with an extra row of padding only, and unpadded for the model.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modernbert.batch import Batch
from modernbert.export.onnx_graph import Output, outputs_of
from modernbert.export.onnx_nodes import needed
from modernbert.model.interface import Model
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["Agreement", "compare", "random_batches", "open_file", "short_batches", "compared_output"]

Documents = Sequence[np.ndarray]

# Lengths of documents by batch: a few tokens, around the edges of a window, of very different lengths, beyond a window.
_SHAPES = ((1,), (2,), (3,), (4,), (5,), (63, 64, 65, 66), (1, 128, 129, 193), (3, 700), (40, 131, 300), (2_100,))


@dataclass(frozen=True)
class Agreement:
    """How much an output of two models agrees, over all documents.

    Attributes:
        difference: The largest absolute difference, divided by the largest value.
        cosine: The lowest cosine similarity of a document's values.
    """

    difference: float
    cosine: float


def random_batches(tokenizer: Tokenizer, max_length: int) -> list[list[np.ndarray]]:
    """Return batches of random documents of many lengths, up to `max_length`."""
    return [
        _drawn(tokenizer, [min(length, max_length) for length in lengths], seed) for seed, lengths in enumerate(_SHAPES)
    ]


def short_batches(tokenizer: Tokenizer, max_length: int) -> list[list[np.ndarray]]:
    """Return batches of random documents as long as short texts: log-normal with a median of 40 tokens."""
    lengths = np.random.default_rng(0).lognormal(np.log(40), 0.9, 32)
    whole = np.clip(lengths, 4, min(512, max_length)).astype(int).tolist()
    return [_drawn(tokenizer, whole[start : start + 8], start) for start in range(0, len(whole), 8)]


def _drawn(tokenizer: Tokenizer, lengths: Sequence[int], seed: int) -> list[np.ndarray]:
    """Draw ids with Zipf's frequencies, since ids are roughly in the order of frequency, between special tokens."""
    random = np.random.default_rng(seed)
    ids = tokenizer.ordinary_ids
    shares = 1 / np.arange(1, len(ids) + 1)
    found = [random.choice(ids, length, p=shares / shares.sum()) for length in lengths]
    for document in found:
        document[0], document[-1] = tokenizer.cls_id, tokenizer.sep_id
    return found


def open_file(path: Path, also: Output | None = None) -> Any:
    """Open a file in ONNX Runtime on the CPU; `also` is an inner value of the graph to return as an output."""
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    content: str | bytes = str(path)
    if also is not None:
        onnx = needed("onnx")
        model = onnx.load(path)
        kind = onnx.TensorProto.FLOAT
        model.graph.output.append(onnx.helper.make_tensor_value_info(also.name, kind, also.shape))
        content = model.SerializeToString()
    return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def compared_output(model: Model) -> tuple[Model, Output]:
    """Return the model and the output to compare int8 by: the vectors of an `Embedder`, else the hidden states."""
    compared = model.encoder if model.pooling is None else model
    return compared, outputs_of(compared)[-1]


def compare(
    session: Any, model: Model, outputs: Sequence[Output], batches: Iterable[Documents], pad_id: int
) -> dict[str, Agreement]:
    """Return how much file and model agree in some outputs; values that are not finite do not agree at all."""
    rows: dict[str, list[tuple[float, float, float]]] = {output.name: [] for output in outputs}
    for documents in batches:
        theirs, ours = _of_file(session, outputs, documents, pad_id), _of_model(model, documents)
        for name, mine in rows.items():
            mine.extend(_differences(one, other) for one, other in zip(theirs[name], ours[name], strict=True))
    return {name: _agreement(mine) for name, mine in rows.items()}


def _agreement(rows: Sequence[tuple[float, float, float]]) -> Agreement:
    differences, sizes, cosines = np.array(rows).T
    return Agreement(float(differences.max() / (sizes.max() or 1.0)), float(cosines.min()))


def _differences(found: np.ndarray, expected: np.ndarray) -> tuple[float, float, float]:
    """Return the largest difference, the largest value, and the cosine of two arrays of one shape."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return np.inf, 1.0, -1.0
    one, other = found.ravel(), expected.ravel()
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other)) or 1.0
    return float(np.abs(one - other).max()), float(np.abs(other).max()), float(np.vdot(one, other)) / lengths


def _of_file(session: Any, outputs: Sequence[Output], documents: Documents, pad_id: int) -> dict[str, list[np.ndarray]]:
    """Run the file; return each output of each document, unpadded."""
    lengths = [len(document) for document in documents]
    # Several documents get an extra row of padding only.
    ids = np.full((len(documents) + (len(documents) > 1), max(lengths)), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, document in enumerate(documents):
        ids[row, : len(document)], mask[row, : len(document)] = document, 1
    found = session.run([output.name for output in outputs], {"input_ids": ids, "attention_mask": mask})
    parts = {}
    for output, values in zip(outputs, found, strict=True):
        if not np.isfinite(values).all():  # padding, too, must be finite
            values = np.full_like(values, np.nan)
        cut = lengths if output.of_tokens else [None] * len(lengths)
        parts[output.name] = [row[:length] for row, length in zip(values, cut, strict=False)]
    return parts


@torch.inference_mode()
def _of_model(model: Model, documents: Documents) -> dict[str, list[np.ndarray]]:
    """Compute the same outputs with the model."""
    batch = Batch.from_documents(documents)
    lengths = list(batch.layout.lengths)
    made = _values(model, batch)
    return {
        output.name: [part.numpy() for part in (values.split(lengths) if output.of_tokens else values)]
        for output, values in zip(outputs_of(model), made, strict=True)
    }


def _values(model: Model, batch: Batch) -> Sequence[torch.Tensor]:
    """Return the outputs of a model in the order of `outputs_of`."""
    if model.task is not None:
        scores = model.logits(batch)
        return scores.unbind(-1) if len(outputs_of(model)) > 1 else [scores]
    if model.pooling is not None:
        vectors = model(batch)
        return [vectors] if model.pooling == "tokens" else [model.encode(batch), vectors]
    return [model.encode(batch)]
