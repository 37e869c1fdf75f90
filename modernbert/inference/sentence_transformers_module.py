"""A sentence-transformers module that computes with this package: texts end to end, no padding.

`sentence_transformer` loads a model folder as a `SentenceTransformer` that has all of that library's features: prompts,
`encode_query` and `encode_document`, similarities, precisions, several processes.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule
from torch import Tensor, nn

from modernbert.batch import Batch, batch_by_size
from modernbert.checkpoints.folder import ModelFolder
from modernbert.checkpoints.sentence_transformers_format import SentenceTransformersSettings
from modernbert.checkpoints.sentence_transformers_modules import OURS_LISTED
from modernbert.devices import dtype_name
from modernbert.errors import InputError
from modernbert.files import UNVERIFIED, translate_errors
from modernbert.hub_download import find_folder
from modernbert.inference.modernbert import ModernBert
from modernbert.inference.outputs import PooledVectors
from modernbert.model.interface import MODERNBERT
from modernbert.safe_files import read_json

__all__ = ["UnpaddedEncoder", "sentence_transformer"]

_SETTINGS, _LIMITS = "config_sentence_transformers.json", "sentence_bert_config.json"
_MODULES = "modules.json"


def sentence_transformer(
    name: str | Path, *, device: str = "auto", dtype: str = "auto", engine: str = "auto"
) -> SentenceTransformer:
    """Load a model folder, or a model of the Hub by name, as a `SentenceTransformer` that computes with this package.

    Vectors equal the vectors that sentence-transformers makes with the folder, including its length limit and prompts.

    Raises: InputError if the folder is incomplete or invalid, or makes a vector of each token.
    """
    module, folder = _load(name, device=device, dtype=dtype, engine=engine)
    settings = folder.files.read_json(_SETTINGS, missing_ok=True)
    return SentenceTransformer(
        modules=[module],
        device=str(module.device),
        prompts=settings.get("prompts"),
        default_prompt_name=settings.get("default_prompt_name"),
        similarity_fn_name=settings.get("similarity_fn_name"),
        truncate_dim=settings.get("truncate_dim"),
    )


class UnpaddedEncoder(InputModule):
    """Encoder, pooling, projection and normalization in one module, for inference only.

    Texts are cut at `max_seq_length` tokens, as there. Load a saved model with `sentence_transformer(path)`, or
    with `SentenceTransformer(path, trust_remote_code=True)`: that library needs the flag to import a class of any other
    package.
    """

    config_file_name = _LIMITS

    def __init__(self, bert: ModernBert, normalize: bool = True) -> None:
        """Wrap a model; `normalize` scales vectors to length 1."""
        super().__init__()
        if bert.is_late:
            raise InputError("the model has a vector for each token, expected one a text; see MultiVectorEncoder")
        if bert.model.family != MODERNBERT:
            raise InputError("a model of another family is loaded by sentence-transformers itself")
        self.tokenizer = bert.tokenizer  # type: ignore[assignment]
        self.encoder: nn.Module = bert.encoder
        self.projection = bert.projection
        self.vectors, self.normalize, self.budget_tokens = bert.vectors, normalize, bert.budget_tokens
        self.max_seq_length = min(bert.vectors.document_length or bert.max_length, bert.max_length)

    @classmethod
    def load(  # type: ignore[override]
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        backend: str = "torch",
    ) -> "UnpaddedEncoder":
        """Load the module that a folder's `modules.json` names; `model_kwargs` may have a `dtype`.

        Raises: InputError for an argument that is not supported, or an invalid folder.
        """
        given = {**(model_kwargs or {}), **(processor_kwargs or {}), **(config_kwargs or {})}
        dtype = given.pop("dtype", given.pop("torch_dtype", "auto"))
        given.pop("code_revision", None)
        if given or backend != "torch" or cache_folder:
            found = next(iter(given), "cache_folder" if cache_folder else f"backend={backend}")
            raise InputError(f"{found}: is not supported, expected only dtype in model_kwargs")
        secret = token if isinstance(token, str) else None
        folder = find_folder(model_name_or_path, revision, token=secret, offline=local_files_only)
        return _load(folder / subfolder, dtype=dtype if isinstance(dtype, str) else dtype_name(dtype))[0]

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self._embedding.device

    @property
    def _embedding(self) -> Tensor:
        return self.encoder.embeddings.tok_embeddings.weight  # type: ignore[union-attr, return-value]

    def get_embedding_dimension(self) -> int:
        """Return the width of the vectors."""
        return self._embedding.shape[1] if self.projection is None else self.projection.out_features

    def preprocess(  # type: ignore[override]
        self, inputs: Sequence[Any], prompt: str | None = None, task: str | None = None
    ) -> dict[str, Tensor]:
        """Return the ids of texts end to end [1, T] and their offsets [N + 1]; `task` is ignored.

        Raises: InputError for inputs that are not text.
        """
        # No number in the error: the library has sorted the texts by length.
        wrong = [type(text).__name__ for text in inputs if not isinstance(text, str)]
        if wrong:
            raise InputError(f"inputs: found {wrong[0]}, expected str")
        tokenizer: Any = self.tokenizer
        encoded = tokenizer.encode([f"{prompt or ''}{text}" for text in inputs])
        cut = [tokenizer.truncate(ids, self.max_seq_length) for ids in encoded]
        batch = Batch.from_documents(cut)
        return {"input_ids": batch.tokens[None], "cu_seq_lens_q": batch.layout.cu_seqlens}

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        """Add `sentence_embedding` [N, D], and for each text its `token_embeddings` [T_i, D] and `attention_mask`.

        Raises: InputError while training.
        """
        if self.training and torch.is_grad_enabled():
            raise InputError("this module is for inference, not for training; modernbert finetune trains")
        output = PooledVectors(self.vectors.pooling, self.projection, normalize=self.normalize)
        lengths = features["cu_seq_lens_q"].diff().tolist()
        documents = [each.numpy() for each in features["input_ids"][0].cpu().split(lengths)]
        encoder: Any = self.encoder
        vectors, tokens = [], []
        for group in batch_by_size(documents, self.budget_tokens, len):
            batch = Batch.from_documents(group).to(self.device)
            hidden = encoder.encode(batch)
            vectors.append(output.of_batch(hidden, batch.layout))
            tokens += hidden.split(list(batch.layout.lengths))
        features["sentence_embedding"] = torch.cat(vectors)
        features["token_embeddings"] = tokens
        features["attention_mask"] = [torch.ones(length, dtype=torch.int64) for length in lengths]
        return features

    def save(self, output_path: str, *, safe_serialization: bool = True) -> None:  # type: ignore[override]
        """Write the files of a model folder beside the files that the library writes.

        Raises: InputError if the disk is full or not writable.
        """
        if not safe_serialization:
            raise InputError("safe_serialization: found False, but this package writes no pickles")
        target = Path(output_path)
        try:
            self._write(target)
        except OSError as error:
            raise translate_errors(target, error) from error

    def _write(self, target: Path) -> None:
        """Write a model folder inside `target`, then move its files up, beside the library's."""
        tokenizer: Any = self.tokenizer
        encoder: Any = self.encoder
        with tempfile.TemporaryDirectory(dir=target, ignore_cleanup_errors=True) as folder:
            written = Path(folder) / "model"
            ModelFolder.save(
                written, encoder, tokenizer, projection=self.projection,
                vectors=replace(self.vectors, document_length=self.max_seq_length),
                settings=SentenceTransformersSettings(normalize=self.normalize),
                kept=target.absolute().with_name(f"{target.absolute().name}{UNVERIFIED}"),
            )  # fmt: skip
            (written / _MODULES).rename(written / OURS_LISTED)
            length = min(self.vectors.query_length or self.max_seq_length, self.max_seq_length)
            limits = read_json(written / _LIMITS) | {"query_length": length}
            (written / _LIMITS).write_text(json.dumps(limits, indent=2) + "\n")
            # The library writes its own file, with its current prompts, and has no length of queries.
            (written / _SETTINGS).unlink()
            for path in written.iterdir():
                if (target / path.name).is_dir():
                    shutil.rmtree(target / path.name)
                path.replace(target / path.name)


def _load(name: str | Path, **options: Any) -> tuple[UnpaddedEncoder, ModelFolder]:
    """Load a folder with the normalization that its modules name; return the opened folder, too."""
    bert = ModernBert.load(name, **options)
    assert bert.origin is not None, "it was loaded from a folder"
    folder = bert.origin.folder
    return UnpaddedEncoder(bert, normalize=bool(folder.settings.normalize)), folder
