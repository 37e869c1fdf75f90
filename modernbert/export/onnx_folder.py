"""Export of a model folder to ONNX: `onnx/model.onnx`, in int8 `onnx/model_quantized.onnx`, and the tokenizer.

The layout is that of the hub. Each graph is compared with the model in ONNX Runtime; `export.json` has the differences,
and a graph that differs too much is not written.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modernbert.checkpoints.command_line import command_line
from modernbert.checkpoints.folder import ModelFolder
from modernbert.checkpoints.model_card import CARD, ModelCard, ModelFacts
from modernbert.checkpoints.sentence_transformers_format import write_embedding_config
from modernbert.errors import CheckFailed, InputError
from modernbert.export.export_options import ExportConfig
from modernbert.export.onnx_check import Agreement, compare, compared_output, open_file, random_batches, short_batches
from modernbert.export.onnx_graph import build, outputs_of
from modernbert.export.onnx_nodes import OPSET, needed, write_model
from modernbert.files import new_folder
from modernbert.model.embedder import Embedder
from modernbert.model.interface import MODERNBERT, Model
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["Report", "export_folder"]

_FLOAT32, _INT8 = "onnx/model.onnx", "onnx/model_quantized.onnx"
_MAX_DIFFERENCE, _MIN_COSINE, _MIN_INT8_COSINE = 1e-4, 0.9999, 0.99
# Tokens of a batch, padding included; each has as many logits as the vocabulary has entries.
_BATCH_TOKENS = 2_048
# Heads are small and sensitive: never in int8.
_HEADS = ("head.*", "classifier", "projection")


@dataclass(frozen=True)
class Report:
    """The result of an export.

    Attributes:
        sizes: Size of each file in bytes.
        num_documents: Number of documents that were compared.
        num_truncated: Number of texts that were longer than the model's limit, and cut.
        agreements: By output, how much the float32 graph and the model agree.
        int8_agreement: The same for the int8 graph.
        kept: Patterns of the weights that stay in float32 in the int8 graph.
    """

    sizes: dict[str, int]
    num_documents: int
    num_truncated: int
    agreements: dict[str, Agreement]
    int8_agreement: Agreement | None
    kept: Sequence[str]


@dataclass(frozen=True)
class _Source:
    """The model to export, and the texts to compare besides random documents."""

    folder: ModelFolder
    model: Model
    tokenizer: Tokenizer
    texts: Sequence[Sequence[np.ndarray]]
    num_truncated: int


def export_folder(folder: ModelFolder, target: Path, *, int8: bool = False, texts: Sequence[str] = ()) -> Report:
    """Write the graphs of a folder's model to a new folder, each compared with the model in ONNX Runtime.

    Args:
        folder: The model folder, a ModernBERT.
        target: The new folder.
        int8: Whether to write an int8 graph, too.
        texts: Texts to compare besides random documents; texts over the length limit are cut.

    Raises: InputError if a library is missing, the model is of another family or has an unknown head, `target` exists,
        or the disk is full. CheckFailed if a graph differs too much from the model.
    """
    for library in ("onnx", "onnxruntime"):
        needed(library)
    source = _open(folder, texts)
    with new_folder(target) as partial:
        (partial / "onnx").mkdir()
        _copy_beside(source, partial)
        report = _write_graphs(source, partial, target, int8)
        (partial / "export.json").write_text(json.dumps(_described(source, report), indent=2) + "\n")
        (partial / CARD).write_text(_card(source, report))
    return report


def _open(folder: ModelFolder, texts: Sequence[str]) -> _Source:
    if not folder.is_modernbert:
        raise InputError(
            f"{folder}: is a {folder.family}, expected a {MODERNBERT}; export other families with their own library"
        )
    tokenizer, max_length = folder.tokenizer, folder.max_length
    whole = tokenizer.encode(texts)
    num_truncated = sum(len(ids) > max_length for ids in whole)
    batches = _batches_of_similar_length([tokenizer.truncate(ids, max_length) for ids in whole])
    return _Source(folder, _load(folder), tokenizer, batches, num_truncated)


def _batches_of_similar_length(documents: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    left = sorted(documents, key=len, reverse=True)
    batches = []
    while left:
        most = max(1, _BATCH_TOKENS // len(left[0]))
        batches.append(left[:most])
        left = left[most:]
    return batches


def _load(folder: ModelFolder) -> Model:
    """Load the model of a folder in float32, with its head, or as an `Embedder` if the folder says how to embed.

    Raises: InputError for an unknown head.
    """
    model = folder.load_model(dtype=torch.float32)
    if model.is_classifier:
        return model
    if (folder.path / "modules.json").exists():
        if folder.settings.unsupported_similarity is not None:
            raise InputError(f"{folder.settings.unsupported_similarity}: the graph scales vectors to length 1")
        projection = folder.load_projection(model.hidden_size)
        return Embedder(model.encoder, folder.embedding_config.pooling, projection and projection.float()).eval()
    named = folder.files.read_json("config.json").get("architectures") or ["ModernBertModel"]
    if model.task is None and "ModernBertModel" not in named:
        raise InputError(f"{folder.path}: config.json names {named[0]}, whose head is not in the weights or not known")
    return model


def _copy_beside(source: _Source, partial: Path) -> None:
    """Write the tokenizer, config.json, and the files of sentence-transformers."""
    source.tokenizer.save_folder(partial, source.folder.max_length)
    (partial / "config.json").write_bytes((source.folder.path / "config.json").read_bytes())
    if source.model.pooling is not None:
        # The graph scales vectors to length 1.
        settings = replace(source.folder.settings, normalize=None)
        write_embedding_config(
            partial, source.folder.embedding_config, source.model.projection, source.folder.max_length, settings
        )


def _write_graphs(source: _Source, partial: Path, target: Path, int8: bool) -> Report:
    model, pad_id = source.model, source.tokenizer.pad_id
    batches = [*random_batches(source.tokenizer, source.folder.max_length), *source.texts]
    write_model(build(model), partial / _FLOAT32)
    agreements = compare(open_file(partial / _FLOAT32), model, outputs_of(model), batches, pad_id)
    for name, found in agreements.items():
        if not (found.difference <= _MAX_DIFFERENCE and found.cosine >= _MIN_COSINE):
            raise CheckFailed(
                f"{target}: {name} of the graph differs from the model's by {found.difference:.1e} of its largest "
                f"value, expected at most {_MAX_DIFFERENCE:.0e}"
            )
    agreement, kept = _write_int8(source, partial, target) if int8 else (None, ())
    sizes = {str(path.relative_to(partial)): path.stat().st_size for path in sorted((partial / "onnx").iterdir())}
    return Report(sizes, sum(map(len, batches)), source.num_truncated, agreements, agreement, kept)


def _write_int8(source: _Source, partial: Path, target: Path) -> tuple[Agreement, Sequence[str]]:
    """Write the int8 graph with as few weights in float32 as needed; return how much it agrees with the model.

    Raises: CheckFailed if it always differs too much.
    """
    compared, output = compared_output(source.model)
    also = None if output in outputs_of(source.model) else output
    batches = [*short_batches(source.tokenizer, source.folder.max_length), *source.texts]
    best = -1.0
    for kept in _choices(source.model.num_layers):
        write_model(build(source.model, [*_HEADS, *kept]), partial / _INT8)
        session = open_file(partial / _INT8, also)
        found = compare(session, compared, [output], batches, source.tokenizer.pad_id)[output.name]
        if found.cosine >= _MIN_INT8_COSINE:
            return found, kept
        best = max(best, found.cosine)
    raise CheckFailed(
        f"{target}: int8 keeps a cosine of {best:.4f} to float32, expected at least {_MIN_INT8_COSINE}; export "
        "without --int8 to write float32 only"
    )


def _choices(num_layers: int) -> list[tuple[str, ...]]:
    """Return patterns of weights to leave in float32, the fewest first.

    `mlp.Wo` is the most sensitive: its input is a product of two activations, with the largest outliers. Then
    come the embeddings, the first and the last layer.
    """
    ends = ("embeddings.*", "layers.0.*", f"layers.{num_layers - 1}.*")
    return [(), ("*.mlp.Wo",), ("*.mlp.Wo", *ends), ("*.mlp.*", *ends)]


def _card(source: _Source, report: Report) -> str:
    """Return the model card."""
    model, tokenizer, folder = source.model, source.tokenizer, source.folder
    int8 = report.int8_agreement
    settings = {"Opset": OPSET} | {f"Bytes of {name}": size for name, size in report.sizes.items()}
    card = ModelCard(
        method=f"Exported to ONNX, and compared with the model on {report.num_documents:,} documents.",
        command=command_line("modernbert export", ExportConfig(folder.name, output=Path(), int8=int8 is not None)),
        bases=[folder.name],
        relation="quantized" if int8 else None,
        settings=settings,
    )
    embeds = model.pooling is not None
    facts = ModelFacts.of(
        model, folder.max_length, folder.embedding_config if embeds else None, model.projection if embeds else None,
        tokenizer.id_to_token(tokenizer.mask_id), is_onnx=True,
    )  # fmt: skip
    return card.text(facts)


def _described(source: _Source, report: Report) -> dict[str, Any]:
    """Return the content of `export.json`."""
    verified = {name: asdict(found) for name, found in report.agreements.items()}
    described: dict[str, Any] = {
        "made_by": f"modernbert {version('modernbert')}",
        "weights_sha256": source.folder.weights_digest,
        "opset": OPSET,
        "inputs": {name: ["rows", "columns"] for name in ("input_ids", "attention_mask")},
        "outputs": {output.name: output.shape for output in outputs_of(source.model)},
        "padding": "right",
        "max_length": source.folder.max_length,
        "files": report.sizes,
        "verified": {"documents": report.num_documents, "float32": verified},
    }
    if report.int8_agreement is not None:
        described["verified"]["int8"] = asdict(report.int8_agreement) | {
            "output": compared_output(source.model)[1].name, "in_float32": list(report.kept)
        }  # fmt: skip
    return described
