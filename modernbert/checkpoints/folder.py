"""Model folders: `ModelFolder` opens one, `load_model` and `save_folder` read and write a ModernBERT.

Nothing in a folder is executed or unpickled: only JSON and safetensors are read, and only from the folder itself.
"""

import copy
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modernbert.batch import Batch
from modernbert.checkpoints.colbert_format import LINEAR, is_stanford
from modernbert.checkpoints.hf_config import check_head, config_from_json, config_to_json, unused_dropouts
from modernbert.checkpoints.projection import load_projection
from modernbert.checkpoints.safetensors_files import WEIGHTS, check_tensor, is_of_adapter, read_weights, refuse_adapters
from modernbert.checkpoints.sentence_transformers_format import (
    Kept,
    check_no_default_prompt,
    load_kept,
    load_vectors,
    max_length_of,
    unused_head_of,
    write_vectors,
)
from modernbert.checkpoints.sentence_transformers_modules import OURS_LISTED
from modernbert.checkpoints.transformers_models import (
    family_of,
    load_foreign_encoder,
    longest_of,
    save_foreign,
    vocabulary_of,
)
from modernbert.engines.engine import Engine
from modernbert.engines.registry import PORTABLE
from modernbert.errors import CheckFailed, InputError, shown
from modernbert.files import new_folder, sha256_of, write_tensors
from modernbert.hub_download import MODEL_FILES, find_folder
from modernbert.model.config import ModelConfig
from modernbert.model.embedder import EmbeddingConfig
from modernbert.model.encoder import Encoder
from modernbert.model.heads import Classifier, MaskedLM
from modernbert.model.interface import MODERNBERT, Model
from modernbert.model.meta_device import on_meta
from modernbert.safe_files import FolderFiles, check_file, is_one_line, read_json
from modernbert.tasks.task import ClassifierTask, classifier_task, known_tasks, task_of_config
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = [
    "ModelFolder",
    "digest_of",
    "load_config",
    "load_model",
    "model_of",
    "save_folder",
]

logger = logging.getLogger("modernbert")

# The files that decide a text's vectors: length limits, pooling and prompts, too.
_DECIDING = (
    "*.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "modules.json", OURS_LISTED, "sentence_bert_config.json",
    "config_sentence_transformers.json", "artifact.metadata",
)  # fmt: skip
_MASKED_LM_HEAD = ("head.dense.weight", "head.norm.weight", "decoder.bias")
_CLASSIFIER_HEAD = ("head.dense.weight", "head.norm.weight", "classifier.weight", "classifier.bias")
_MOST_LABELS = 2**20
# Our keys of config.json, which other libraries ignore, and keys that sentence-transformers writes for a CrossEncoder.
_PAIRS = "text_pairs"
_TASK = "modernbert_task"
_OF_CROSS_ENCODERS = ("sentence_transformers", "sbert_ce_default_activation_function")
# Prefixes of the weights of heads that are not loaded.
_OTHER_HEADS = ("classifier.", "head.", "decoder.", "score.", "dense.", "drop.")


class ModelFolder:
    """An opened model folder; each file is read and checked once, at its first use.

    Attributes:
        path: The folder.
        files: Its JSON files.
        family: The `model_type` of config.json; `modernbert` is computed by this package, others by transformers.
    """

    def __init__(self, path: Path) -> None:
        """Open a local folder.

        Raises: InputError if there is no config.json, its family is not supported, or the folder has an adapter.
        """
        self.path = path
        self.files = FolderFiles(path)
        self.family = family_of(self.files)

    @staticmethod
    def open(
        name: str | Path,
        revision: str | None = None,
        *,
        token: str | None = None,
        offline: bool = False,
        patterns: Sequence[str] = MODEL_FILES,
    ) -> "ModelFolder":
        """Open a local folder, or a model of the Hugging Face Hub by name; see `hub_download.find_folder`.

        Raises: InputError if there is neither, or the folder is not a model of a supported family.
        """
        return ModelFolder(find_folder(name, revision, token=token, offline=offline, files=patterns))

    @property
    def is_modernbert(self) -> bool:
        """Whether this package computes the model itself."""
        return self.family == MODERNBERT

    @cached_property
    def config(self) -> ModelConfig:
        """The shape of a ModernBERT.

        Raises: InputError naming the file and the key, or the family of another model.
        """
        if not self.is_modernbert:
            raise InputError(f"{self.path}: is a {self.family}, expected a {MODERNBERT}")
        return load_config(self.files)

    @cached_property
    def vocab_size(self) -> int:
        """Number of token ids that the model has embeddings for."""
        return self.config.vocab_size if self.is_modernbert else vocabulary_of(self.files)

    @cached_property
    def num_positions(self) -> int:
        """The most tokens that the model computes."""
        return self.config.max_position_embeddings if self.is_modernbert else longest_of(self.files)

    @cached_property
    def max_length(self) -> int:
        """The most tokens of a text: `num_positions`, or fewer if the folder has a lower limit."""
        return min(max_length_of(self.files) or self.num_positions, self.num_positions)

    @cached_property
    def embedding_config(self) -> EmbeddingConfig:
        """How texts become vectors.

        Raises: InputError naming the file, if it is not readable or has an unsupported setting.
        """
        return load_vectors(self.files)

    @cached_property
    def kept(self) -> Kept:
        """The other settings of sentence-transformers, such as prompts by name."""
        return load_kept(self.files)

    @cached_property
    def unused_head(self) -> str | None:
        """The head with labels that config.json names, if no file says how texts become vectors."""
        return unused_head_of(self.files)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, checked to fit the model's vocabulary."""
        return Tokenizer.load(self.path, self.vocab_size)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the files that decide the model's outputs."""
        return digest_of(self.path)

    @cached_property
    def weights_digest(self) -> str:
        """The SHA-256 of the weights."""
        return digest_of(self.path, ["*.safetensors"])

    def load_model(self, *, dtype: torch.dtype | None = None, engine: Engine = PORTABLE) -> Model:
        """Load a ModernBERT with its head, or an encoder of another family; `dtype=None` keeps the file's precision.

        Raises: InputError naming the file and the tensor, if weights are missing or of the wrong shape.
        """
        if self.is_modernbert:
            return load_model(self.files, dtype=dtype, engine=engine)
        tokenizer = self.tokenizer
        return load_foreign_encoder(self.files, tokenizer.pad_id, tokenizer.sep_id, dtype or torch.float32)

    def load_projection(self, hidden_size: int) -> nn.Linear | None:
        """Load the linear layer behind the encoder, if the folder has one.

        Raises: InputError naming the file, if the layer is not linear, not readable, or of another width.
        """
        return load_projection(self.files, hidden_size)

    def check_no_default_prompt(self) -> None:
        """Check that sentence-transformers puts no prompt before the texts that a fine-tuned head scores.

        Raises: InputError for a default prompt.
        """
        check_no_default_prompt(self.files)

    @staticmethod
    def save(
        path: Path,
        model: Model,
        tokenizer: Tokenizer,
        max_length: int,
        *,
        vectors: EmbeddingConfig | None = None,
        projection: nn.Linear | None = None,
        kept: Kept | None = None,
        source: Path | None = None,
        replace: bool = False,
    ) -> None:
        """Write a folder that this package, `transformers` and sentence-transformers load unedited.

        Args:
            path: The folder to write.
            model: A model of this package or of another family.
            tokenizer: Its tokenizer.
            max_length: The most tokens of a text, which the folder will say.
            vectors: How texts become vectors; None writes no files of sentence-transformers.
            projection: The linear layer behind the encoder.
            kept: The other settings of sentence-transformers.
            source: The folder that a model of another family was loaded from, for its tokenizer files.
            replace: Whether an existing folder is replaced.

        Raises: InputError if the folder exists and may not be replaced, or the disk is full. CheckFailed if the outputs
            of the written folder differ from the model's; the weights are then kept, see `files.new_folder`.
        """

        def write_beside(partial: Path) -> None:
            if model.family == MODERNBERT:
                tokenizer.save_folder(partial, max_length)
            if vectors is not None:
                write_vectors(partial, vectors, projection, max_length, kept)

        if model.family == MODERNBERT:
            save_folder(path, model, write_beside, replace=replace)
        else:
            assert source is not None, "models of other families keep their tokenizer files"
            save_foreign(path, model, source, write_beside)


def digest_of(name: str | Path, files: Sequence[str] = _DECIDING) -> str:
    """Return the SHA-256 of the files that decide a model's outputs.

    Raises: InputError if there is no such model.
    """
    folder = find_folder(name)
    found = sorted(path for pattern in files for path in folder.rglob(pattern))
    for path in found:
        check_file(path)
    named = (f"{path.relative_to(folder).as_posix()} {sha256_of(path)}" for path in found)
    return hashlib.sha256("\n".join(named).encode()).hexdigest()


def load_config(folder: Path | FolderFiles) -> ModelConfig:
    """Read the shape of a ModernBERT from config.json.

    Raises: InputError naming the file and the key, or the adapter that the folder has.
    """
    folder = FolderFiles.of(folder)
    refuse_adapters(folder.path)
    return config_from_json(folder.read_json("config.json"), str(folder / "config.json"))


def load_model(
    folder: Path | FolderFiles, *, dtype: torch.dtype | None = None, engine: Engine = PORTABLE
) -> MaskedLM | Classifier | Encoder:
    """Load the ModernBERT of a folder with the head that the folder has, else an `Encoder`.

    `dtype=None` keeps the precision of the file.

    Raises: InputError naming the file and the tensor, if weights are missing, of the wrong shape, or not safetensors.
    """
    folder = FolderFiles.of(folder)
    refuse_adapters(folder.path)
    found = folder.read_json("config.json")
    for line in unused_dropouts(found, str(folder / "config.json")):
        logger.warning("%s", line)
    return model_of(found, read_weights(folder.path), folder.path, dtype=dtype, engine=engine)


def model_of(
    found: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    engine: Engine = PORTABLE,
) -> MaskedLM | Classifier | Encoder:
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
    expected = {name.removeprefix("model."): tensor for name, tensor in _stored_state(model).items()}
    _check_names_and_shapes(expected, weights, folder, has_head=model.task is not None)
    for name in expected:
        check_tensor(folder, name, weights[name])
    try:
        state = {name: weights[name.removeprefix("model.")].to(dtype) for name in _stored_state(model)}
    except RuntimeError as error:
        raise InputError(f"{folder}: not enough memory for the weights ({error})") from None
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
    """Write a folder that this package, `transformers` and other libraries load unedited.

    The folder is read back, and its outputs are compared with the model's, before it is renamed into place.
    `write_tokenizer` is called with the temporary folder, to add the tokenizer's files.

    Raises: InputError if the folder exists and may not be replaced, or the disk is full. CheckFailed if the outputs
        differ; the weights are then kept, see `files.new_folder`.
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
    """Return weights by their names in the encoder, with or without the prefix `model.` in the file."""
    bare = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    if len(bare) < len(weights):
        twice = next(name for name in bare if name in weights and f"model.{name}" in weights)
        raise InputError(f"{folder}: the weights have {twice} and model.{twice}, expected one of them")
    return bare


def _build(
    config: ModelConfig, found: Mapping[str, Any], weights: Mapping[str, Tensor], engine: Engine, folder: Path
) -> MaskedLM | Classifier | Encoder:
    """Build the module for a folder's weights."""
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
    """Return whether a folder's head scores pairs of texts: by our key in config.json, or as a CrossEncoder.

    Raises: InputError if our key has another type.
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
        if not is_one_line(label):  # labels are printed unescaped
            raise InputError(f"{folder / 'config.json'}: id2label has {label!r}, expected text of one line")
    if len(set(texts)) < num_labels:  # outputs are keyed by label
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
    """Return the tensors to write: all but the tied decoder weight."""
    return {name: tensor for name, tensor in model.state_dict().items() if name != "decoder.weight"}


def _verify(written: Path, model: MaskedLM | Classifier | Encoder, folder: Path) -> None:
    """Compare a written folder with its model, by their weights and by their outputs on the CPU."""
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
    # The last bit of a product with one column depends on the alignment of its weights. Terms of a sum can cancel, so
    # the bound is relative to the terms, not to the sum.
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
