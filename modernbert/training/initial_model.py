"""The model that a run starts from: a model folder, a name on the hub, a checkpoint, or an earlier run."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from torch import Tensor

from modernbert.checkpoints.folder import ModelFolder
from modernbert.config_files import resolve
from modernbert.errors import InputError
from modernbert.hub_download import find_folder, find_tokenizer
from modernbert.model.config import ModelConfig
from modernbert.model.interface import FILL_MASK
from modernbert.tokenizer.tokenizer import Tokenizer
from modernbert.training.pretraining_config import PretrainConfig
from modernbert.training.run_checkpoint import Checkpoint, latest, open_checkpoint

__all__ = ["TOKENIZER_OF_RUN", "InitialModel", "open_initial_model", "shape_of"]

# A run's copy of the initial model's tokenizer, which may be gone when the run resumes.
TOKENIZER_OF_RUN = "tokenizer"


@dataclass(frozen=True)
class InitialModel:
    """An initial model: config, tokenizer, weights by parameter name, and the optimizer's state, if any."""

    config: ModelConfig
    tokenizer: Tokenizer
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]


def open_initial_model(name: str) -> InitialModel:
    """Open an initial model; from an earlier run, the newest checkpoint, or the exported model.

    Raises: InputError if there is none, it is damaged, or it has no masked-LM head.
    """
    folder = find_folder(name)
    if not (folder / "config.json").exists():
        if (folder / "manifest.json").exists():
            return _of_checkpoint(open_checkpoint(folder))
        if checkpoint := latest(folder / "checkpoints", clean=False):
            return _of_checkpoint(checkpoint)
        if (folder / "model").is_dir():
            folder = folder / "model"  # the checkpoints were deleted
        elif (folder / "checkpoints").is_dir():
            raise InputError(f"{folder}: this run has no checkpoint yet")
    opened = ModelFolder(folder)
    config = opened.config  # refuses another family
    model = opened.load_model()
    if model.task != FILL_MASK:
        raise InputError(f"{folder}: has no masked-language-model head (head.dense, head.norm, decoder), expected one")
    weights = {name: parameter.detach().float() for name, parameter in model.named_parameters()}
    return InitialModel(config, opened.tokenizer, weights, {})


def _of_checkpoint(checkpoint: Checkpoint) -> InitialModel:
    return InitialModel(
        config=shape_of(checkpoint),
        tokenizer=_tokenizer_of(checkpoint),
        weights=checkpoint.tensors("model"),
        optimizer=checkpoint.tensors("optimizer"),
    )


def shape_of(checkpoint: Checkpoint) -> ModelConfig:
    """Return the config of the model in a checkpoint, in the phase that wrote it.

    Raises: InputError if the checkpoint has no model.
    """
    known = {each.name for each in fields(ModelConfig)}
    found = checkpoint.state.get("model", {})
    if not found or not set(found) <= known:
        raise InputError(
            f"{checkpoint.folder}: is a checkpoint of fine-tuning, expected one of pretraining, or a model folder"
        )
    return ModelConfig(**found)


def _tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """Load the tokenizer of the run's config or exported model that has the fingerprint in the checkpoint.

    A relative path in the config can resolve to another folder, and the tokenizer in it can have changed.
    """
    run = checkpoint.folder.absolute().parent.parent
    path = run / "config.yaml"
    if not path.exists():
        raise InputError(
            f"{checkpoint.folder}: found no {path}, expected it in the folder of its run, for its tokenizer"
        )
    named = resolve(PretrainConfig, {}, path).tokenizer
    expected = checkpoint.state.get("tokenizer")  # missing in older checkpoints
    faults = []
    for place in (run / TOKENIZER_OF_RUN if named is None else named, run / "model"):
        try:
            tokenizer = Tokenizer.load(find_tokenizer(str(place)))
        except InputError as error:
            faults.append(str(error))
            continue
        if expected in (None, tokenizer.fingerprint):
            return tokenizer
        faults.append(f"{place} is {tokenizer.fingerprint}, expected {expected}, which the checkpoint was trained with")
    raise InputError(f"{path}: tokenizer: {faults[0]}")
