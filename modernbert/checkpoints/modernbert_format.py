"""The weights and config.json of a ModernBERT folder: builds the model with its head, and writes and verifies it."""

import copy
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modernbert.batch import Batch
from modernbert.checkpoints.colbert_format import LINEAR, is_stanford
from modernbert.checkpoints.hf_config import (
    check_head,
    config_from_json,
    config_to_json,
    head_to_json,
    is_int8_json,
    labels_of_json,
    reads_pairs_of_json,
    task_of_json,
    unused_dropouts,
)
from modernbert.checkpoints.safetensors_files import WEIGHTS, check_tensor, is_of_adapter, read_weights
from modernbert.devices import dtype_name
from modernbert.engines.engine import Engine
from modernbert.engines.registry import PORTABLE
from modernbert.errors import CheckFailed, InputError, shown
from modernbert.files import write_tensors
from modernbert.model.config import ModelConfig
from modernbert.model.encoder import Encoder
from modernbert.model.heads import MaskedLM
from modernbert.model.int8_linear import Int8Linear, int8_layers, is_int8, linear_slots
from modernbert.model.interface import Model
from modernbert.model.meta_device import on_meta
from modernbert.safe_files import FolderFiles
from modernbert.tasks.task import classifier_task

__all__ = ["build_model", "load_modernbert", "verify_written", "write_model"]

logger = logging.getLogger("modernbert")

_MASKED_LM_HEAD = ("head.dense.weight", "head.norm.weight", "decoder.bias")
_CLASSIFIER_HEAD = ("head.dense.weight", "head.norm.weight", "classifier.weight", "classifier.bias")
_MOST_LABELS = 2**20
# Prefixes of the weights of heads that are not loaded.
_OTHER_HEADS = ("classifier.", "head.", "decoder.", "score.", "dense.", "drop.")


def load_modernbert(files: FolderFiles, *, dtype: torch.dtype | None = None, engine: Engine = PORTABLE) -> Model:
    """Load a ModernBERT with the head that its folder has; `dtype=None` keeps the precision of the file.

    Raises: InputError naming the file and the tensor, if weights are missing, of the wrong shape, or not safetensors.
    """
    found = files.read_json("config.json")
    for line in unused_dropouts(found, str(files / "config.json")):
        logger.warning("%s", line)
    return build_model(found, read_weights(files.path), files.path, dtype=dtype, engine=engine)


def build_model(
    found: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    engine: Engine = PORTABLE,
) -> Model:
    """Build a model from the content of config.json and tensors with published names; errors name `folder`.

    Raises: InputError naming the file and the tensor, if weights are missing or of the wrong shape.
    """
    config = config_from_json(found, str(folder / "config.json"))
    weights = _without_prefix(tensors, folder)
    if is_stanford(found):
        # The library's class calls its encoder `bert`; its linear layer is loaded as the projection.
        weights = {name.removeprefix("bert."): tensor for name, tensor in weights.items() if name != LINEAR}
    last = f"layers.{config.num_hidden_layers - 1}.mlp.Wo.weight"
    if last not in weights:  # before so many layers are built
        raise InputError(f"{folder}: the weights have no {last}, expected {config.num_hidden_layers} layers")
    with on_meta():
        model = _build(config, found, weights, engine, folder)
        if is_int8_json(found):
            for parent, name, linear in linear_slots(model.encoder):
                parent.add_module(name, Int8Linear.quantize(linear.weight))
    expected = {name.removeprefix("model."): tensor for name, tensor in _stored_state(model).items()}
    _check_names_and_shapes(expected, weights, folder, has_head=model.task is not None)
    for name, tensor in expected.items():
        check_tensor(folder, name, weights[name], int8=tensor.dtype == torch.int8)
    kept = {f"{name}.{part}" for name, each in int8_layers(model) for part in ("weight", "scale")}
    try:
        state = {
            name: weights[name.removeprefix("model.")].to(tensor.dtype if name in kept else dtype)
            for name, tensor in _stored_state(model).items()
        }
    except RuntimeError as error:
        raise InputError(f"{folder}: not enough memory for the weights ({error})") from None
    model.load_state_dict(state, strict=False, assign=True)
    if isinstance(model, MaskedLM):
        model.decoder.weight = model.model.embeddings.tok_embeddings.weight
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()


def write_model(folder: Path, model: Model) -> None:
    """Write config.json and the weights into a temporary folder, see `files.new_folder`.

    Raises: OSError if the disk is full or not writable.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in _stored_state(model).items()}
    dtype = dtype_name(model.dtype)
    config = config_to_json(model.encoder.config, _architecture(model), dtype, int8=is_int8(model))
    config |= head_to_json(model)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_tensors(folder / WEIGHTS, state, metadata={"format": "pt"})


def verify_written(written: Path, model: Model, folder: Path) -> None:
    """Read a written folder back, and compare its weights and its outputs on the CPU with the model's.

    Messages name `folder`, the place of the folder once it is verified.

    Raises: CheckFailed if they differ, or the outputs are not finite. InputError if the folder cannot be read.
    """
    original = copy.deepcopy(model).cpu().eval()
    encoder = original.encoder
    encoder.engine = PORTABLE
    tokens = [number * 7919 % encoder.config.vocab_size for number in range(150)]
    batch = Batch.from_documents([tokens[:21], tokens])
    with torch.inference_mode():
        ours = _outputs(original, batch).float()
        if not ours.isfinite().all():
            raise CheckFailed(f"{folder}: the model computes values that are not finite")
        read = load_modernbert(FolderFiles(written))
        theirs = _outputs(read, batch).float()
    state = _stored_state(read)
    same = all(torch.equal(tensor, state[name]) for name, tensor in _stored_state(original).items())
    if not same:
        raise CheckFailed(f"{folder}: the written weights differ from the model's")
    # The last bit of a product with one column depends on the alignment of its weights. Terms of a sum can cancel, so
    # the bound is relative to the terms, not to the sum.
    size = max(float(ours.abs().max()), _largest_sum_of_terms(original))
    # With int8 layers, the last bit of a number decides which way it is rounded to 8 bits.
    bound = 8 * (1 / 127 if is_int8(original) else torch.finfo(next(original.parameters()).dtype).eps) * size
    difference = float((ours - theirs).abs().max())
    if not difference <= bound:
        raise CheckFailed(
            f"{folder}: the written model differs from the model by {difference:.1e}, expected at most {bound:.1e}"
        )


def _without_prefix(weights: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Return weights by their names in the encoder, with or without the prefix `model.` in the file."""
    bare = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    if len(bare) < len(weights):
        twice = next(name for name in bare if name in weights and f"model.{name}" in weights)
        raise InputError(f"{folder}: the weights have {twice} and model.{twice}, expected one of them")
    return bare


def _build(
    config: ModelConfig, found: Mapping[str, Any], weights: Mapping[str, Tensor], engine: Engine, folder: Path
) -> Model:
    """Build the module for a folder's weights."""
    if all(name in weights for name in _MASKED_LM_HEAD):
        check_head(found, str(folder / "config.json"))
        return MaskedLM(config, engine)
    missing = [name for name in _CLASSIFIER_HEAD if name not in weights]
    if missing and "classifier.weight" in weights and task_of_json(found, 1, folder):
        raise InputError(f"{folder}: the weights have no {missing[0]}, expected it beside classifier.weight")
    if not missing:
        shape = list(weights["classifier.weight"].shape)
        if len(shape) != 2 or not 1 <= shape[0] <= _MOST_LABELS or shape[1] != config.hidden_size:
            raise InputError(f"{folder}: classifier.weight has shape {shape}, expected [labels, {config.hidden_size}]")
        num_labels = shape[0]
        if task := task_of_json(found, num_labels, folder):
            check_head(found, str(folder / "config.json"))
            labels = task.fixed_labels or labels_of_json(found, num_labels, folder)
            model = task.model_class(config, task.head_spec, labels, engine)
            model.reads_pairs = model.reads_pairs or reads_pairs_of_json(found, folder)
            return model
        said = ", ".join(f"{key} {shown(str(found.get(key)), 80)}" for key in ("architectures", "problem_type"))
        logger.warning("%s: config.json names no task of this package (%s), so its head is not loaded", folder, said)
    return Encoder(config, engine)


def _architecture(model: Model) -> str:
    if model.task is not None and model.is_classifier:
        return classifier_task(model.task).architecture
    return "ModernBertForMaskedLM" if isinstance(model, MaskedLM) else "ModernBertModel"


def _stored_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors to write: all but the tied decoder weight."""
    return {name: tensor for name, tensor in model.state_dict().items() if name != "decoder.weight"}


def _outputs(model: Model, batch: Batch) -> Tensor:
    return model.encode(batch) if model.task is None else model.logits(batch)


def _largest_sum_of_terms(model: Model) -> float:
    """Return an upper bound of the sum of absolute terms in one output of the head; 0 for a model without one.

    The head's input is a normalized row of D numbers, of length sqrt(D), times the weight of the norm.
    """
    last = model.output_layer
    if last is None:
        return 0.0
    scaled = last.weight.detach().float() * model.get_parameter("head.norm.weight").detach().float()
    lengths = scaled.norm(dim=1) * scaled.shape[1] ** 0.5
    return float((lengths + last.bias.detach().float().abs()).max())


def _check_names_and_shapes(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], folder: Path, *, has_head: bool
) -> None:
    """Check that the file has the expected tensors, and no others.

    The weights of a head that is not loaded give a warning. A second head is an error: the folder does not say which
    one to use.
    """
    if adapted := [name for name in sorted(found) if is_of_adapter(name)]:
        raise InputError(
            f"{folder}: the weights have {adapted[0]}, a tensor of an adapter: adapters are not supported, expected a "
            "whole model (merge the adapter with peft's merge_and_unload() and save the result)"
        )
    for name, tensor in expected.items():
        if name not in found:
            raise InputError(f"{folder}: the weights have no {name}, expected shape {list(tensor.shape)}")
        if found[name].shape != tensor.shape:
            shape = list(found[name].shape)
            raise InputError(f"{folder}: {name} has shape {shape}, expected {list(tensor.shape)} by config.json")
    others = []
    for name in sorted(set(found) - set(expected)):
        if name == "decoder.weight" or "rotary_emb" in name:  # tied to the embeddings; computed from the thetas
            continue
        if not name.startswith(_OTHER_HEADS):
            raise InputError(f"{folder}: the weights have {name}, which no ModernBERT of this config has")
        if has_head:
            raise InputError(f"{folder}: the weights have {name} of a second head, expected the tensors of one head")
        others.append(name)
    if others:
        logger.warning("%s: weights of a head that is not loaded: %s", folder, shown(", ".join(others), 200))
