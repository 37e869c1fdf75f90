"""Models of other families (BERT, RoBERTa, DeBERTa-v3, NomicBERT, ...), computed by `transformers`.

Nothing in a folder is executed, and `transformers` never reads the folder: it gets the sizes in config.json that its
own config class declares, and tensors that this package has read. So it never loads code, kernels, quantizers, adapters
or other files that a config names.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modernbert.checkpoints.hf_config import (
    INT8_FAMILY,
    head_to_json,
    labels_of_json,
    reads_pairs_of_json,
    task_of_json,
)
from modernbert.checkpoints.padded_models import ForeignClassifier, ForeignEncoder, ForeignModel
from modernbert.checkpoints.safetensors_files import WEIGHTS, check_tensor, is_of_adapter, read_weights, refuse_adapters
from modernbert.errors import CheckFailed, InputError, shown
from modernbert.extras import missing
from modernbert.files import unwrap_errors
from modernbert.model.interface import MODERNBERT, Model
from modernbert.safe_files import FolderFiles, is_there, read_bytes, read_json
from modernbert.tasks.task import ClassifierTask, classifier_task

__all__ = [
    "FAMILIES",
    "family_of",
    "load_foreign_classifier",
    "load_foreign_encoder",
    "load_foreign_model",
    "num_positions_of",
    "vocabulary_of",
    "write_foreign",
]

_OLD_PLACE = "0_Transformer"
FAMILIES = frozenset(
    "albert bert camembert data2vec-text deberta deberta-v2 distilbert electra ernie eurobert gte jina_embeddings_v3 "
    "megatron-bert mobilebert mpnet nomic_bert rembert roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl".split()
)
"""Values of `model_type` of text encoders whose classes need no input but tokens."""
# Fields of transformers' configs that do not affect the shape, and fields that some classes read without declaring.
_NOT_OF_SHAPE = frozenset(
    "architectures dtype id2label is_encoder_decoder label2id model_type output_hidden_states problem_type return_dict "
    "transformers_version".split()
)
_UNDECLARED = frozenset(
    "attention_head_size cls_dropout conv_act conv_groups conv_kernel_size embedding_size head_dim norm_rel_ebd "
    "pooler_hidden_size position_buckets rope_scaling rope_theta share_att_key talking_head".split()
)
# Names of tensors in an encoder's layers; heads have no such names.
_OF_LAYERS = re.compile(r"(^|\.)(layers?|albert_layer_groups|h|blocks?)\.\d+\.")
# Buffers computed from the config, which older versions stored.
_IGNORED = re.compile(r"position_ids|rotary_emb|inv_freq|masked_bias|attn\.bias$")
# Fields that set the length of loops in transformers, so a large value could run forever.
_COUNTED = re.compile("layer|group|network|heads")
_MAX_VALUE, _MAX_COUNT, _MAX_POSITIONS = 2**24, 2**7, 2**20
_VOCABULARY = 2**18
_MOST_LABELS = 2**20
_MAX_TOKENIZER_BYTES = 2**27


def family_of(folder: FolderFiles) -> str:
    """Return the `model_type` of config.json; `modernbert` is the family that this package computes itself.

    Raises: InputError if there is no config.json, its family is not supported, or the folder has an adapter.
    """
    refuse_adapters(folder.path)
    if not is_there(folder / "config.json") and is_there(folder / _OLD_PLACE / "config.json"):
        raise InputError(
            f"{folder}: has its model in {_OLD_PLACE}, as old versions of sentence-transformers wrote it, expected "
            'these files beside modules.json, with the path ""'
        )
    family = folder.read_json("config.json").get("model_type", MODERNBERT)
    if family == INT8_FAMILY:
        return MODERNBERT
    if not isinstance(family, str) or family not in (MODERNBERT, *FAMILIES):
        known = ", ".join((MODERNBERT, *sorted(FAMILIES)))
        raise InputError(f"{folder / 'config.json'}: model_type: found {family!r}, expected one of {known}")
    return family


def num_positions_of(folder: FolderFiles) -> int:
    """Return the number of positions of a model of another family; RoBERTa's positions start behind the padding id.

    Raises: InputError naming a key with an impossible value.
    """
    found = folder.read_json("config.json")
    named = "max_position_embeddings" if found.get("max_position_embeddings") is not None else "n_positions"
    places = _whole(folder, found, named, 512)
    behind = found.get("model_type") in ("roberta", "xlm-roberta", "camembert")
    offset = _whole(folder, found, "pad_token_id", 0, least=0) + 1 if behind else 0
    if places <= offset:
        raise InputError(f"{folder / 'config.json'}: max_position_embeddings: found {places}, expected more")
    return places - offset


def vocabulary_of(folder: FolderFiles) -> int:
    """Return the size of the vocabulary of a model of another family.

    Raises: InputError for an impossible number.
    """
    return _whole(folder, folder.read_json("config.json"), "vocab_size", _VOCABULARY, most=_MAX_VALUE)


def load_foreign_model(folder: FolderFiles, pad_id: int, sep_id: int, dtype: torch.dtype) -> ForeignModel:
    """Load a model with the head that config.json names, or an encoder if no task of this package has such a head.

    The head stays in float32: in bfloat16, ranked documents would tie.

    Raises: InputError if transformers is not installed or does not load the folder, or a part of the head is missing.
    """
    found = folder.read_json("config.json")
    named = found.get("id2label")
    num_labels = len(named) if isinstance(named, dict) else _whole(folder, found, "num_labels", 2, most=_MOST_LABELS)
    task = task_of_json(found, num_labels, folder.path)
    if task is None or not task.other_families:
        return load_foreign_encoder(folder, pad_id, sep_id, dtype)
    labels = labels_of_json(found, num_labels, folder.path)
    inner, lacks = _load(folder, f"AutoModelFor{task.head}", torch.float32, _head_settings(task, labels))
    body = getattr(inner.eval(), str(inner.base_model_prefix)).to(dtype)
    num_positions = num_positions_of(folder)
    if {name for name in inner.state_dict() if not name.startswith(f"{inner.base_model_prefix}.")} <= set(lacks):
        return ForeignEncoder(body, pad_id, sep_id, num_positions)
    if lacks:
        raise InputError(f"{folder}: the weights have no {lacks[0]} of the shape that config.json describes")
    if isinstance(pooler := getattr(body, "pooler", None), nn.Module):
        pooler.float()
    model = ForeignClassifier(inner, task.head_spec, labels, pad_id, sep_id, num_positions)
    model.reads_pairs = model.reads_pairs or reads_pairs_of_json(found, folder.path)
    return model


def load_foreign_encoder(folder: FolderFiles, pad_id: int, sep_id: int, dtype: torch.dtype) -> ForeignEncoder:
    """Load an encoder without a head.

    Raises: InputError if transformers is not installed or does not load the folder.
    """
    inner, _ = _load(folder, "AutoModel", dtype, {})
    return ForeignEncoder(inner.eval(), pad_id, sep_id, num_positions_of(folder))


def load_foreign_classifier(
    folder: FolderFiles, task: str, labels: Sequence[str], seed: int, pad_id: int, sep_id: int
) -> ForeignClassifier:
    """Load an encoder with the head of its family, in float32; missing weights of the head are drawn from the seed.

    Raises: InputError if transformers is not installed or does not load the folder.
    """
    known = classifier_task(task)
    if not known.other_families:
        raise InputError(f"task: found {task!r}, which only ModernBERT models support")
    torch.manual_seed(seed)
    inner, _ = _load(folder, f"AutoModelFor{known.head}", torch.float32, _head_settings(known, labels))
    return ForeignClassifier(inner, known.head_spec, labels, pad_id, sep_id, num_positions_of(folder))


def write_foreign(folder: Path, model: Model, source: Path) -> None:
    """Write a model and the tokenizer files of the folder `source` into a temporary folder, see `files.new_folder`.

    Raises: OSError if the disk is full. CheckFailed if the tokenizer files are gone.
    """
    assert isinstance(model, ForeignModel), "models of this package are written by write_model"
    with unwrap_errors():
        model.inner.save_pretrained(folder)  # type: ignore[operator]
        config = folder / "config.json"
        config.write_text(json.dumps(read_json(config) | head_to_json(model), indent=2, sort_keys=True) + "\n")
    try:
        _copy_tokenizer(source, folder)
    except InputError as error:
        raise CheckFailed(f"{error}; the model was written without its tokenizer") from error


def _head_settings(task: ClassifierTask, labels: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a head in the config of transformers."""
    named = dict(enumerate(labels))
    return {
        "id2label": named, "label2id": {label: n for n, label in named.items()}, "num_labels": len(labels),
        "problem_type": task.problem_type,
    }  # fmt: skip


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise missing("models of other families", "transformers") from None
    # Its messages about each load are not for users of this package.
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _load(folder: FolderFiles, kind: str, dtype: torch.dtype, head: Mapping[str, Any]) -> tuple[nn.Module, list[str]]:
    """Build a model of transformers with a folder's weights; return it and the missing tensors of head and pooler."""
    transformers = _transformers()
    weights = read_weights(folder.path)
    for name, tensor in weights.items():
        if "position_ids" not in name:  # older libraries stored these numbers
            check_tensor(folder.path, name, tensor)
    try:
        config = _config(transformers, folder, len(weights), head)
        with torch.device("meta"):
            planned = getattr(transformers, kind).from_config(config)
        num_planned, num_stored = (
            sum(each.numel() for each in some) for some in (planned.parameters(), weights.values())
        )
        if num_planned > 2 * num_stored + _MAX_VALUE:
            raise InputError(
                f"{folder}: config.json describes {num_planned:,} numbers, the weights have {num_stored:,}"
            )
        inner, report = type(planned).from_pretrained(
            None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True,
            ignore_mismatched_sizes=True,
        )  # fmt: skip
    except InputError:
        raise
    except Exception as error:  # the library raises a dozen types
        raise InputError(f"{folder}: transformers cannot load it ({' '.join(str(error).split())[:200]})") from None
    for name in sorted(report["unexpected_keys"]):
        if is_of_adapter(name) or (_OF_LAYERS.search(name) and not _IGNORED.search(name)):
            raise InputError(
                f"{folder}: the weights have {name}, which config.json's {family_of(folder)} does not have"
            )
    of_body = f"{inner.base_model_prefix}." if head else ""
    missing_names = sorted([*report["missing_keys"], *(each[0] for each in report["mismatched_keys"])])
    lacks = [name for name in missing_names if name.startswith(of_body) and "pooler." not in name]
    if lacks:
        raise InputError(f"{folder}: the weights have no {lacks[0]} of the shape that config.json describes")
    return inner, [name for name in missing_names if not name.startswith(of_body) or "pooler." in name]


def _config(transformers: Any, folder: FolderFiles, num_tensors: int, head: Mapping[str, Any]) -> Any:
    """Return the config of the family's class, with only those fields of config.json that set the model's shape."""
    found = folder.read_json("config.json")
    family = family_of(folder)
    kind = type(transformers.AutoConfig.for_model(family))
    known = {each.name for each in dataclasses.fields(kind)} | set(kind.attribute_map) | _UNDECLARED
    kept = {key: value for key, value in found.items() if key in known - _NOT_OF_SHAPE}
    for key, expected in (("quantization_config", None), ("per_layer_config", None), ("transformers_weights", WEIGHTS)):
        if found.get(key) not in (None, expected):
            named = shown(repr(found[key]), 80)
            raise InputError(f"{folder / 'config.json'}: {key}: found {named}, expected {expected or 'no such key'}")
    for key, value in kept.items():
        most = max(_MAX_COUNT, num_tensors) if _COUNTED.search(key) else _MAX_VALUE
        if type(value) is int and abs(value) > (_MAX_POSITIONS if "position" in key else most):
            raise InputError(f"{folder / 'config.json'}: {key}: found {value}, which no such model has")
    return transformers.AutoConfig.for_model(family, **kept, **head)


def _copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of a tokenizer: JSON objects only, even if a file is a link."""
    (target / "tokenizer.json").write_bytes(read_bytes(source / "tokenizer.json", _MAX_TOKENIZER_BYTES))
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if is_there(source / name):
            # `auto_map` names code.
            found = {key: value for key, value in read_json(source / name).items() if key != "auto_map"}
            (target / name).write_text(json.dumps(found, indent=2) + "\n")


def _whole(
    folder: FolderFiles, found: Mapping[str, Any], key: str, usual: int, *, least: int = 1, most: int = _MAX_POSITIONS
) -> int:
    value = usual if found.get(key) is None else found[key]
    if type(value) is not int or not least <= value <= most:
        raise InputError(f"{folder / 'config.json'}: {key}: found {value!r}, expected {least} to {most:,}")
    return value
