"""`modernbert convert`: a checkpoint of the reference repository, or a `pytorch_model.bin` -> a published folder.

Where the new name ends in .safetensors, the tensors of any such file go into it by the names they have.

Nothing in the file is run: its pickle is read as data. What weights do not show comes from the settings that lie in the
checkpoint, from the training YAML, or from options; sources that disagree are refused, and what was taken from where is
printed.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from modernbert.checkpoints.flexbert import (
    Found,
    fields_of_settings,
    fields_of_shapes,
    find_weights,
    named_tensors,
    without_tied_decoder,
    write_tokenizer_files,
)
from modernbert.checkpoints.folder import model_of, save_folder
from modernbert.checkpoints.hf_config import config_to_json
from modernbert.checkpoints.torch_file import open_torch_file
from modernbert.config_files import value_of
from modernbert.errors import InputError
from modernbert.files import new_file, write_tensors
from modernbert.hub_download import find_tokenizer
from modernbert.model.config import ModelConfig
from modernbert.safe_files import read_json
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["ConvertConfig", "run"]

_PUBLISHED, _SAFETENSORS = "modernbert", ".safetensors"


@dataclass
class ConvertConfig:
    """What to convert, where to, and what neither the file nor the training YAML tells of the model."""

    checkpoint: Path
    out: Path
    tokenizer: str | None = None
    training: Path | None = None
    num_attention_heads: int | None = None
    max_position_embeddings: int | None = None
    global_attn_every_n_layers: int | None = None
    local_attention: int | None = None
    global_rope_theta: float | None = None
    local_rope_theta: float | None = None
    norm_eps: float | None = None


_OPTIONS = tuple(field.name for field in fields(ConvertConfig))[4:]


def run(config: ConvertConfig) -> Path:
    """Write a folder that this package and others load, once it computes what the weights say.

    Raises: InputError if the file is damaged or no ModernBERT, or if something is left to guess.
    """
    path = config.checkpoint
    if config.out.suffix == _SAFETENSORS:
        return _as_they_are(config)
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
    kinds = sorted({str(tensor.dtype)[6:] for tensor in weights.values()})
    if len(kinds) > 1:
        raise InputError(f"{path}: holds {' and '.join(kinds)}, expected one precision")
    model = model_of(described, weights, path)
    longest = model.max_length
    save_folder(
        config.out, model, None if tokenizer is None else lambda partial: tokenizer.save_folder(partial, longest)
    )
    print(f"{config.out}: {sum(each.numel() for each in model.parameters()):,} parameters in {kinds[0]}")
    if tokenizer is None:
        print(f"{config.out}: has no tokenizer; --tokenizer FOLDER would have put one there")
    return config.out


def _as_they_are(config: ConvertConfig) -> Path:
    """Write the tensors of a file by the names they have, such as those of a module beside a model."""
    with open_torch_file(config.checkpoint) as file:
        tensors = file.tensors(named_tensors(file.content, str(config.checkpoint)))
    if config.out.exists():
        raise InputError(f"{config.out}: exists already, expected a new file")
    with new_file(config.out) as partial:
        write_tensors(partial, tensors, metadata={"format": "pt"})
    print(f"{config.out}: {len(tensors)} tensors")
    return config.out


def _published(config: ConvertConfig, settings: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Take a config of the published form as it is; there is nothing left to say beside it."""
    said = [name for name in ("training", *_OPTIONS) if getattr(config, name) is not None]
    if said:
        raise InputError(f"{said[0]}: is told by {where} already, expected no option")
    print(f"the shape: {where}")
    return settings


def _described(
    config: ConvertConfig, found: Found, settings: Mapping[str, Any] | None, where: str, tokenizer: Tokenizer | None
) -> Mapping[str, Any]:
    """Put together the config of a FlexBERT, and say of each field who told it."""
    path = config.checkpoint
    sources = [("the weights", fields_of_shapes(found.tensors, str(path)))]
    if settings is not None:
        sources.append((where, fields_of_settings(settings, where)))
    if config.training is not None:
        sources.append((str(config.training), _trained_with(config.training)))
    told = _told(config, sources)
    shape = ModelConfig.from_fields({name: value for name, (value, _) in told.items()} | _ids_of(tokenizer))
    if tokenizer is not None and tokenizer.vocab_size > shape.vocab_size:
        raise InputError(
            f"tokenizer: has {tokenizer.vocab_size:,} entries, more than the {shape.vocab_size:,} of {path}"
        )
    for name, (value, by) in told.items():
        print(f"{name}: {value} ({by})")
    if len(sources) == 1:
        print("activation, norm and rotation: those of the published models, for nothing says otherwise")
    has_head = any(name.startswith("head.") for name in found.tensors)
    return config_to_json(shape, "ModernBertForMaskedLM" if has_head else "ModernBertModel", "float32")


def _told(config: ConvertConfig, sources: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, tuple[Any, str]]:
    """Return each field with who told it: all who do must agree, or an option settles it. Nobody is an error."""
    options = {name: value for name in _OPTIONS if (value := getattr(config, name)) is not None}
    told: dict[str, tuple[Any, str]] = {}
    for source, said in sources:
        for name, value in said.items():
            known, by = told.setdefault(name, (value, source))
            if known != value and name not in options:
                settled = f"; --{name.replace('_', '-')} settles it" if name in _OPTIONS else ""
                raise InputError(f"{source}: {name} is {str(value)[:60]}, but {known} by {by}{settled}")
    told |= {name: (value, "as asked") for name, value in options.items()}
    dropout = ModelConfig.attention_output_dropout
    told.setdefault("attention_output_dropout", (dropout, "as published; for training alone"))
    missing = [name for name in _OPTIONS if name not in told]
    if missing:
        wanted = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise InputError(
            f"{config.checkpoint}: does not tell {', '.join(missing)}; expected --config TRAINING.yaml, or {wanted}"
        )
    return told


def _trained_with(path: Path) -> dict[str, Any]:
    """Read what a training YAML of the reference repository says of the model."""
    settings = value_of("model.model_config", path, ())
    if not isinstance(settings, dict):
        raise InputError(f"{path}: has no model.model_config, expected a training YAML of the reference repository")
    longest = value_of("max_seq_len", path, ())
    return fields_of_settings(settings, str(path)) | ({} if longest is None else {"max_position_embeddings": longest})


def _ids_of(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Return the ids of the roles; FlexBERT's settings have those of another tokenizer, bert-base-uncased."""
    if tokenizer is None:
        return {"pad_token_id": None, "cls_token_id": None, "sep_token_id": None}
    return {"pad_token_id": tokenizer.pad_id, "cls_token_id": tokenizer.cls_id, "sep_token_id": tokenizer.sep_id}


def _tokenizer_of(config: ConvertConfig, found: Found) -> Tokenizer | None:
    """Return the tokenizer that was asked for, else that in the checkpoint, else that beside it; and say which."""
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
