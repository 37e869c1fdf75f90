"""Outputs of a tokenizer and a model for lists of texts; `ModernBert` adds loading, saving and argument checks."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

from modernbert.checkpoints.folder import ModelFolder
from modernbert.checkpoints.sentence_transformers_format import SentenceTransformersSettings
from modernbert.devices import dtype_name
from modernbert.errors import InputError, shown
from modernbert.inference.outputs import LabelScores, MaskGuesses, Output, PooledVectors, TokenVectors, compute
from modernbert.inference.overflow import CUT, Text, average_chunks, encode_texts, encode_words, too_long
from modernbert.inference.quantize import quantize
from modernbert.inference.results import Guess, TextVectors
from modernbert.inference.text_checks import check_number
from modernbert.model.config import ModelConfig
from modernbert.model.embedder import document_template, finish_vectors, query_template
from modernbert.model.embedding_config import EmbeddingConfig
from modernbert.model.int8_linear import INT8, is_int8
from modernbert.model.interface import MODERNBERT, Model
from modernbert.tasks.tagging import Span, spans_of_best
from modernbert.tasks.task import Answers, Task, find_task
from modernbert.tokenizer.input_templates import EncodedText, InputTemplate
from modernbert.tokenizer.tokenizer import Tokenizer

__all__ = ["Origin", "Predictor", "check_compares", "compared_vectors", "encode_masked", "text_vectors"]

Show = Callable[[int, int], None]
"""(texts done in all, tokens since the last call), called after each batch."""

_BUDGET_TOKENS = 16_384
# Texts tokenized at a time, so that the ids of millions are never in memory.
_TEXTS_AT_A_TIME = 4_096


@dataclass(frozen=True)
class Origin:
    """The folder that a model was loaded from, how it was loaded, and the settings that `save` writes again."""

    folder: ModelFolder
    dtype: str
    engine: str
    settings: SentenceTransformersSettings = SentenceTransformersSettings()
    unused_head: str | None = None
    """Why vectors are not compared: `config.json` names a head that was not loaded."""


class Predictor:
    """A tokenizer and a model. Every method batches its texts by `budget_tokens`, without padding."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        model: Model | None = None,
        budget_tokens: int = _BUDGET_TOKENS,
        vectors: EmbeddingConfig | None = None,
        projection: nn.Linear | None = None,
        max_length: int | None = None,
        origin: Origin | None = None,
    ) -> None:
        """Join a tokenizer and a model.

        Args:
            tokenizer: Its vocabulary must fit the model's.
            model: A model of this package, or one of another family.
            budget_tokens: The most tokens of a batch; bounds the memory of a call.
            vectors: How the model was fine-tuned to embed queries and documents.
            projection: The linear layer behind pooling.
            max_length: The most tokens of a text, if fewer than the model has positions for.
            origin: The folder that the model was loaded from.

        Raises:
            InputError: There is no model, or the tokenizer has more entries than it.
        """
        if model is None:
            raise InputError(f"model: found none, expected one; ModernBert.load({str(tokenizer)!r}) loads a folder")
        self.tokenizer = tokenizer
        self.model = model
        self.budget_tokens = budget_tokens
        self.vectors = vectors or EmbeddingConfig()
        self.projection = projection
        self.origin = origin
        self.max_length = min(max_length or model.max_length, model.max_length)
        if tokenizer.vocab_size > model.vocab_size:
            raise InputError(
                f"the tokenizer has {tokenizer.vocab_size:,} entries, "
                f"which does not fit the model's vocabulary of {model.vocab_size:,}"
            )

    @property
    def encoder(self) -> Model:
        """The model without its head."""
        return self.model.encoder

    @property
    def config(self) -> ModelConfig:
        """The shape of the model.

        Raises: InputError for a model of another family.
        """
        if self.model.family != MODERNBERT:
            raise InputError(f"This model is a {self.model.family} of transformers and has no ModelConfig.")
        return self.encoder.config

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device

    @property
    def dtype(self) -> str:
        """Data type of the computation: `float32`, `bfloat16` or `int8`."""
        return INT8 if is_int8(self.model) else dtype_name(self.model.dtype)

    @property
    def width(self) -> int:
        """Width of the hidden states, D."""
        return self.model.hidden_size

    @property
    def vector_width(self) -> int:
        """Width of the vectors that the model was fine-tuned for: after the projection and truncation."""
        whole = self.width if self.projection is None else self.projection.out_features
        return min(whole, self.vectors.truncate_dim or whole)

    @property
    def is_late(self) -> bool:
        """Whether texts are compared by the vectors of all their tokens (late interaction)."""
        return self.vectors.pooling == "tokens"

    @property
    def reads_pairs(self) -> bool:
        """Whether the model was trained on pairs of texts, as far as its folder says."""
        return self.model.reads_pairs

    @property
    def _settings(self) -> SentenceTransformersSettings:
        """The settings of the folder beside its `EmbeddingConfig`, which `save` writes again."""
        return self.origin.settings if self.origin else SentenceTransformersSettings()

    @property
    def prompts(self) -> Mapping[str, str]:
        """The prompts of the folder, by name."""
        return {name: text or "" for name, text in self._settings.prompts.items()}

    @property
    def default_prompt(self) -> str:
        """The prompt that `embed` puts before each text by default: `default_prompt_name` of the folder."""
        return self._settings.prompt

    @property
    def query_template(self) -> InputTemplate:
        """The template that queries are encoded with.

        Raises: InputError if the model does not compare vectors, or compares them by another similarity.
        """
        # A length of queries overrides the limit of all texts.
        return self._within_positions(query_template(check_compares(self), self.max_length))

    @property
    def document_template(self) -> InputTemplate:
        """The template that documents are encoded with.

        Raises: InputError if the model does not compare vectors, or compares them by another similarity.
        """
        return self._within_positions(document_template(check_compares(self), self.max_length, self.tokenizer))

    def _within_positions(self, template: InputTemplate) -> InputTemplate:
        return replace(template, max_length=min(template.max_length, self.model.max_length))

    def _task_of_head(self) -> Task:
        """Return the task of the fine-tuned head.

        Raises: InputError for a model without such a head.
        """
        if self.model.task is None or not self.model.is_classifier:
            raise InputError(
                "This model has no classification head. Fine-tune one (modernbert finetune), or load a "
                "folder of a ...ForSequenceClassification or ...ForTokenClassification model of transformers."
            )
        return find_task(self.model.task)

    @property
    def answers(self) -> Answers | None:
        """The kind of answers of the fine-tuned head; None without such a head."""
        task = self.model.task
        return find_task(task).answers if task is not None and self.model.is_classifier else None

    def _check_lengths(self, query: str, documents: Sequence[str]) -> None:
        """Check that a query and documents fit their templates.

        Raises: InputError naming the first text that is too long.
        """
        for name, texts, form in (("query", [query], self.query_template), ("text", documents, self.document_template)):
            for number, ids in enumerate(self._all_ids(texts, form.prompt)):
                if len(ids) > form.max_length:
                    place = name if name == "query" else f"{name} {number}"
                    raise InputError(f"{place}: {too_long(len(ids), form.max_length, CUT)}")

    def _all_ids(self, texts: Sequence[str], prompt: str) -> Iterator[np.ndarray]:
        """Yield the ids of each text, whatever its length."""
        return (ids for _, ids in encode_texts(self.tokenizer, texts, sys.maxsize, "error", prompt=prompt))

    def _check_vectors(self, pooling: str | None, truncate_dim: int | None, precision: str) -> None:
        """Check the options of `embed`.

        Raises: InputError naming an option with an unknown value.
        """
        if pooling not in (None, "mean", "cls"):
            raise InputError(f"pooling: found {pooling!r}, expected mean or cls")
        projection = text_vectors(self).projection
        width = self.width if projection is None else projection.out_features
        if truncate_dim is not None:
            check_number("truncate_dim", truncate_dim, width)
        kept = text_vectors(self, pooling, truncate_dim).truncate_dim
        quantize(np.zeros((0, min(width, kept or width)), np.float32), precision)

    def _embed_list(
        self,
        texts: Sequence[str],
        show: Show,
        *,
        pooling: str | None,
        truncate_dim: int | None,
        normalize: bool,
        prompt: str,
        overflow: str,
        precision: str,
    ) -> np.ndarray:
        """Return one vector for each text [N, E]; chunks of a text are averaged before truncation."""
        output = text_vectors(self, pooling, truncate_dim)
        whole = PooledVectors(output.pooling, output.projection, normalize=False)
        width = self.width if output.projection is None else output.projection.out_features
        numbers: list[int] = []
        lengths: list[int] = []
        found = [np.zeros((0, width), np.float32)]
        documents = encode_texts(self.tokenizer, texts, self.max_length, overflow, prompt=prompt)
        for some, group, vectors in self._numbered(documents, whole, show):
            numbers += some
            lengths += [len(each.tokens) for each in group]
            found.append(np.asarray(vectors))
        averaged = torch.from_numpy(average_chunks(np.concatenate(found), np.array(numbers), np.array(lengths)))
        return quantize(finish_vectors(averaged, None, output.truncate_dim, normalize).numpy(), precision)

    def _embed_with_template(self, texts: Sequence[str], show: Show, *, template: InputTemplate) -> TextVectors:
        """Return the vectors that texts are compared by; texts that are too long for the template are cut."""
        output = compared_vectors(self)
        num_truncated = 0

        def encoded() -> Iterator[EncodedText]:
            nonlocal num_truncated
            for start in range(0, len(texts), _TEXTS_AT_A_TIME):
                some, cut = template.encode(self.tokenizer, texts[start : start + _TEXTS_AT_A_TIME], first=start)
                num_truncated += cut
                yield from some

        found = [vectors for _, vectors in compute(self.model, encoded(), output, self.budget_tokens)]
        if self.is_late:
            return TextVectors(list(chain.from_iterable(found)), num_truncated)
        return TextVectors(np.concatenate([np.zeros((0, self.vector_width), np.float32), *found]), num_truncated)

    def _embed_tokens_list(self, texts: Sequence[str], show: Show, *, prompt: str, overflow: str) -> list[np.ndarray]:
        """Return the hidden states of each text's tokens, each float32 [its tokens, D]."""
        documents = encode_texts(self.tokenizer, texts, self.max_length, overflow, prompt=prompt, fix=CUT)
        return [each for _, _, vectors in self._numbered(documents, TokenVectors(), show) for each in vectors]

    def _score_list(self, texts: Sequence[Text], show: Show, *, overflow: str) -> np.ndarray:
        """Return the logits of each text or pair, float32 [N, labels], averaged over the chunks of a text."""
        numbers: list[int] = []
        found = [np.zeros((0, self.model.num_labels), np.float32)]
        documents = encode_texts(self.tokenizer, texts, self.max_length, overflow)
        for some, _, scores in self._numbered(documents, LabelScores(self.model), show):
            numbers += some
            found.append(np.asarray(scores))
        scores, owners = torch.from_numpy(np.concatenate(found)), torch.tensor(numbers, dtype=torch.int64)
        sums = torch.zeros(len(texts), scores.shape[1]).index_add_(0, owners, scores)
        return (sums / torch.bincount(owners, minlength=len(texts))[:, None]).numpy()

    def _pair_scores(self, logits: np.ndarray) -> np.ndarray:
        """Return the scores of a cross-encoder for its logits [N, 1], float32 [N]."""
        return self._task_of_head().activate(torch.from_numpy(logits[:, 0])).numpy()

    def _tag_list(self, texts: Sequence[str], show: Show, *, overflow: str) -> list[list[Span]]:
        """Return the spans that a tagger finds in each text."""
        words = encode_words(self.tokenizer, texts, self.max_length, overflow)
        outputs = compute(self.model, (encoded for _, encoded in words), LabelScores(self.model), self.budget_tokens)
        tags = chain.from_iterable(answers for _, answers in outputs)
        return [
            spans_of_best(self.model.labels, text, ranges, *best)
            for text, (ranges, _), best in zip(texts, words, tags, strict=True)
        ]

    def _fill_list(self, texts: Sequence[str], show: Show, *, top_k: int) -> list[list[list[Guess]]]:
        """Return the likeliest tokens for each mask of each text."""
        output = MaskGuesses(self.model, self.tokenizer.mask_id, self.tokenizer.vocab_size, top_k)
        outputs = self._numbered(encode_masked(self, texts), output, show)
        guessed = chain.from_iterable(answers for _, _, answers in outputs)
        return [
            [self._guesses(*each) for each in zip(tokens.tolist(), probabilities.tolist(), strict=True)]
            for tokens, probabilities in guessed
        ]

    def _guesses(self, tokens: list[int], probabilities: list[float]) -> list[Guess]:
        return [
            Guess(self.tokenizer.text_of(token), token, probability)
            for token, probability in zip(tokens, probabilities, strict=True)
        ]

    def _numbered(
        self, documents: Iterable[tuple[int, np.ndarray]], output: Output, show: Show
    ) -> Iterator[tuple[list[int], list[EncodedText], Any]]:
        """Yield batches of numbered documents: the numbers of their texts, the documents, and their outputs."""
        numbers: list[int] = []

        def encoded() -> Iterator[EncodedText]:
            for number, ids in documents:
                numbers.append(number)
                yield EncodedText(ids)

        for group, answers in compute(self.model, encoded(), output, self.budget_tokens):
            some, numbers[: len(group)] = numbers[: len(group)], []
            yield some, group, answers
            show(some[-1] + 1, sum(len(each.tokens) for each in group))


def check_compares(bert: "Predictor") -> EmbeddingConfig:
    """Return how texts become the vectors that are compared.

    Raises: InputError if the model does not compare vectors, or compares them by another similarity.
    """
    if bert.model.is_classifier:
        labels = ", ".join(bert.model.labels)
        raise InputError(
            f"This model has a head for {bert.model.task} (labels: {shown(labels, 80)}) and does not compare "
            "vectors. Use a model fine-tuned for the task embed, late or rerank, or one without a head."
        )
    if bert.origin is not None and bert.origin.unused_head is not None:
        raise InputError(
            f"{bert.origin.unused_head}, a head that was not loaded, so vectors are not compared. Use a model "
            "fine-tuned for the task embed, late or rerank, or one without a head."
        )
    if bert._settings.unsupported_similarity is not None:
        raise InputError(f"{bert._settings.unsupported_similarity}: vectors are compared by their directions here")
    return bert.vectors


def text_vectors(bert: "Predictor", pooling: str | None = None, truncate_dim: int | None = None) -> PooledVectors:
    """Return the output of one vector for each text; the folder has the defaults.

    The projection and truncation of a late-interaction model are for vectors of tokens, so they are left out.
    """
    if bert.is_late:
        return PooledVectors(pooling or "mean", None, truncate_dim)
    pooling, truncate_dim = pooling or bert.vectors.pooling, truncate_dim or bert.vectors.truncate_dim
    return PooledVectors(pooling, bert.projection, truncate_dim)


def compared_vectors(bert: "Predictor") -> PooledVectors | TokenVectors:
    """Return the output of the vectors that queries and documents are compared by."""
    if bert.is_late:
        return TokenVectors(bert.projection, bert.vectors.truncate_dim, normalize=True)
    return text_vectors(bert)


def encode_masked(bert: "Predictor", texts: Iterable[str]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number and ids of each text.

    Raises: InputError for a text without a mask, or one that is too long.
    """
    mask_id = bert.tokenizer.mask_id
    fix = "a text with masks is not cut"
    for number, ids in encode_texts(bert.tokenizer, texts, bert.max_length, "error", fix=fix):
        if mask_id not in ids:
            raise InputError(f"text {number}: has no {bert.tokenizer.text_of(mask_id)}, expected at least one")
        yield number, ids
