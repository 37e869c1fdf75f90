"""The inputs of a pretraining run: tokenizer, shards and the model to start from, opened and checked."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from modernbert.data.corpus import find_files
from modernbert.data.prepare import find_changed_file
from modernbert.data.prepare_options import PrepareConfig, SplitDocuments
from modernbert.data.shards import Shards
from modernbert.devices import choose_precision
from modernbert.engines.engine import Engine
from modernbert.engines.registry import choose_engine
from modernbert.errors import InputError
from modernbert.files import sha256_of
from modernbert.hub_download import find_tokenizer
from modernbert.model.config import ModelConfig
from modernbert.tokenizer.tokenizer import Tokenizer
from modernbert.training.distributed import World
from modernbert.training.initial_model import TOKENIZER_OF_RUN, InitialModel, open_initial_model, shape_of
from modernbert.training.pretraining_config import PretrainConfig
from modernbert.training.pretraining_model import model_config
from modernbert.training.run_checkpoint import Checkpoint, latest
from modernbert.training.run_folder import check_run_folder

__all__ = ["PretrainInputs", "add_text_shards", "check_digests", "open_inputs", "preparation"]

SHARDS_OF_RUN = "shards"
"""Folder in the run folder, with the shards of the text that the run tokenized."""


@dataclass(frozen=True)
class PretrainInputs:
    """The opened and checked inputs of a run."""

    tokenizer: Tokenizer
    sources: dict[str, Shards]
    heldout: dict[str, Shards]
    model: ModelConfig
    start: InitialModel | None
    device: torch.device
    dtype: torch.dtype
    engine: Engine
    digests: dict[str, str]
    """SHA-256 of the index of each folder of shards; a resumed run must find the same."""
    needs_text: bool
    """Whether text is to be tokenized; a run with a checkpoint has its shards."""


def open_inputs(config: PretrainConfig, world: World, device: torch.device) -> PretrainInputs:
    """Check a config and open its inputs; writes nothing."""
    dtype = choose_precision(config.dtype, device, "dtype")
    out = Path(config.output)
    check_run_folder(out, config)
    own = latest(out / "checkpoints", clean=False)
    start = None
    # A run with checkpoints does not need the initial model, which may have been deleted.
    if config.init_from is not None and (own is None or "model" not in own.state):
        start = open_initial_model(str(config.init_from))
    tokenizer = _open_tokenizer(config, start)
    shape: ModelConfig | None = None
    if start is not None:
        _check_start(config, tokenizer, start)
        shape = start.config
    elif config.init_from is not None and own is not None:
        shape = shape_of(own)
    needs_text = bool(config.text) and own is None and not (out / "model").exists()
    if needs_text:
        find_files(config.text, text_field=config.text_field, on_error=config.on_error)
    elif config.text and world.is_main:
        _check_text(config)
    model = model_config(config, tokenizer, shape)
    engine = choose_engine(config.engine, device, dtype, model)
    inputs = PretrainInputs(tokenizer, {}, {}, model, start, device, dtype, engine, {}, needs_text)
    inputs = _add_shards(config, inputs, world, config.data.sources, config.data.heldout)
    check_digests(own, inputs.digests, with_text=False)
    return inputs


def _check_text(config: PretrainConfig) -> None:
    """Refuse to continue if text has changed since the run tokenized it; text that was deleted is not needed."""
    out, files, complete = Path(config.output), [], True
    for source in config.text:
        try:
            files += find_files([source], text_field=config.text_field, on_error=config.on_error)
        except InputError as error:
            print(f"text: {error}; the run has its shards, and does not need it")
            complete = False
    if (out / SHARDS_OF_RUN).is_dir() and (changed := find_changed_file(out / SHARDS_OF_RUN, files, complete=complete)):
        raise InputError(
            f"{changed} since {out} tokenized its text; undo that, or start a run with another --output "
            f"(and `init_from={out}`, to continue from this one)"
        )


def check_digests(checkpoint: Checkpoint | None, found: Mapping[str, str], *, with_text: bool = True) -> None:
    """Refuse shards whose content differs from the shards that a checkpoint was trained on."""
    for key, digest in checkpoint.state.get("shards", {}).items() if checkpoint else ():
        if found.get(key) != digest and (with_text or key in found):
            raise InputError(
                f"{key}: found other shards than this run began with (sha256 of index.json {str(found.get(key))[:16]}, "
                f"expected {digest[:16]}); choose another `output` for other data"
            )


def preparation(config: PretrainConfig, tokenizer: str) -> PrepareConfig:
    """Return the options of `prepare` for the text of a run."""
    options = {each.name: getattr(config, each.name) for each in fields(SplitDocuments)}
    return PrepareConfig(input=config.text, tokenizer=tokenizer, output=Path(config.output) / SHARDS_OF_RUN, **options)


def add_text_shards(config: PretrainConfig, inputs: PretrainInputs, world: World) -> PretrainInputs:
    """Open the shards of the text that the run folder has."""
    shards = Path(config.output) / SHARDS_OF_RUN
    heldout = {"text": shards / "heldout"} if config.heldout else {}
    return _add_shards(config, inputs, world, {"text": shards / "train"}, heldout)


def _add_shards(
    config: PretrainConfig,
    inputs: PretrainInputs,
    world: World,
    sources: Mapping[str, Path | str],
    heldout: Mapping[str, Path | str],
) -> PretrainInputs:
    """Open folders of shards, and add them to the inputs."""
    opened: dict[str, dict[str, Shards]] = {"sources": dict(inputs.sources), "heldout": dict(inputs.heldout)}
    digests = dict(inputs.digests)
    for group, folders in (("sources", sources), ("heldout", heldout)):
        for name, folder in folders.items():
            key = f"data.{group}.{name}"
            shards = Shards.open(Path(folder), verify=config.data.verify and world.is_main)
            if shards.fingerprint != inputs.tokenizer.fingerprint:
                named = config.tokenizer or config.init_from
                raise InputError(
                    f"{key}: {folder} was made with tokenizer {shards.fingerprint}, but {named} is "
                    f"{inputs.tokenizer.fingerprint}; prepare the text again with --tokenizer {named}"
                )
            opened[group][name] = shards
            digests[key] = sha256_of(Path(folder) / "index.json")
    return replace(inputs, sources=opened["sources"], heldout=opened["heldout"], digests=digests)


def _open_tokenizer(config: PretrainConfig, start: InitialModel | None) -> Tokenizer:
    """Return the tokenizer of the config, or that of the model to start from, of which a run folder has a copy."""
    if config.tokenizer is not None:
        return Tokenizer.load(find_tokenizer(config.tokenizer))
    return Tokenizer.load(Path(config.output) / TOKENIZER_OF_RUN) if start is None else start.tokenizer


def _check_start(config: PretrainConfig, tokenizer: Tokenizer, start: InitialModel) -> None:
    if start.tokenizer.fingerprint != tokenizer.fingerprint and not config.new_vocabulary:
        raise InputError(
            f"init_from: {config.init_from} has tokenizer {start.tokenizer.fingerprint}, but {config.tokenizer} is "
            f"{tokenizer.fingerprint}; pass `new_vocabulary=True` to give the model the new one"
        )
    if config.init_optimizer and not start.optimizer:
        raise InputError(f"init_optimizer: {config.init_from} has no optimizer state, expected a checkpoint or a run")
