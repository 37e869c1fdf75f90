"""`ModelFolder`: opens, validates and writes a model folder.

Nothing in a folder is executed or unpickled: only JSON and safetensors are read, and only from the folder itself.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from modernbert.checkpoints.hf_config import config_from_json, is_int8_json
from modernbert.checkpoints.model_card import CARD, ModelCard, ModelFacts
from modernbert.checkpoints.modernbert_format import load_modernbert, verify_written, write_model
from modernbert.checkpoints.sentence_transformers_format import (
    SentenceTransformersSettings,
    check_no_default_prompt,
    max_length_of,
    read_embedding_config,
    read_settings,
    unused_head_of,
    write_embedding_config,
)
from modernbert.checkpoints.sentence_transformers_modules import OURS_LISTED, load_projection
from modernbert.checkpoints.transformers_models import (
    family_of,
    load_foreign_classifier,
    load_foreign_encoder,
    load_foreign_model,
    num_positions_of,
    vocabulary_of,
    write_foreign,
)
from modernbert.engines.engine import Engine
from modernbert.engines.registry import PORTABLE
from modernbert.errors import CheckFailed, InputError
from modernbert.files import new_folder, sha256_of
from modernbert.hub_download import MODEL_FILES, at_revision, find_folder
from modernbert.model.config import ModelConfig
from modernbert.model.embedding_config import EmbeddingConfig
from modernbert.model.interface import MODERNBERT, Model
from modernbert.safe_files import FolderFiles, check_file
from modernbert.tasks.task import start_classifier
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["ModelFolder"]

# The files that decide a text's vectors: length limits, pooling and prompts, too.
_DECIDING = (
    "*.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "modules.json", OURS_LISTED, "sentence_bert_config.json",
    "config_sentence_transformers.json", "artifact.metadata",
)  # fmt: skip


class ModelFolder:
    """An opened model folder; each file is read and checked once, at its first use.

    Attributes:
        path: The folder.
        name: The name that it was opened by: a path, or a model on the Hub.
        files: Its JSON files.
        family: The `model_type` of config.json; `modernbert` is computed by this package, others by transformers.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        """Open a local folder.

        Raises: InputError if there is no config.json, its family is not supported, or the folder has an adapter; for a
            run folder, the error names its model.
        """
        self.path, self.name = path, name or str(path)
        if (path / "config.yaml").is_file() and not (path / "config.json").exists():
            has_model = (path / "model" / "config.json").is_file()
            fix = f"; use {path / 'model'}" if has_model else " that has no model yet"
            raise InputError(f"{path}: is a run folder{fix}")
        self.files = FolderFiles(path)
        self.family = family_of(self.files)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_local(self) -> bool:
        """Whether it was named as a folder, not as a model on the Hub."""
        return self.path == Path(self.name)

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
        path = find_folder(name, revision, token=token, offline=offline, files=patterns)
        return ModelFolder(path, at_revision(name, revision))

    @property
    def is_modernbert(self) -> bool:
        """Whether this package computes the model itself."""
        return self.family == MODERNBERT

    @cached_property
    def config(self) -> ModelConfig:
        """The shape of a ModernBERT.

        Raises: InputError naming the file and the key, such as the family of another model.
        """
        return config_from_json(self.files.read_json("config.json"), str(self.files / "config.json"))

    @cached_property
    def vocab_size(self) -> int:
        """Number of token ids that the model has embeddings for."""
        return self.config.vocab_size if self.is_modernbert else vocabulary_of(self.files)

    @cached_property
    def num_positions(self) -> int:
        """The most tokens that the model computes."""
        return self.config.max_position_embeddings if self.is_modernbert else num_positions_of(self.files)

    @cached_property
    def max_length(self) -> int:
        """The most tokens of a text: `num_positions`, or fewer if the folder has a lower limit."""
        return min(max_length_of(self.files) or self.num_positions, self.num_positions)

    @cached_property
    def embedding_config(self) -> EmbeddingConfig:
        """How texts become vectors.

        Raises: InputError naming the file, if it is not readable or has an unsupported setting.
        """
        return read_embedding_config(self.files)

    @cached_property
    def settings(self) -> SentenceTransformersSettings:
        """The other settings of sentence-transformers, such as prompts by name."""
        return read_settings(self.files)

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
        return self._digest_of(_DECIDING)

    @cached_property
    def weights_digest(self) -> str:
        """The SHA-256 of the weights."""
        return self._digest_of(["*.safetensors"])

    def _digest_of(self, patterns: Sequence[str]) -> str:
        found = sorted(path for pattern in patterns for path in self.path.rglob(pattern))
        for path in found:
            check_file(path)
        named = (f"{path.relative_to(self.path).as_posix()} {sha256_of(path)}" for path in found)
        return hashlib.sha256("\n".join(named).encode()).hexdigest()

    @cached_property
    def is_int8(self) -> bool:
        """Whether the layers of the model are int8."""
        return self.is_modernbert and is_int8_json(self.files.read_json("config.json"))

    def check_not_int8(self) -> None:
        """Check that the model is not for inference only.

        Raises: InputError for int8 layers.
        """
        if self.is_int8:
            raise InputError(f"{self.path}: has int8 layers, for inference only; use the model it was quantized from")

    def load_model(
        self, *, dtype: torch.dtype | None = None, engine: Engine = PORTABLE, takes_int8: bool = False
    ) -> Model:
        """Load a model with its head; `dtype=None` keeps the file's precision of a ModernBERT.

        Raises: InputError naming the file and the tensor, if weights are missing or of the wrong shape; for int8
            layers, unless the caller takes them.
        """
        if not takes_int8:
            self.check_not_int8()
        if self.is_modernbert:
            return load_modernbert(self.files, dtype=dtype, engine=engine)
        load = load_foreign_encoder if self.unused_head is None else load_foreign_model
        return load(self.files, self.tokenizer.pad_id, self.tokenizer.sep_id, dtype or torch.float32)

    def load_classifier(self, task: str, labels: Sequence[str], seed: int, *, engine: Engine = PORTABLE) -> Model:
        """Load a model to fine-tune, in float32.

        Its last layer is drawn from the seed, unless the folder has one for the same task and labels.

        Raises: InputError for an unknown task, one that the family does not have, or labels that are not different.
        """
        if self.is_modernbert:
            return start_classifier(self.load_model(dtype=torch.float32, engine=engine), task, labels, seed)
        tokenizer = self.tokenizer
        return load_foreign_classifier(self.files, task, labels, seed, tokenizer.pad_id, tokenizer.sep_id)

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
        tokenizer: Tokenizer | None = None,
        max_length: int | None = None,
        *,
        vectors: EmbeddingConfig | None = None,
        projection: nn.Linear | None = None,
        settings: SentenceTransformersSettings | None = None,
        source: Path | None = None,
        card: ModelCard | bytes | None = None,
        replace: bool = False,
        kept: Path | None = None,
    ) -> ModelFacts:
        """Write a folder that this package, `transformers` and sentence-transformers load unedited.

        A ModernBERT is read back, and its outputs are compared with the model's, before the folder is renamed into
        place.

        Args:
            path: The folder to write.
            model: A model of this package or of another family.
            tokenizer: Its tokenizer; None writes none.
            max_length: The most tokens of a text, which the folder will say; None for the model's limit.
            vectors: How texts become vectors; None writes no files of sentence-transformers.
            projection: The linear layer behind the encoder.
            settings: The other settings of sentence-transformers.
            source: The folder that a model of another family was loaded from, for its tokenizer files.
            card: How the model was made, for the model card, or the content of a card; None writes none.
            replace: Whether an existing folder is replaced.
            kept: Where the folder goes if it fails the check, see `files.new_folder`.

        Returns: the facts of the model that its card shows.

        Raises: InputError if the folder exists and may not be replaced, or the disk is full. CheckFailed if the outputs
            of the written folder differ from the model's, or the tokenizer files of another family are gone.
        """
        limit = model.max_length if max_length is None else max_length
        mask = tokenizer.id_to_token(tokenizer.mask_id) if tokenizer is not None else None
        facts = ModelFacts.of(model, limit, vectors, projection, mask)
        with new_folder(path, replace=replace, kept=kept) as partial:
            if model.family == MODERNBERT:
                write_model(partial, model)
                if tokenizer is not None:
                    tokenizer.save_folder(partial, limit)
            else:
                assert source is not None, "a model of another family keeps the tokenizer files of its folder"
                write_foreign(partial, model, source)
            if vectors is not None:
                write_embedding_config(partial, vectors, projection, limit, settings)
            if card is not None:
                (partial / CARD).write_bytes(card.text(facts).encode() if isinstance(card, ModelCard) else card)
            if model.family == MODERNBERT:
                try:
                    verify_written(partial, model, path)
                except CheckFailed:
                    raise
                except (InputError, RuntimeError, MemoryError) as error:
                    raise CheckFailed(f"{path}: the written model cannot be checked ({error})") from error
        return facts
