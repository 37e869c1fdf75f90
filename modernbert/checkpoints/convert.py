"""`modernbert convert`: convert a checkpoint of the reference repository or a `pytorch_model.bin` to a model folder.

With an output that ends in .safetensors, the tensors are written under their own names. The pickle is read as data and
never executed. Settings that weights do not show come from the checkpoint, the training YAML or options; sources that
disagree are an error, and the source of each setting is printed.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from modernbert.checkpoints.command_line import command_line
from modernbert.checkpoints.convert_options import ConvertConfig
from modernbert.checkpoints.flexbert import (
    Found,
    fields_of_settings,
    fields_of_shapes,
    find_weights,
    named_tensors,
    without_tied_decoder,
    write_tokenizer_files,
)
from modernbert.checkpoints.folder import ModelFolder
from modernbert.checkpoints.hf_config import config_to_json
from modernbert.checkpoints.model_card import ModelCard
from modernbert.checkpoints.modernbert_format import build_model
from modernbert.checkpoints.torch_file import open_torch_file
from modernbert.config_files import value_of
from modernbert.devices import dtype_name
from modernbert.errors import InputError, counted
from modernbert.files import new_file, write_tensors
from modernbert.hub_download import at_revision, find_tokenizer
from modernbert.model.config import ModelConfig
from modernbert.safe_files import read_json
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["ConvertConfig", "run"]

_PUBLISHED, _SAFETENSORS = "modernbert", ".safetensors"


# The options that describe the model.
_OPTIONS = tuple(
    field.name
    for field in fields(ConvertConfig)
    if field.name not in ("revision", "checkpoint", "output", "tokenizer", "training_config")
)


def run(config: ConvertConfig) -> Path:
    """Convert a file and return the output.

    Raises: InputError if the file is damaged or not a ModernBERT, or if a setting is unknown.
    """
    path = config.checkpoint
    if config.revision is not None:
        if config.tokenizer is None:
            raise InputError(f"revision: found {config.revision!r}, which has no effect without `tokenizer`")
        config = replace(config, tokenizer=at_revision(config.tokenizer, config.revision), revision=None)
    if config.output.suffix == _SAFETENSORS:
        return _convert_tensors(config)
    with open_torch_file(path) as file:
        found = find_weights(file, str(path))
        settings, where = found.settings, f"the settings in {path.name}"
        beside = path.parent / "config.json"
        if settings is None and beside.exists():
            settings, where = read_json(beside), str(beside)
        tokenizer = _tokenizer_of(config, found)
        if settings is not None and settings.get("model_type") == _PUBLISHED:
            described = _published(config, settings, where)
        else:
            described = _described(config, found, settings, where, tokenizer)
        weights = without_tied_decoder(file.tensors(found.tensors), str(path))
    kinds = sorted({dtype_name(tensor.dtype) for tensor in weights.values()})
    if len(kinds) > 1:
        raise InputError(f"{path}: holds {' and '.join(kinds)}, expected one precision")
    model = build_model(described, weights, path)
    card = ModelCard(method="Converted from a checkpoint.", command=command_line("modernbert convert", config))
    ModelFolder.save(config.output, model, tokenizer, card=card)
    print(f"{config.output}: {sum(each.numel() for each in model.parameters()):,} parameters in {kinds[0]}")
    if tokenizer is None:
        print(f"{config.output}: has no tokenizer; pass --tokenizer FOLDER to add one")
    return config.output


def _convert_tensors(config: ConvertConfig) -> Path:
    """Write the tensors of a file under their own names, for example the weights of a `Dense` module."""
    with open_torch_file(config.checkpoint) as file:
        tensors = file.tensors(named_tensors(file.content, str(config.checkpoint)))
    if config.output.exists():
        raise InputError(f"{config.output}: exists already, expected a new file")
    with new_file(config.output) as partial:
        write_tensors(partial, tensors, metadata={"format": "pt"})
    print(f"{config.output}: {counted(len(tensors), 'tensor')}")
    return config.output


def _published(config: ConvertConfig, settings: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return a config.json of transformers as it is; options beside it are an error."""
    given = [name for name in ("training_config", *_OPTIONS) if getattr(config, name) is not None]
    if given:
        raise InputError(f"{given[0]}: {where} already has it; remove the option")
    print(f"the shape: {where}")
    return settings


def _described(
    config: ConvertConfig, found: Found, settings: Mapping[str, Any] | None, where: str, tokenizer: Tokenizer | None
) -> Mapping[str, Any]:
    """Return the config.json of a FlexBERT, and print the source of each field."""
    path = config.checkpoint
    sources = [("the weights", fields_of_shapes(found.tensors, str(path)))]
    if settings is not None:
        sources.append((where, fields_of_settings(settings, where)))
    if config.training_config is not None:
        sources.append((str(config.training_config), _fields_of_training(config.training_config)))
    known = _fields(config, sources)
    shape = ModelConfig.from_fields({name: value for name, (value, _) in known.items()} | _ids_of(tokenizer))
    if tokenizer is not None and tokenizer.vocab_size > shape.vocab_size:
        raise InputError(
            f"tokenizer: has {tokenizer.vocab_size:,} entries, more than the {shape.vocab_size:,} of {path}"
        )
    for name, (value, by) in known.items():
        print(f"{name}: {value} ({by})")
    if len(sources) == 1:
        print("activation, norm and RoPE: as in the published models (no source names others)")
    has_head = any(name.startswith("head.") for name in found.tensors)
    return config_to_json(shape, "ModernBertForMaskedLM" if has_head else "ModernBertModel", "float32")


def _fields(config: ConvertConfig, sources: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, tuple[Any, str]]:
    """Return each field with its source. All sources must agree, or an option decides; no source is an error."""
    options = {name: value for name in _OPTIONS if (value := getattr(config, name)) is not None}
    known: dict[str, tuple[Any, str]] = {}
    for source, values in sources:
        for name, value in values.items():
            other, by = known.setdefault(name, (value, source))
            if other != value and name not in options:
                fix = f"; pass --{name.replace('_', '-')} to decide" if name in _OPTIONS else ""
                raise InputError(f"{source}: {name} is {str(value)[:60]}, but {other} by {by}{fix}")
    known |= {name: (value, "option") for name, value in options.items()}
    dropout = ModelConfig.attention_output_dropout
    known.setdefault("attention_output_dropout", (dropout, "as published; for training only"))
    missing = [name for name in _OPTIONS if name not in known]
    if missing:
        wanted = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise InputError(
            f"{config.checkpoint}: has no {', '.join(missing)}; expected --training-config TRAINING.yaml, or {wanted}"
        )
    return known


def _fields_of_training(path: Path) -> dict[str, Any]:
    """Read the model's fields in a training YAML of the reference repository."""
    settings = value_of("model.model_config", path)
    if not isinstance(settings, dict):
        raise InputError(f"{path}: has no model.model_config, expected a training YAML of the reference repository")
    found = fields_of_settings(settings, str(path))
    max_length = value_of("max_seq_len", path)
    return found if max_length is None else found | {"max_position_embeddings": max_length}


def _ids_of(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Return the ids of special tokens; FlexBERT's settings have the ids of another tokenizer, bert-base-uncased."""
    if tokenizer is None:
        return {"pad_token_id": None, "cls_token_id": None, "sep_token_id": None}
    return {"pad_token_id": tokenizer.pad_id, "cls_token_id": tokenizer.cls_id, "sep_token_id": tokenizer.sep_id}


def _tokenizer_of(config: ConvertConfig, found: Found) -> Tokenizer | None:
    """Return the tokenizer of the option, else that in the checkpoint, else that beside it; print which."""
    beside = config.checkpoint.parent / "tokenizer.json"
    if config.tokenizer is not None:
        return Tokenizer.load(find_tokenizer(config.tokenizer))
    if found.tokenizer:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            write_tokenizer_files(Path(folder), found.tokenizer, str(config.checkpoint))
            tokenizer = Tokenizer.load(folder)
        print(f"the tokenizer: the one in {config.checkpoint}")
        return tokenizer
    if beside.exists():
        print(f"the tokenizer: {beside}")
        return Tokenizer.load(beside)
    return None
