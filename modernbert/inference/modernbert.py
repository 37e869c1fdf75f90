"""`ModernBert`, the object that users hold: it turns texts into vectors, labels, spans, ranks and filled masks."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch

from modernbert.checkpoints.folder import ModelFolder
from modernbert.checkpoints.model_card import ModelCard, read_card
from modernbert.checkpoints.sentence_transformers_format import SentenceTransformersSettings
from modernbert.errors import InputError
from modernbert.inference.exact_search import similarities
from modernbert.inference.loading import choose_dtype, load_for_inference
from modernbert.inference.overflow import Text, check_overflow
from modernbert.inference.predictor import Origin, Predictor
from modernbert.inference.results import Guess, Ranked, TextVectors
from modernbert.inference.text_checks import check_number, check_texts, listed
from modernbert.model.embedding_config import EmbeddingConfig
from modernbert.model.interface import FILL_MASK, MODERNBERT
from modernbert.progress import show_texts
from modernbert.tasks.tagging import Span

__all__ = ["Guess", "ModernBert", "Ranked", "TextVectors", "load_folder", "save_folder"]

Result = TypeVar("Result")


class ModernBert(Predictor):
    """A tokenizer and a model that belong together. Calls are independent of each other."""

    def __repr__(self) -> str:
        folder = self.origin.folder if self.origin else None
        name = "in memory" if folder is None else folder.path.name if folder.is_local else folder.name
        head = self.model.task or ("late interaction" if self.is_late else "encoder")
        engine = self.model.encoder.engine.name if self.model.family == MODERNBERT else "transformers"
        return (
            f"ModernBert({name}: {head}, {self.model.num_layers} layers, width {self.width}, "
            f"max_length {self.max_length:,}, {self.dtype} on {self.device}, engine {engine})"
        )

    @staticmethod
    def load(
        name: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        engine: str = "auto",
        revision: str | None = None,
        token: str | None = None,
        offline: bool = False,
    ) -> "ModernBert":
        """Load a model folder, or a model of the Hugging Face Hub by name.

        Args:
            name: A folder, or a name such as `answerdotai/ModernBERT-base`.
            device: `auto` takes a CUDA device if there is one.
            dtype: `auto` takes bfloat16 if the hardware multiplies it, else float32. `int8` quantizes the layers of a
                ModernBERT for a CPU.
            engine: `auto` takes the fastest engine that runs there. Choices are printed to standard error.
            revision: The commit or branch of a model on the Hub.
            token: An access token for private models.
            offline: Use earlier downloads only.

        Raises:
            InputError: The folder is incomplete or invalid, or the device, dtype or engine is not available.
        """
        choose_dtype(dtype, device)  # before a download
        folder = ModelFolder.open(name, revision, token=token, offline=offline)
        return load_folder(folder, device=device, dtype=dtype, engine=engine)

    def on(self, devices: Sequence[str]) -> AbstractContextManager["ModernBert"]:
        """Yield a model that answers from several processes, one for each device.

        Each process loads the folder again, for the duration of the `with` block, and takes its share of the texts of
        every call; on a CPU it has its share of the threads. A device may be named more than once.

        Raises:
            InputError: A device is not available, or the model was not loaded from a folder.
        """
        from modernbert.inference.replicas import replicas

        return replicas(self, devices)

    def embed(
        self,
        texts: str | Iterable[str],
        *,
        pooling: str | None = None,
        normalize: bool = True,
        prompt: str | None = None,
        truncate_dim: int | None = None,
        overflow: str = "error",
        precision: str = "float32",
        progress: bool = False,
    ) -> np.ndarray:
        """Return one vector for each text, [N, D] in the order of the texts.

        Args:
            texts: A text or several.
            pooling: `mean` of all tokens or the first token (`cls`); by default as the model was fine-tuned. The
                model's projection follows.
            normalize: Scale vectors to length 1.
            prompt: Put before each text; by default the folder's default prompt. An empty one puts none.
            truncate_dim: Keep the first components, before normalization; by default as many as the folder says.
            overflow: A text over `max_length` tokens is an `error`, is cut (`truncate`), or becomes the mean of its
                chunks, weighted by their tokens (`split-mean`).
            precision: `float32`, `float16`, `int8` or `binary`; see `quantize`.
            progress: Show progress on standard error.

        Raises:
            InputError: A text is too long or not text, or an option is unknown.
        """
        self._check_vectors(pooling, truncate_dim, precision)
        check_overflow(overflow)
        return self._map(
            Predictor._embed_list, check_texts(listed(texts)), progress, pooling=pooling, truncate_dim=truncate_dim,
            normalize=normalize, prompt=self._prompt(prompt), overflow=overflow, precision=precision,
        )  # fmt: skip

    def embed_queries(self, texts: str | Iterable[str]) -> TextVectors:
        """Return the vectors of queries as the model was fine-tuned to make them; texts that are too long are cut.

        Raises:
            InputError: For inputs that are not text, or a model with a head of labels.
        """
        return self._map(Predictor._embed_with_template, check_texts(listed(texts)), template=self.query_template)

    def embed_documents(self, texts: str | Iterable[str], *, prompt: str | None = None) -> TextVectors:
        """Return the vectors of documents as the model was fine-tuned to make them; texts that are too long are cut.

        `prompt` replaces the prompt of documents.

        Raises:
            InputError: For inputs that are not text, or a model with a head of labels.
        """
        template = self.document_template if prompt is None else replace(self.document_template, prompt=prompt)
        return self._map(Predictor._embed_with_template, check_texts(listed(texts)), template=template)

    def embed_tokens(
        self, texts: str | Iterable[str], *, prompt: str | None = None, overflow: str = "error", progress: bool = False
    ) -> list[np.ndarray]:
        """Return the hidden states of every text, each float32 [its tokens, D], special tokens included.

        `prompt` and `overflow` work as in `embed`, but chunks cannot be averaged.

        Raises:
            InputError: For a text that is too long or not text.
        """
        check_overflow(overflow, mean_of="vectors of tokens have no mean")
        return self._map(
            Predictor._embed_tokens_list, check_texts(listed(texts)), progress, prompt=self._prompt(prompt),
            overflow=overflow,
        )  # fmt: skip

    def similarity(self, texts: str | Iterable[str], others: str | Iterable[str]) -> np.ndarray:
        """Return the similarity of texts with others, float32 [N, M]: cosines, or MaxSim with late interaction.

        Texts are embedded as queries, others as documents; texts that are too long are cut.

        Raises:
            InputError: For inputs that are not text, or a model with a head of labels.
        """
        return similarities(self.embed_queries(texts).vectors, self.embed_documents(others).vectors)

    def rerank(
        self, query: str, documents: Iterable[str], *, top_k: int | None = None, overflow: str = "error"
    ) -> list[Ranked]:
        """Rank documents by how well they answer a query, best first.

        A cross-encoder scores pairs: with a probability, or if it is a regression with its number. A model without a
        head compares vectors, see `similarity`. `overflow` is that of `embed`; only a cross-encoder averages chunks.

        Raises:
            InputError: For a text or pair that is too long or not text, or a model with several labels.
        """
        if top_k is not None:
            check_number("top_k", top_k)
        if not isinstance(query, str):
            raise InputError(f"query: found {type(query).__name__}, expected str")
        texts = check_texts(listed(documents))
        if self.model.task is not None and self.model.is_ranker:
            check_overflow(overflow)
            pairs = [(query, document) for document in texts]
            scores = self._pair_scores(self._map(Predictor._score_list, pairs, overflow=overflow))
        else:
            check_overflow(overflow, mean_of="this model compares vectors")
            if overflow == "error":
                self._check_lengths(query, texts)
            scores = self.similarity([query], texts)[0]
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [Ranked(int(number), float(scores[number])) for number in order]

    # A string is an iterable of strings, too; the first signature that fits is taken.
    @overload
    def classify(self, texts: Text, *, overflow: str = "error") -> dict[str, float]: ...  # type: ignore[overload-overlap]
    @overload
    def classify(self, texts: Iterable[Text], *, overflow: str = "error") -> list[dict[str, float]]: ...
    def classify(
        self, texts: Text | Iterable[Text], *, overflow: str = "error"
    ) -> dict[str, float] | list[dict[str, float]]:
        """Return the probability of each label, highest first; a regression returns its number. Texts may be pairs.

        One text has one answer, several a list of them. With `split-mean`, scores are averaged over chunks.

        Raises:
            InputError: For a model without labels, a single text for a model of pairs, or a text that is too long or
                not text.
        """
        check_overflow(overflow)
        is_one = isinstance(texts, (str, tuple))
        several: list[Text] = check_texts([texts] if is_one else listed(texts), pairs_ok=True)
        if self.reads_pairs and any(isinstance(text, str) for text in several):
            number = next(number for number, text in enumerate(several) if isinstance(text, str))
            raise InputError(
                f"text {number}: found a single text, expected a pair (text, other): this model was trained on pairs"
            )
        task = self._task_of_head()
        if task.answers not in ("labels", "ranking"):
            raise InputError(f"this model has a head for {task.name}, expected one for classify, multilabel or regress")
        logits = torch.from_numpy(self._map(Predictor._score_list, several, overflow=overflow))
        found = task.label_scores(self.model.labels, logits)
        return found[0] if is_one else found

    @overload
    def tag(self, texts: str, *, overflow: str = "error") -> list[Span]: ...  # type: ignore[overload-overlap]
    @overload
    def tag(self, texts: Iterable[str], *, overflow: str = "error") -> list[list[Span]]: ...
    def tag(self, texts: str | Iterable[str], *, overflow: str = "error") -> list[Span] | list[list[Span]]:
        """Return the spans found in each text, as ranges of its characters; of one text, its spans.

        Raises:
            InputError: For a model without tags, or a text that is too long or not text.
        """
        several = check_texts(listed(texts))
        task = self._task_of_head()
        if task.answers != "spans":
            raise InputError(f"this model has a head for {task.name}, expected one for tag")
        check_overflow(overflow, mean_of="tags have no mean")
        found = self._map(Predictor._tag_list, several, overflow=overflow)
        return found[0] if isinstance(texts, str) else found

    @overload
    def fill_mask(self, texts: str, top_k: int = 5) -> list[list[Guess]]: ...  # type: ignore[overload-overlap]
    @overload
    def fill_mask(self, texts: Iterable[str], top_k: int = 5) -> list[list[list[Guess]]]: ...
    def fill_mask(self, texts: str | Iterable[str], top_k: int = 5) -> list[list[Guess]] | list[list[list[Guess]]]:
        """Return the `top_k` likeliest tokens for each mask of a text, in the order of the masks.

        One text has one list for each mask, several texts a list of those.

        Raises:
            InputError: For a text without a mask or too long, or a model without the masked-LM head.
        """
        if self.model.task != FILL_MASK:
            name = self.origin.folder.name if self.origin else "this model"
            raise InputError(
                f"{name}: has no masked-LM head, it is {self._describe_head()}; load a pretrained model, such as "
                "answerdotai/ModernBERT-base"
            )
        check_number("top_k", top_k, self.tokenizer.vocab_size)
        found = self._map(Predictor._fill_list, check_texts(listed(texts)), top_k=top_k)
        return found[0] if isinstance(texts, str) else found

    def _describe_head(self) -> str:
        if self.model.family != MODERNBERT:
            return f"a {self.model.family}, which is loaded without its head"
        return f"fine-tuned for {self.model.task}" if self.model.is_classifier else "an encoder without a head"

    def count_tokens(self, texts: str | Iterable[str]) -> list[int]:
        """Return how many tokens each text has, special tokens included.

        Raises:
            InputError: For inputs that are not text.
        """
        return [len(ids) for ids in self._all_ids(check_texts(listed(texts)), "")]

    def save(self, folder: str | Path) -> None:
        """Write a folder that this package, `transformers` and sentence-transformers load unedited.

        Weights are written in the precision they are held in: load with `dtype="float32"` to keep every bit of a
        float32 folder where `auto` would take bfloat16. The model card of the folder that it was loaded from is kept.

        Raises:
            InputError: If the folder exists already, or the disk is full.
        """
        if self.model.family != MODERNBERT:
            raise InputError("a model of another family is saved by the library it came from")
        card: ModelCard | bytes = ModelCard("Saved from memory.")
        if self.origin is not None:
            source = self.origin.folder
            card = (read_card(source.path) if source.is_local else None) or ModelCard(
                "A saved copy.", bases=[source.name]
            )
        save_folder(self, Path(folder), card)

    def _map(
        self, work: Callable[..., Result], texts: Sequence[Any], progress: bool = False, /, **settings: Any
    ) -> Result:
        """Return `work(self, texts, show, **settings)`; replicas share the texts out."""
        with show_texts(len(texts), progress) as show:
            return work(self, texts, show, **settings)

    def _prompt(self, prompt: str | None) -> str:
        if not isinstance(prompt, str | None):
            raise InputError(f"prompt: found {type(prompt).__name__}, expected str")
        return self.default_prompt if prompt is None else prompt


def save_folder(bert: ModernBert, folder: Path, card: ModelCard | bytes) -> None:
    """Write a model folder with a model card, see `ModernBert.save`."""
    defaults = (EmbeddingConfig(), None, SentenceTransformersSettings())
    vectors = None if (bert.vectors, bert.projection, bert._settings) == defaults else bert.vectors
    ModelFolder.save(
        folder, bert.model, bert.tokenizer, bert.max_length, vectors=vectors, projection=bert.projection,
        settings=bert._settings, card=card,
    )  # fmt: skip


def load_folder(folder: ModelFolder, *, device: str = "auto", dtype: str = "auto", engine: str = "auto") -> ModernBert:
    """Load the model of an opened folder, see `ModernBert.load`."""
    model, projection = load_for_inference(folder, device, dtype, engine)
    origin, vectors = Origin(folder, dtype, engine), None
    if model.is_classifier:
        # Embedding settings of the folder, if any, do not describe the head.
        folder.check_no_default_prompt()
    else:
        vectors = folder.embedding_config
        origin = replace(origin, settings=folder.settings, unused_head=folder.unused_head)
    return ModernBert(
        folder.tokenizer, model, vectors=vectors, projection=projection, max_length=folder.max_length, origin=origin
    )
