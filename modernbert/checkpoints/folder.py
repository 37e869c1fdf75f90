"""Model folders as published: `config.json` and `model.safetensors`, to and from modules.

In: a folder or the name of a model on the hub. Out: a module with its weights, and back. Nothing in a folder is ever
executed or unpickled: only JSON and safetensors are read, and only from the folder itself.
"""

import copy
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modernbert.batch import Batch
from modernbert.checkpoints.colbert_format import LINEAR, is_stanford
from modernbert.checkpoints.hf_config import check_head, config_from_json, config_to_json, unused_dropouts
from modernbert.checkpoints.safetensors_files import WEIGHTS, check_tensor, is_of_adapter, read_weights, refuse_adapters
from modernbert.checkpoints.sentence_transformers_modules import OURS_LISTED
from modernbert.engines.engine import Engine
from modernbert.engines.registry import PORTABLE
from modernbert.errors import CheckFailed, InputError, shown
from modernbert.files import new_folder, sha256_of, write_tensors
from modernbert.hub_download import find_folder
from modernbert.model.config import ModelConfig
from modernbert.model.encoder import Encoder
from modernbert.model.heads import Classifier, MaskedLM
from modernbert.model.interface import Model
from modernbert.model.meta_device import on_meta
from modernbert.safe_files import check_file, is_one_line, read_json
from modernbert.tasks.task import ClassifierTask, classifier_task, known_tasks, task_of_config

__all__ = [
    "digest_of",
    "load_config",
    "load_model",
    "model_of",
    "save_folder",
]

logger = logging.getLogger("modernbert")

# Where a text is cut, how it is pooled and what is put before it decide its vectors as weights do.
_DECIDING = (
    "*.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "modules.json", OURS_LISTED, "sentence_bert_config.json",
    "config_sentence_transformers.json", "artifact.metadata",
)  # fmt: skip
_MASKED_LM_HEAD = ("head.dense.weight", "head.norm.weight", "decoder.bias")
_CLASSIFIER_HEAD = ("head.dense.weight", "head.norm.weight", "classifier.weight", "classifier.bias")
# Of tasks whose published configs name others, or none.
_MOST_LABELS = 2**20
# Our keys of config.json, which other libraries ignore, and keys that sentence-transformers writes for a CrossEncoder.
_PAIRS = "text_pairs"
_TASK = "modernbert_task"
_OF_CROSS_ENCODERS = ("sentence_transformers", "sbert_ce_default_activation_function")
# Weights of other heads, which neither the encoder nor the masked-LM head asks for.
_OTHER_HEADS = ("classifier.", "head.", "decoder.", "score.", "dense.", "drop.")


def digest_of(name: str | Path, files: Sequence[str] = _DECIDING) -> str:
    """Return what tells a model from all others: a SHA-256 of those of its files that decide what it answers.

    Raises: InputError if there is no such model.
    """
    folder = find_folder(name)
    found = sorted(path for pattern in files for path in folder.rglob(pattern))
    for path in found:
        check_file(path)
    named = (f"{path.relative_to(folder).as_posix()} {sha256_of(path)}" for path in found)
    return hashlib.sha256("\n".join(named).encode()).hexdigest()


def load_config(folder: Path) -> ModelConfig:
    """Read `config.json` in either dialect.

    Raises: InputError naming the file and the key, or the adapter that the folder has.
    """
    refuse_adapters(folder)
    return config_from_json(read_json(folder / "config.json"), str(folder / "config.json"))


def load_model(
    folder: Path, *, dtype: torch.dtype | None = None, engine: Engine = PORTABLE
) -> MaskedLM | Classifier | Encoder:
    """Build the model of a folder with its weights: with the head that the folder has, else an `Encoder`.

    `dtype=None` keeps the precision of the file.

    Raises: InputError naming the file and the tensor, if weights are absent, of the wrong shape, or not safetensors.
    """
    refuse_adapters(folder)
    found = read_json(folder / "config.json")
    for line in unused_dropouts(found, str(folder / "config.json")):
        logger.warning("%s", line)
    return model_of(found, read_weights(folder), folder, dtype=dtype, engine=engine)


def model_of(
    found: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    engine: Engine = PORTABLE,
) -> MaskedLM | Classifier | Encoder:
    """Build the model of a published config and published names, which came from `folder`.

    Raises: InputError naming the file and the tensor, if weights are absent or of the wrong shape.
    """
    config = config_from_json(found, str(folder / "config.json"))
    weights = _without_prefix(tensors, folder)
    if is_stanford(found):
        # The encoder is that of the library's class, whose linear layer is loaded as a projection.
        weights = {name.removeprefix("bert."): tensor for name, tensor in weights.items() if name != LINEAR}
    last = f"layers.{config.num_hidden_layers - 1}.mlp.Wo.weight"
    if last not in weights:  # before as many layers are made
        raise InputError(f"{folder}: the weights have no {last}, expected {config.num_hidden_layers} layers")
    with on_meta():
        model = _build(config, found, weights, engine, folder)
    expected = {name.removeprefix("model."): tensor for name, tensor in _stored_state(model).items()}
    _check_names_and_shapes(expected, weights, folder, has_head=model.task is not None)
    for name in expected:
        check_tensor(folder, name, weights[name])
    try:
        state = {name: weights[name.removeprefix("model.")].to(dtype) for name in _stored_state(model)}
    except RuntimeError as error:
        raise InputError(f"{folder}: there is no memory for the weights ({error})") from None
    model.load_state_dict(state, strict=False, assign=True)
    if isinstance(model, MaskedLM):
        model.decoder.weight = model.model.embeddings.tok_embeddings.weight
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()


def save_folder(
    folder: Path,
    model: Model,
    write_tokenizer: Callable[[Path], None] | None = None,
    *,
    replace: bool = False,
    kept: Path | None = None,
) -> None:
    """Write a folder that this package, `transformers` and other readers load unedited.

    The folder is read back and must compute what the model computes before it is renamed into place. `write_tokenizer`
    is called with the temporary folder, to add the tokenizer's files.

    Raises: InputError if the folder exists and may not be replaced, or the disk is full. CheckFailed if the folder does
        not compute what the model computes; the weights are then kept, see `storage.new_folder`.
    """
    assert isinstance(model, (MaskedLM, Classifier, Encoder)), "models of other families are saved by save_foreign"
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in _stored_state(model).items()}
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    config = config_to_json(model.encoder.config, _architecture(model), dtype) | _labels_to_json(model)
    with new_folder(folder, replace=replace, kept=kept) as partial:
        (partial / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        write_tensors(partial / WEIGHTS, state, metadata={"format": "pt"})
        if write_tokenizer is not None:
            write_tokenizer(partial)
        try:
            _verify(partial, model, folder)
        except CheckFailed:
            raise
        except (InputError, RuntimeError, MemoryError) as error:
            raise CheckFailed(f"{folder}: the written model cannot be checked ({error})") from error


def _without_prefix(weights: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Return weights by their names in an encoder, whether or not its own name stands before them."""
    bare = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    if len(bare) < len(weights):
        twice = next(name for name in bare if name in weights and f"model.{name}" in weights)
        raise InputError(f"{folder}: the weights have {twice} and model.{twice}, expected one of them")
    return bare


def _build(
    config: ModelConfig, found: Mapping[str, Any], weights: Mapping[str, Tensor], engine: Engine, folder: Path
) -> MaskedLM | Classifier | Encoder:
    """Make the module that a folder's weights are for."""
    if all(name in weights for name in _MASKED_LM_HEAD):
        check_head(found, str(folder / "config.json"))
        return MaskedLM(config, engine)
    missing = [name for name in _CLASSIFIER_HEAD if name not in weights]
    if missing and "classifier.weight" in weights and _task_of(found, 1, folder):
        raise InputError(f"{folder}: the weights have no {missing[0]}, expected it beside classifier.weight")
    if not missing:
        shape = list(weights["classifier.weight"].shape)
        if len(shape) != 2 or not 1 <= shape[0] <= _MOST_LABELS or shape[1] != config.hidden_size:
            raise InputError(f"{folder}: classifier.weight has shape {shape}, expected [labels, {config.hidden_size}]")
        num_labels = shape[0]
        if task := _task_of(found, num_labels, folder):
            check_head(found, str(folder / "config.json"))
            labels = task.fixed_labels or _labels_from_json(found, num_labels, folder)
            model = Classifier(config, task.head_spec, labels, engine)
            model.reads_pairs = model.reads_pairs or _reads_pairs(found, folder)
            return model
        said = ", ".join(f"{key} {shown(str(found.get(key)), 80)}" for key in ("architectures", "problem_type"))
        logger.warning("%s: config.json names no task of ours (%s), so its head is not loaded", folder, said)
    return Encoder(config, engine)


def _task_of(found: Mapping[str, Any], num_labels: int, folder: Path) -> ClassifierTask | None:
    """Return the task that a config is for: by our key, or by the architecture and the problem type.

    Raises: InputError for a key with an unknown task.
    """
    if (name := found.get(_TASK)) is not None:
        if name not in known_tasks():
            raise InputError(
                f"{folder / 'config.json'}: {_TASK} is {name!r}, expected {', '.join(known_tasks())}; a task of "
                "another package is known once its module is imported"
            )
        return classifier_task(str(name))
    architectures, problem = found.get("architectures"), found.get("problem_type")
    listed = architectures if isinstance(architectures, list) else []
    return task_of_config(listed, problem, num_labels)


def _reads_pairs(found: Mapping[str, Any], folder: Path) -> bool:
    """Say whether a folder says that its scores are of pairs of texts: by our key, or as a CrossEncoder.

    Raises: InputError for a key of another type.
    """
    if (said := found.get(_PAIRS)) is not None:
        if not isinstance(said, bool):
            raise InputError(f"{folder / 'config.json'}: {_PAIRS}: found {said!r}, expected true or false")
        return said
    settings = read_json(folder / "config_sentence_transformers.json", missing_ok=True)
    # sentence-transformers adds its own keys to the config.json of a CrossEncoder, and of no other model.
    return settings.get("model_type") == "CrossEncoder" or any(key in found for key in _OF_CROSS_ENCODERS)


def _labels_from_json(found: Mapping[str, Any], num_labels: int, folder: Path) -> list[str]:
    named = found.get("id2label")
    if named is None:
        return [f"LABEL_{number}" for number in range(num_labels)]
    labels = [named.get(str(number)) for number in range(num_labels)] if isinstance(named, dict) else []
    if not labels or len(named) != num_labels or not all(isinstance(label, str) for label in labels):
        count = f"{len(named)} labels" if isinstance(named, dict) else f"{type(named).__name__}"
        raise InputError(f"{folder / 'config.json'}: id2label has {count}, expected {num_labels} by weights")
    texts = [str(label) for label in labels]
    for label in texts:
        if not is_one_line(label):  # they are printed as they are
            raise InputError(f"{folder / 'config.json'}: id2label has {label!r}, expected text of one line")
    if len(set(texts)) < num_labels:  # answers are told apart by them
        twice = next(label for label, count in Counter(texts).items() if count > 1)
        raise InputError(f"{folder / 'config.json'}: id2label has {twice!r} twice, expected different labels")
    return texts


def _labels_to_json(model: Model) -> dict[str, Any]:
    if not isinstance(model, Classifier):
        return {}
    task = classifier_task(model.task)
    return {
        "id2label": {str(number): label for number, label in enumerate(model.labels)},
        "label2id": {label: number for number, label in enumerate(model.labels)},
        "num_labels": len(model.labels),
        "problem_type": task.problem_type,
        **({} if task.is_published else {_TASK: task.name}),
        **({_PAIRS: True} if model.reads_pairs else {}),
    }


def _architecture(model: Model) -> str:
    if isinstance(model, Classifier):
        return classifier_task(model.task).architecture
    return "ModernBertForMaskedLM" if isinstance(model, MaskedLM) else "ModernBertModel"


def _stored_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that are written: all but the tied decoder weight."""
    return {name: tensor for name, tensor in model.state_dict().items() if name != "decoder.weight"}


def _verify(written: Path, model: MaskedLM | Classifier | Encoder, folder: Path) -> None:
    """Compare what was written with the model it was written from, by what both compute on the CPU."""
    original = copy.deepcopy(model).cpu().eval()
    encoder = original.encoder
    encoder.engine = PORTABLE
    tokens = [number * 7919 % encoder.config.vocab_size for number in range(150)]
    batch = Batch.from_documents([tokens[:21], tokens])
    with torch.inference_mode():
        ours = _outputs(original, batch).float()
        if not ours.isfinite().all():
            raise CheckFailed(f"{folder}: the model computes values that are not finite")
        read = load_model(written)
        theirs = _outputs(read, batch).float()
    state = _stored_state(read)
    same = all(torch.equal(tensor, state[name]) for name, tensor in _stored_state(original).items())
    if not same:
        raise CheckFailed(f"{folder}: the written weights differ from those of the model")
    # The last bit of a product with one column depends on where in memory its weights begin. Terms of a sum can cancel,
    # so the bound is a share of the terms, not of the sum.
    size = max(float(ours.abs().max()), _largest_sum_of_terms(original))
    bound = 8 * torch.finfo(next(original.parameters()).dtype).eps * size
    difference = float((ours - theirs).abs().max())
    if not difference <= bound:
        raise CheckFailed(
            f"{folder}: the written model differs from the model by {difference:.1e}, expected at most {bound:.1e}"
        )


def _outputs(model: MaskedLM | Classifier | Encoder, batch: Batch) -> Tensor:
    return model.encode(batch) if model.task is None else model.logits(batch)


def _largest_sum_of_terms(model: MaskedLM | Classifier | Encoder) -> float:
    """Return an upper bound of the sum of absolute terms in one output of the head; 0 for a model without one.

    The head's input is a normalized row of D numbers, of length sqrt(D), times the weight of the norm.
    """
    if isinstance(model, Encoder):
        return 0.0
    last = model.output_layer
    scaled = last.weight.detach().float() * model.head.norm.weight.detach().float()
    lengths = scaled.norm(dim=1) * scaled.shape[1] ** 0.5
    return float((lengths + last.bias.detach().float().abs()).max())


def _check_names_and_shapes(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], folder: Path, *, has_head: bool
) -> None:
    """Check that each tensor has its place, and that each place has its tensor.

    Heads may be left out where none is loaded, with a warning. A folder with two heads does not say which one counts.
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
        if name == "decoder.weight" or "rotary_emb" in name:  # the embeddings again; what follows from the thetas
            continue
        if not name.startswith(_OTHER_HEADS):
            raise InputError(f"{folder}: the weights have {name}, which no ModernBERT of this config has")
        if has_head:
            raise InputError(f"{folder}: the weights have {name} of a second head, expected the tensors of one head")
        others.append(name)
    if others:
        logger.warning("%s: of a head that is not loaded: %s", folder, shown(", ".join(others), 200))
