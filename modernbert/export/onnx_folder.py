"""A model folder -> one for other runtimes: graphs of ONNX, the tokenizer, and what was verified of them.

In: a published folder of a ModernBERT. Out: a folder laid out as models are on the hub: `onnx/model.onnx`, in int8
beside it `onnx/model_quantized.onnx`, and in `export.json` how they were made and how near the model they are. What is
not near enough is not written.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modernbert.checkpoints.folder import digest_of, load_model
from modernbert.checkpoints.projection import load_projection
from modernbert.checkpoints.sentence_transformers_format import load_kept, load_vectors, max_length_of, write_vectors
from modernbert.checkpoints.transformers_models import OURS, family_of
from modernbert.errors import CheckFailed, InputError
from modernbert.export.onnx_check import Agreement, compare, made_up, open_file, short_texts, vectors_in
from modernbert.export.onnx_graph import build, outputs_of
from modernbert.export.onnx_nodes import OPSET, needed, write_model
from modernbert.files import new_folder
from modernbert.model.embedder import Embedder
from modernbert.model.interface import Model
from modernbert.safe_files import read_json
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["Report", "export_folder"]

_FLOAT32, _INT8 = "onnx/model.onnx", "onnx/model_quantized.onnx"
_DIFFERENCE, _COSINE, _INT8_COSINE = 1e-4, 0.9999, 0.99
# Places of a batch, padding included: logits of each are as wide as the vocabulary.
_PLACES = 2_048
_BESIDE = ("config.json", "config_sentence_transformers.json", "modules.json", "sentence_bert_config.json")
# Small, and what is last decides: never in int8.
_HEADS = ("head.*", "classifier", "projection")


@dataclass(frozen=True)
class Report:
    """Say what was written: sizes of files in bytes, and by output how near they are to the model.

    `num_cut` of the documents were too long for the model; `kept` is what stayed in float32 beside int8.
    """

    sizes: dict[str, int]
    num_documents: int
    num_cut: int
    agreements: dict[str, Agreement]
    int8_agreement: Agreement | None
    kept: Sequence[str]


@dataclass(frozen=True)
class _Source:
    """A model that is to be exported, and the texts it is tried on besides made-up ones."""

    folder: Path
    model: Model
    tokenizer: Tokenizer
    texts: Sequence[Sequence[np.ndarray]]
    num_cut: int

    @property
    def longest(self) -> int:
        return _longest(self.folder, self.model)


def export_folder(folder: Path, out: Path, *, int8: bool = False, texts: Sequence[str] = ()) -> Report:
    """Write graphs of a folder's model into a new folder, each compared with the model in ONNX Runtime.

    `texts` are compared too, beside documents of made-up ids, and cut where they are too long for the model.

    Raises: InputError if a library is missing, the model is none of ours or has an unknown head, `out` exists, the disk
    is full, or a graph is too far from the model.
    """
    for library in ("onnx", "onnxruntime"):
        needed(library)
    source = _open(folder, texts)
    with new_folder(out) as partial:
        (partial / "onnx").mkdir()
        _copy_beside(source, partial)
        report = _write_graphs(source, partial, out, int8)
        (partial / "export.json").write_text(json.dumps(_described(source, report), indent=2) + "\n")
    return report


def _open(folder: Path, texts: Sequence[str]) -> _Source:
    family = family_of(folder)
    if family != OURS:
        raise InputError(
            f"{folder}: is a {family}, expected a {OURS}; other families are exported by their own library"
        )
    tokenizer = Tokenizer.load(folder)
    model = _as_used(folder)
    longest = _longest(folder, model)
    whole = tokenizer.encode(texts)
    num_cut = sum(len(ids) > longest for ids in whole)
    return _Source(folder, model, tokenizer, _alike([tokenizer.cut(ids, longest) for ids in whole]), num_cut)


def _longest(folder: Path, model: Model) -> int:
    """Return the most tokens of a text: those of the model's positions, or fewer where the folder says so."""
    return min(max_length_of(folder) or model.max_length, model.max_length)


def _alike(documents: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """Return documents of like length together, so that padding does not cost more than they do."""
    left = sorted(documents, key=len, reverse=True)
    batches = []
    while left:
        most = max(1, _PLACES // len(left[0]))
        batches.append(left[:most])
        left = left[most:]
    return batches


def _as_used(folder: Path) -> Model:
    """Load the model of a folder in float32, with its head, or with what makes its vectors.

    Raises: InputError for a head that is not known.
    """
    model = load_model(folder, dtype=torch.float32)
    if model.is_classifier:
        return model
    if (folder / "modules.json").exists():
        vectors, obstacle = load_vectors(folder), load_kept(folder).obstacle
        if obstacle is not None:
            raise InputError(f"{obstacle}: vectors are written with length 1")
        projection = load_projection(folder, model.hidden_size)
        return Embedder(model.encoder, vectors.pooling, projection and projection.float()).eval()
    named = read_json(folder / "config.json").get("architectures") or ["ModernBertModel"]
    if model.task is None and "ModernBertModel" not in named:
        raise InputError(f"{folder}: config.json names {named[0]}, whose head is not in the weights or not known")
    return model


def _copy_beside(source: _Source, partial: Path) -> None:
    """Write the tokenizer and the files that say how texts become vectors."""
    source.tokenizer.save_folder(partial, source.longest)
    (partial / "config.json").write_bytes((source.folder / "config.json").read_bytes())
    if isinstance(source.model, Embedder):
        # The graph itself scales vectors to length 1.
        kept = replace(load_kept(source.folder), normalize=None)
        write_vectors(partial, load_vectors(source.folder), source.model.projection, source.longest, kept)


def _write_graphs(source: _Source, partial: Path, out: Path, int8: bool) -> Report:
    model, pad_id = source.model, source.tokenizer.pad_id
    batches = [*made_up(source.tokenizer, source.longest), *source.texts]
    write_model(build(model), partial / _FLOAT32)
    agreements = compare(open_file(partial / _FLOAT32), model, outputs_of(model), batches, pad_id)
    for name, found in agreements.items():
        if not (found.difference <= _DIFFERENCE and found.cosine >= _COSINE):
            raise CheckFailed(
                f"{out}: {name} of the graph differs from the model's by {found.difference:.1e} of its largest value, "
                f"expected at most {_DIFFERENCE:.0e}"
            )
    agreement, kept = _write_int8(source, partial, out) if int8 else (None, ())
    sizes = {str(path.relative_to(partial)): path.stat().st_size for path in sorted((partial / "onnx").iterdir())}
    return Report(sizes, sum(map(len, batches)), source.num_cut, agreements, agreement, kept)


def _write_int8(source: _Source, partial: Path, out: Path) -> tuple[Agreement, Sequence[str]]:
    """Write the graph in int8 with as little as is needed left in float32; return how near it is.

    Raises: InputError if it is never near enough.
    """
    judged, output = vectors_in(source.model)
    also = None if output in outputs_of(source.model) else output
    batches = [*short_texts(source.tokenizer, source.longest), *source.texts]
    best = -1.0
    for kept in _choices(source.model.num_layers):
        write_model(build(source.model, [*_HEADS, *kept]), partial / _INT8)
        session = open_file(partial / _INT8, also)
        found = compare(session, judged, [output], batches, source.tokenizer.pad_id)[output.name]
        if found.cosine >= _INT8_COSINE:
            return found, kept
        best = max(best, found.cosine)
    raise CheckFailed(
        f"{out}: int8 keeps a cosine of {best:.4f} to float32, expected at least {_INT8_COSINE}; export without --int8 "
        "writes float32 alone"
    )


def _choices(num_layers: int) -> list[tuple[str, ...]]:
    """Say what may be left in float32, the least first.

    The way back from the feed-forward network is the most sensitive: what comes in is a product of two, with the
    largest outliers. Then the layers that read embeddings and write what is used.
    """
    ends = ("embeddings.*", "layers.0.*", f"layers.{num_layers - 1}.*")
    return [(), ("*.mlp.Wo",), ("*.mlp.Wo", *ends), ("*.mlp.*", *ends)]


def _described(source: _Source, report: Report) -> dict[str, Any]:
    """Return what `export.json` says."""
    verified = {name: asdict(found) for name, found in report.agreements.items()}
    described: dict[str, Any] = {
        "made_by": f"modernbert {version('modernbert')}",
        "weights_sha256": digest_of(source.folder, ["*.safetensors"]),
        "opset": OPSET,
        "inputs": {name: ["rows", "columns"] for name in ("input_ids", "attention_mask")},
        "outputs": {output.name: output.shape for output in outputs_of(source.model)},
        "padding": "right",
        "longest": source.longest,
        "files": report.sizes,
        "verified": {"documents": report.num_documents, "float32": verified},
    }
    if report.int8_agreement is not None:
        described["verified"]["int8"] = asdict(report.int8_agreement) | {
            "output": vectors_in(source.model)[1].name, "in_float32": list(report.kept)
        }  # fmt: skip
    return described
