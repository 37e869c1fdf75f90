"""What a run starts from when it does not start from noise.

In: a model folder, a name on the hub, a checkpoint, or the folder of an earlier run. Out: its shape, its weights, and
where there are any the optimizer's moments. A file of its own because all four are read in the same way by whoever goes
on with a model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from torch import Tensor

from modernbert.checkpoints.folder import load_model
from modernbert.config_files import load
from modernbert.errors import InputError
from modernbert.hub_download import find_folder, find_tokenizer
from modernbert.model.config import ModelConfig
from modernbert.model.interface import FILL_MASK
from modernbert.tokenizer.tokenizer import Tokenizer
from modernbert.training.pretraining_config import PretrainConfig
from modernbert.training.run_checkpoint import Checkpoint, latest, open_checkpoint

__all__ = ["TOKENIZER_OF_RUN", "Start", "find_start", "shape_of"]

# The copy that a run keeps of the tokenizer of the model it started from, which may be gone when the run goes on.
TOKENIZER_OF_RUN = "tokenizer"


@dataclass(frozen=True)
class Start:
    """Hold a model to go on from: its shape, tokenizer, weights by parameter name, and optimizer state or nothing."""

    config: ModelConfig
    tokenizer: Tokenizer
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]


def find_start(name: str) -> Start:
    """Open what is called `name`; of an earlier run, its newest checkpoint, or its model if that alone was kept.

    Raises: InputError if there is no such thing, it is damaged, or it has no masked-language-model head.
    """
    folder = find_folder(name)
    if not (folder / "config.json").exists():
        if (folder / "manifest.json").exists():
            return _of_checkpoint(open_checkpoint(folder))
        if checkpoint := latest(folder / "checkpoints", clean=False):
            return _of_checkpoint(checkpoint)
        if (folder / "model").is_dir():
            folder = folder / "model"  # all that was kept of a run
        elif (folder / "checkpoints").is_dir():
            raise InputError(f"{folder}: this run has no checkpoint yet")
    model = load_model(folder)
    if model.task != FILL_MASK:
        raise InputError(f"{folder}: has no masked-language-model head (head.dense, head.norm, decoder), expected one")
    weights = {name: parameter.detach().float() for name, parameter in model.named_parameters()}
    config = model.encoder.config
    return Start(config, Tokenizer.load(folder, config.vocab_size), weights, {})


def _of_checkpoint(checkpoint: Checkpoint) -> Start:
    return Start(
        config=shape_of(checkpoint),
        tokenizer=_tokenizer_of(checkpoint),
        weights=checkpoint.tensors("model"),
        optimizer=checkpoint.tensors("optimizer"),
    )


def shape_of(checkpoint: Checkpoint) -> ModelConfig:
    """Return the shape of the model in a checkpoint, as it was in the phase that wrote it.

    Raises: InputError if it is a checkpoint of something else.
    """
    known = {each.name for each in fields(ModelConfig)}
    found = checkpoint.state.get("model", {})
    if not found or not set(found) <= known:
        raise InputError(f"{checkpoint.folder}: state.json does not describe a model")
    return ModelConfig(**found)


def _tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """Load what the config of the run names, or the run's model holds: whichever the checkpoint was trained with.

    A path in a config means another folder when read from elsewhere, and a tokenizer may be made anew in its place.
    """
    run = checkpoint.folder.absolute().parent.parent
    path = run / "config.yaml"
    if not path.exists():
        raise InputError(
            f"{checkpoint.folder}: found no {path}, expected it in the folder of its run, for its tokenizer"
        )
    named = load(PretrainConfig, path).tokenizer
    expected = checkpoint.state.get("tokenizer")  # older checkpoints do not say
    faults = []
    for place in (run / TOKENIZER_OF_RUN if named is None else named, run / "model"):
        try:
            tokenizer = Tokenizer.load(find_tokenizer(str(place)))
        except InputError as error:
            faults.append(str(error))
            continue
        if expected in (None, tokenizer.fingerprint):
            return tokenizer
        faults.append(f"found {place} to be {tokenizer.fingerprint}, expected {expected}, which the run learned with")
    raise InputError(f"{path}: tokenizer: {faults[0]}")
