"""The object users hold: texts in; vectors, labels, spans, ranks and filled masks out.

In: a model folder or the name of a model on the hub. Out: `ModernBert`, which joins a tokenizer and a model, and keeps
nothing between calls. Vectors come back as numpy arrays in float32, in the order of the texts.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modernbert.batch import Batch, batch_by_size
from modernbert.checkpoints.folder import load_config, save_folder
from modernbert.checkpoints.projection import load_projection
from modernbert.checkpoints.sentence_transformers_format import (
    Kept,
    check_no_default_prompt,
    load_kept,
    load_vectors,
    max_length_of,
    unused_head_of,
    write_vectors,
)
from modernbert.checkpoints.transformers_models import (
    OURS,
    ForeignEncoder,
    family_of,
    load_foreign_encoder,
    vocabulary_of,
)
from modernbert.devices import choose_device, choose_precision, release_threads_before_fork
from modernbert.engines.registry import choose_engine
from modernbert.errors import InputError, shown
from modernbert.extras import require
from modernbert.hub_download import find_folder
from modernbert.inference import outputs as answers
from modernbert.inference.exact_search import search_tokens, search_vectors
from modernbert.inference.loading import load_model_for_inference
from modernbert.inference.outputs import Span, Text, finite
from modernbert.inference.overflow import (
    CUT_ALONE,
    CUT_OR_SPLIT,
    apply_overflow,
    check_overflow,
    mean_of_parts,
    too_long,
)
from modernbert.inference.quantize import quantize
from modernbert.inference.replicas import ReplicaPool
from modernbert.model.config import ModelConfig
from modernbert.model.embedder import Embedder, EmbeddingConfig
from modernbert.model.heads import Classifier, MaskedLM, pool
from modernbert.model.interface import Model
from modernbert.progress import show_texts
from modernbert.tokenizer.input_templates import InputTemplate, encode_with_template
from modernbert.tokenizer.text_arguments import refuse_table
from modernbert.tokenizer.tokenizer import Tokenizer
from modernbert.workers import WorkerPool

__all__ = ["Guess", "ModernBert", "Ranked", "TextVectors", "load_in_process"]

# Texts are tokenised so many at a time, so that a stream of millions is never held as ids.
_TEXTS_AT_A_TIME = 4_096
_BUDGET_TOKENS = 16_384


@dataclass(frozen=True)
class Guess:
    """One token proposed for a mask, with the model's probability for it."""

    text: str
    token: int
    probability: float


@dataclass(frozen=True)
class TextVectors:
    """Hold what texts became: float32 [N, E], or for late interaction [its tokens, E] each; and how many were cut."""

    vectors: np.ndarray | list[np.ndarray]
    num_cut: int


@dataclass(frozen=True)
class Ranked:
    """Hold where in the list a passage was, and how well it answers."""

    index: int
    score: float


class ModernBert:
    """A tokenizer and a model that belong together."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        model: Model,
        budget_tokens: int = _BUDGET_TOKENS,
        vectors: EmbeddingConfig | None = None,
        projection: torch.nn.Linear | None = None,
        max_length: int | None = None,
    ) -> None:
        """Join the two; `budget_tokens` bounds a batch, and with it the memory of a call.

        `vectors` and `projection` are how the model was tuned to make vectors of queries and documents, if it was.
        `max_length` limits the tokens of a text to less than the model has positions for.
        """
        self.tokenizer = tokenizer
        self.model = model
        self.budget_tokens = budget_tokens
        self.vectors = vectors or EmbeddingConfig()
        self.projection = projection
        self._max_length = max_length
        self._origin: tuple[Path, str, str] | None = None  # the folder it was loaded from, the dtype and the engine
        self._kept = Kept()  # what that folder says beside its vectors
        self._unused_head: str | None = None  # a head that config.json names and that was not loaded
        self._spread: ReplicaPool[ModernBert] | None = None
        entries = model.vocab_size
        if tokenizer.vocab_size > entries:
            raise InputError(
                f"the tokenizer has {tokenizer.vocab_size:,} entries, "
                f"which does not fit the model's vocabulary of {entries:,}"
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
        """Load a model folder, or a model of the hub by name.

        `auto` takes a CUDA device where there is one, bfloat16 where the hardware multiplies it, and the fastest
        attention that runs there, and says on standard error what it chose. `revision` pins a model of the hub to a
        commit, `token` is for private ones, `offline` takes what was downloaded before.

        Raises: InputError if the folder lacks a file or holds a wrong one, or if what is asked for is not to be had.
        """
        place = choose_device(device)
        precision = choose_precision(dtype, place, "dtype")
        folder = find_folder(name, revision, token=token, offline=offline)
        if family_of(folder) != OURS:
            require(str(name), "transformers")
            foreign = _load_foreign(name, folder, place, precision)
            foreign._origin = folder, dtype, engine
            return foreign
        config = load_config(folder)
        chosen = choose_engine(engine, place, precision, config)
        tokenizer = Tokenizer.load(folder, config.vocab_size)
        model = load_model_for_inference(folder, place, precision, chosen)
        if "auto" in (device, dtype, engine):
            print(f"{name}: device {place}, dtype {str(precision)[6:]}, engine {chosen.name}", file=sys.stderr)
        projection = load_projection(folder, config.hidden_size)
        if projection is not None:
            projection = projection.to(place, precision)
        # A folder of scores says nothing of vectors that it was tuned for.
        vectors = EmbeddingConfig() if isinstance(model, Classifier) else load_vectors(folder)
        bert = ModernBert(
            tokenizer, model, vectors=vectors, projection=projection, max_length=max_length_of(folder)
        )  # fmt: skip
        if isinstance(model, Classifier):
            check_no_default_prompt(folder)
        else:
            bert._kept, bert._unused_head = load_kept(folder), unused_head_of(folder)
        bert._origin = folder, dtype, engine
        return bert

    @contextmanager
    def on(self, devices: Sequence[str]) -> Iterator["ModernBert"]:
        """Yield this model as it answers from several processes, one for each device, used like itself.

        Each process loads the folder again, for as long as the `with` block lasts, and takes its share of the texts of
        every call; on a CPU it has its share of the threads. A device may be named more than once.

        Raises: InputError for a device that is not there, or a model that was not loaded from a folder.
        """
        if self._origin is None:
            raise InputError("devices: this model was made in memory; save it and load it, for processes load it again")
        if isinstance(devices, str) or not devices:
            raise InputError(f"devices: found {devices!r}, expected a list of names")
        for device in devices:
            choose_device(device)
        threads, budget = torch.get_num_threads(), self.budget_tokens
        begin = partial(load_in_process, *self._origin, len(devices), threads, budget_tokens=budget)
        with WorkerPool(devices, begin) as processes:
            many = copy(self)
            many._spread = ReplicaPool(processes, len(devices))
            try:
                yield many
            finally:
                many._spread.end()

    def __getstate__(self) -> dict[str, Any]:
        if self._spread is not None:
            raise InputError("a model on several devices cannot be pickled; pickle the model itself")
        return self.__dict__

    @property
    def config(self) -> ModelConfig:
        """The shape of the model.

        Raises: InputError for a model of another family.
        """
        if isinstance(self.encoder, ForeignEncoder):
            raise InputError("a model of another family has no config of this package")
        return self.encoder.config

    @property
    def encoder(self) -> Model:
        """The model without its head."""
        return self.model.encoder

    @property
    def longest(self) -> int:
        """The most tokens of a text: as many as the model has positions for, or fewer where its folder says so.

        A folder says so by `max_seq_length` in sentence_bert_config.json, else by `model_max_length` in
        tokenizer_config.json. The limit holds for every head.
        """
        return min(self._max_length or self._num_positions, self._num_positions)

    @property
    def _num_positions(self) -> int:
        encoder = self.encoder
        return encoder.max_length

    @property
    def width(self) -> int:
        """Width of the model's hidden states."""
        return self.encoder.hidden_size

    @property
    def vector_width(self) -> int:
        """Width of the vectors that the model was tuned to make: that of its projection, if it has one, or less."""
        whole = self.width if self.projection is None else self.projection.out_features
        return min(whole, self.vectors.truncate_dim or whole)

    @property
    def prompts(self) -> Mapping[str, str]:
        """The prompts that the folder has, by their names."""
        return {name: text or "" for name, text in self._kept.prompts.items()}

    @property
    def default_prompt(self) -> str:
        """What `embed` puts before each text by default: the prompt that the folder names in `default_prompt_name`."""
        return self._kept.prompt

    @property
    def reads_pairs(self) -> bool:
        """Whether the model was trained on pairs of texts, as far as its folder says."""
        return isinstance(self.model, Classifier) and self.model.reads_pairs

    @property
    def is_late(self) -> bool:
        """Whether texts are compared by the vectors of all their tokens."""
        return self.vectors.pooling == "tokens"

    @property
    def query_form(self) -> InputTemplate:
        """How the model was tuned to have queries laid out.

        Raises: InputError if the model does not compare vectors, or compares them by another similarity.
        """
        vectors = self._compared()
        # A length of queries overrides the limit of all texts.
        longest = min(vectors.query_length or self.longest, self._num_positions)
        return InputTemplate(longest, vectors.query_prompt, vectors.expand_queries)

    @property
    def document_form(self) -> InputTemplate:
        """How the model was tuned to have documents laid out.

        Raises: InputError if the model does not compare vectors, or compares them by another similarity.
        """
        vectors = self._compared()
        longest = min(vectors.document_length or self.longest, self._num_positions)
        skipped = frozenset(token for name in vectors.skip if (token := self.tokenizer.id_of(name)) is not None)
        return InputTemplate(longest, vectors.document_prompt, skip=skipped)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

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
        """Return one vector a text, [N, D] in the order of the texts.

        `pooling` is `mean` over all tokens of the text or its first token `cls`, by default as the model was tuned; the
        linear layer that it was tuned with follows. `prompt` is put before each text, by default the prompt that the
        folder names in `default_prompt_name`; `prompt=""` puts none. `truncate_dim` keeps the first components, before
        normalising, by default as many as its folder says. A text with more than `longest` tokens is an error;
        `overflow` may cut it (`truncate`), or take the mean over its parts, each with the weight of its tokens
        (`split-mean`). `precision` is float32, float16, int8 or binary, see `quantize`. `progress` shows on
        standard error how far it is.

        Raises: InputError for a text that is too long or not text, or for an unknown pooling, overflow or precision.
        """
        if self._spread is not None and not isinstance(texts, str):
            work = partial(
                ModernBert.embed, pooling=pooling, normalize=normalize, prompt=prompt, truncate_dim=truncate_dim,
                overflow=overflow, precision=precision,
            )  # fmt: skip
            return np.concatenate(self._spread.run(work, _checked(_listed(texts)), progress=progress))
        projection = None if self.is_late else self.projection
        width = self.width if projection is None else projection.out_features
        pooling = pooling or ("mean" if self.is_late else self.vectors.pooling)
        if pooling not in ("mean", "cls"):
            raise InputError(f"pooling: found {pooling!r}, expected mean or cls")
        if truncate_dim is None:
            truncate_dim = min(width, self.vectors.truncate_dim or width)
        _check_number("truncate_dim", truncate_dim, width)
        quantize(np.zeros((0, truncate_dim), np.float32), precision)
        found = [np.zeros((0, width), dtype=np.float32)]
        numbers: list[int] = []
        lengths: list[int] = []
        for owners, batch, hidden in self._hidden_states(texts, prompt, overflow, progress):
            rows = pool(hidden.float(), batch.layout, pooling)
            if projection is not None:
                with torch.inference_mode():
                    rows = projection(rows.to(projection.weight.dtype)).float()
            found.append(finite(rows.cpu()).numpy())
            numbers += owners
            lengths += batch.layout.lengths
        whole = mean_of_parts(np.concatenate(found), np.array(numbers), np.array(lengths))[:, :truncate_dim]
        if normalize:
            whole = torch.nn.functional.normalize(torch.from_numpy(whole), dim=-1).numpy()
        return quantize(whole, precision)

    def embed_queries(self, texts: str | Iterable[str]) -> TextVectors:
        """Return the vectors of queries as the model was tuned to make them; texts that are too long are cut.

        Raises: InputError for what is not text, or a model with a head of labels.
        """
        return self._tuned(texts, self.query_form)

    def embed_documents(self, texts: str | Iterable[str]) -> TextVectors:
        """Return the vectors of documents as the model was tuned to make them; texts that are too long are cut.

        Raises: InputError for what is not text, or a model with a head of labels.
        """
        return self._tuned(texts, self.document_form)

    def embed_tokens(
        self, texts: str | Iterable[str], *, prompt: str | None = None, overflow: str = "error", progress: bool = False
    ) -> list[np.ndarray]:
        """Return the hidden states of every text, each float32 [its tokens, D], special tokens included.

        `prompt` is put before each text, see `embed`. A text that is too long is an error, or is cut where `overflow`
        is `truncate`.

        Raises: InputError for a text that is too long or not text.
        """
        if overflow == "split-mean":
            raise InputError("overflow: found split-mean, expected error or truncate: tokens have no mean")
        if self._spread is not None and not isinstance(texts, str):
            work = partial(ModernBert.embed_tokens, prompt=prompt, overflow=overflow)
            return _joined(self._spread.run(work, _checked(_listed(texts)), progress=progress))
        found: list[np.ndarray] = []
        for _, batch, hidden in self._hidden_states(texts, prompt, overflow, progress, CUT_ALONE):
            rows = finite(hidden.float().cpu())
            found.extend(part.numpy() for part in rows.split(list(batch.layout.lengths)))
        return found

    def similarity(self, texts: str | Iterable[str], others: str | Iterable[str]) -> np.ndarray:
        """Return how alike texts and others are, float32 [N, M]: cosines, or MaxSim of a late-interaction model.

        Texts are embedded as the model was tuned to embed queries, others as documents; too long ones are cut.

        Raises: InputError for what is not text, or a model with a head of labels.
        """
        self._compared()
        asked, known = (_checked(_listed(each)) for each in (texts, others))
        if not asked or not known:
            return np.zeros((len(asked), len(known)), dtype=np.float32)
        queries, documents = self.embed_queries(asked).vectors, self.embed_documents(known).vectors
        search = search_tokens if self.is_late else search_vectors
        scores, numbers = search(queries, documents, len(known))  # type: ignore[arg-type]
        found = np.zeros((len(asked), len(known)), dtype=np.float32)
        np.put_along_axis(found, numbers, scores, axis=1)
        return found

    def rerank(
        self, query: str, documents: Iterable[str], *, top_k: int | None = None, overflow: str = "error"
    ) -> list[Ranked]:
        """Rank documents by how well they answer a query, the best first.

        A model whose head gives one score ranks pairs by it: a reranker's is 0 to 1, a regression's is the number that
        it gives. A model without a head of labels compares vectors, see `similarity`. What is longer than the model
        takes is an error, or is cut where `overflow` is `truncate`; a head may take the mean over the parts of a pair
        (`split-mean`).

        Raises: InputError for a text or a pair that is too long, what is not text, or a model with several labels.
        """
        if top_k is not None:
            _check_number("top_k", top_k)
        if not isinstance(query, str):
            raise InputError(f"query: found {type(query).__name__}, expected str")
        check_overflow(overflow)
        listed = _checked(_listed(documents))
        if isinstance(self.model, Classifier) and self.model.is_ranker:
            scores = self._pair_scores([(query, document) for document in listed], overflow)
        else:
            self._compared()
            self._check_lengths(query, listed, overflow)
            scores = self.similarity([query], listed)[0]
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [Ranked(int(number), float(scores[number])) for number in order]

    def classify(
        self, texts: Text | Iterable[Text], *, overflow: str = "error"
    ) -> dict[str, float] | list[dict[str, float]]:
        """Return each label's probability, the likeliest first; a model of one score gives that. Texts may be pairs.

        One text gives one answer, several a list of them. A text in parts (`split-mean`) has the mean of their scores.

        Raises: InputError for a model without labels, a single text for a model of pairs, or a text that is too long or
            not text.
        """
        check_overflow(overflow)
        several: list[Any] = [texts] if isinstance(texts, tuple) else _listed(texts)
        listed: list[Text] = _checked(several, pairs_ok=True)
        if self.reads_pairs and any(isinstance(text, str) for text in listed):
            number = next(number for number, text in enumerate(listed) if isinstance(text, str))
            raise InputError(
                f"text {number}: found a single text, expected a pair (text, other): this model was trained on pairs"
            )
        if self._spread is not None and not isinstance(texts, (str, tuple)):
            return _joined(self._spread.run(partial(ModernBert.classify, overflow=overflow), listed))
        found = answers.classify(self._classifier(), self.tokenizer, listed, self.longest, overflow, self.budget_tokens)
        return found[0] if isinstance(texts, (str, tuple)) else found

    def tag(self, texts: str | Iterable[str], *, overflow: str = "error") -> list[Span] | list[list[Span]]:
        """Return the spans found in each text, as ranges of its characters; of one text, its spans.

        Raises: InputError for a model without tags, or a text that is too long or not text.
        """
        check_overflow(overflow)
        listed = _checked(_listed(texts))
        if self._spread is not None and not isinstance(texts, str):
            return _joined(self._spread.run(partial(ModernBert.tag, overflow=overflow), listed))
        found = answers.tag(self._classifier(), self.tokenizer, listed, self.longest, overflow, self.budget_tokens)
        return found[0] if isinstance(texts, str) else found

    def count_tokens(self, texts: str | Iterable[str]) -> list[int]:
        """Return how many tokens each text has, special tokens included.

        Raises: InputError for what is not text.
        """
        return [len(ids) for ids in self._encode(_checked(_listed(texts)), "")]

    def fill_mask(self, texts: str | Iterable[str], top_k: int = 5) -> list[list[Guess]] | list[list[list[Guess]]]:
        """Propose the `top_k` likeliest tokens for each mask of a text, in the order of the masks.

        One text gives one list a mask, a sequence of texts a list of those.

        Raises: InputError for a text without a mask or too long, or a model folder without the masked-LM head.
        """
        if not isinstance(self.model, MaskedLM):
            raise InputError("this model folder has no masked-LM head (head.dense, head.norm, decoder.bias)")
        _check_number("top_k", top_k, self.tokenizer.vocab_size)
        if self._spread is not None and not isinstance(texts, str):
            return _joined(self._spread.run(partial(ModernBert.fill_mask, top_k=top_k), _checked(_listed(texts))))
        found: list[list[list[Guess]]] = []
        for _, batch, hidden in self._hidden_states(texts, "", "error", False, "a text with masks is read whole"):
            rows = (batch.tokens == self.tokenizer.mask_id).nonzero().flatten()
            num_masks = torch.bincount(batch.layout.doc_ids()[rows], minlength=batch.layout.num_docs).tolist()
            if 0 in num_masks:
                mask = self.tokenizer.text_of(self.tokenizer.mask_id)
                raise InputError(f"text {len(found) + num_masks.index(0)}: has no {mask}, expected at least one")
            guesses = iter(self._guesses(self.model, hidden.index_select(0, rows), top_k))
            found.extend([next(guesses) for _ in range(number)] for number in num_masks)
        return found[0] if isinstance(texts, str) else found

    def save(self, folder: str | Path) -> None:
        """Write a folder that this package, `transformers` and other readers load unedited.

        Weights are written in the precision they are held in: load with `dtype="float32"` to keep every bit of a
        float32 folder where `auto` would take bfloat16.

        Raises: InputError if the folder exists already, or the disk is full.
        """
        if isinstance(self.model, ForeignEncoder):
            raise InputError("a model of another family is saved by the library it came from")
        longest = self.longest

        def write_beside(partial: Path) -> None:
            self.tokenizer.save_folder(partial, longest)
            if self.vectors != EmbeddingConfig() or self.projection is not None or self._kept != Kept():
                write_vectors(partial, self.vectors, self.projection, longest, self._kept)

        save_folder(Path(folder), self.model, write_beside)

    def _guesses(self, model: MaskedLM, rows: Tensor, top_k: int) -> Iterator[list[Guess]]:
        tokens, shares = answers.likeliest(model, rows, top_k, self.tokenizer.vocab_size)
        for of_mask, its_shares in zip(tokens.tolist(), finite(torch.from_numpy(shares)).tolist(), strict=True):
            yield [Guess(self.tokenizer.text_of(t), t, p) for t, p in zip(of_mask, its_shares, strict=True)]

    def _compared(self) -> EmbeddingConfig:
        """Return how texts become vectors that are compared.

        Raises: InputError if this model does not compare vectors as this package does.
        """
        if isinstance(self.model, Classifier):
            labels = ", ".join(self.model.labels)
            raise InputError(
                f"This model has a head for {self.model.task} (labels: {shown(labels, 80)}) and does not compare "
                "vectors. Use a model fine-tuned with task=embed, late or rerank, or one without a head."
            )
        if self._unused_head is not None:
            raise InputError(
                f"{self._unused_head}, a head that was not loaded, so vectors are not compared. Use a model fine-tuned "
                "with task=embed, late or rerank, or one without a head."
            )
        if self._kept.obstacle is not None:
            raise InputError(f"{self._kept.obstacle}: vectors are compared by their directions here")
        return self.vectors

    def _tuned(self, texts: str | Iterable[str], form: InputTemplate) -> TextVectors:
        listed = _checked(_listed(texts))
        if self._spread is not None:
            parts = self._spread.run(partial(ModernBert._tuned, form=form), listed)
            vectors = [part.vectors for part in parts]
            whole = _joined(vectors) if self.is_late else np.concatenate(vectors)
            return TextVectors(whole, sum(part.num_cut for part in parts))
        embedder = Embedder(self.encoder, self.vectors.pooling, self.projection).eval()
        found: list[np.ndarray] = []
        num_cut = 0
        for start in range(0, len(listed), _TEXTS_AT_A_TIME):
            laid, cut = form.lay(self.tokenizer, listed[start : start + _TEXTS_AT_A_TIME], first=start)
            num_cut += cut
            for group in batch_by_size(laid, self.budget_tokens, lambda each: len(each.tokens)):
                with torch.inference_mode():
                    made = finite(embedder(encode_with_template(group).to(self.device)).cpu())
                    if made.shape[1] > self.vector_width:
                        made = torch.nn.functional.normalize(made[:, : self.vector_width], dim=-1)
                rows = made.numpy()
                found.extend(
                    np.split(rows, np.cumsum([each.num_rows for each in group])[:-1]) if self.is_late else [rows]
                )
        if self.is_late:
            return TextVectors(found, num_cut)
        return TextVectors(np.concatenate([np.zeros((0, self.vector_width), dtype=np.float32), *found]), num_cut)

    def _pair_scores(self, pairs: list[tuple[str, str]], overflow: str) -> np.ndarray:
        """Return how well the second text of each pair answers the first."""
        if self._spread is not None:
            return np.concatenate(self._spread.run(partial(ModernBert._pair_scores, overflow=overflow), pairs))
        if not pairs:
            return np.zeros(0, np.float32)
        return answers.pair_scores(
            self._classifier(), self.tokenizer, pairs, self.longest, overflow, self.budget_tokens
        )

    def _check_lengths(self, query: str, documents: Sequence[str], overflow: str) -> None:
        """Check that a query and documents fit, unless they are to be cut.

        Raises: InputError for one that does not.
        """
        if overflow == "split-mean":
            raise InputError("overflow: found split-mean, expected error or truncate: this model compares vectors")
        if overflow == "error":
            for name, texts, form in (("query", [query], self.query_form), ("text", documents, self.document_form)):
                for number, ids in enumerate(self._encode(texts, form.prompt)):
                    if len(ids) > form.longest:
                        place = name if name == "query" else f"{name} {number}"
                        raise InputError(f"{place}: {too_long(len(ids), form.longest, CUT_ALONE)}")

    def _classifier(self) -> Classifier:
        if isinstance(self.model, ForeignEncoder):
            raise InputError(
                "classify and tag need a ModernBERT model; models of other families are loaded without their head. "
                "Load the folder with the AutoModelFor... classes of transformers."
            )
        if not isinstance(self.model, Classifier):
            raise InputError(
                "this model folder has no head with labels: no classifier.weight, or a config.json whose architectures "
                "and problem_type name no task of ours"
            )
        self.model.eval()
        return self.model

    def _hidden_states(
        self, texts: str | Iterable[str], prompt: str | None, overflow: str, progress: bool, remedy: str = CUT_OR_SPLIT
    ) -> Iterator[tuple[list[int], Batch, Tensor]]:
        """Yield batches and their hidden states, and of each document the number of its text."""
        check_overflow(overflow)
        self.model.eval()  # the caller may have called train()
        prompt = self.default_prompt if prompt is None else prompt
        if not isinstance(prompt, str):
            raise InputError(f"prompt: found {type(prompt).__name__}, expected str")
        listed = _checked(_listed(texts))
        documents = apply_overflow(self._encode(listed, prompt), self.tokenizer, self.longest, overflow, remedy)
        with show_texts(len(listed), progress) as show:
            for group in batch_by_size(documents, self.budget_tokens, lambda each: len(each[1])):
                moved = Batch.from_documents([ids for _, ids in group]).to(self.device)
                with torch.inference_mode():
                    hidden = self.model.encode(moved)
                yield [number for number, _ in group], moved, hidden
                show(group[-1][0] + 1, moved.layout.num_tokens)

    def _encode(self, texts: Sequence[str], prompt: str) -> Iterator[np.ndarray]:
        for start in range(0, len(texts), _TEXTS_AT_A_TIME):
            some = [prompt + text for text in texts[start : start + _TEXTS_AT_A_TIME]]
            yield from self.tokenizer.encode(some, first=start)


def load_in_process(
    name: str | Path,
    dtype: str,
    engine: str,
    sharers: int,
    num_threads: int,
    device: str,
    budget_tokens: int = _BUDGET_TOKENS,
) -> ModernBert:
    """Load a model in a process that has its share of so many threads, with others like it."""
    torch.set_num_threads(max(1, num_threads // sharers))
    bert = ModernBert.load(name, device=device, dtype=dtype, engine=engine)
    bert.budget_tokens = budget_tokens
    return bert


def _joined(parts: Iterable[Iterable[Any]]) -> list[Any]:
    return [each for part in parts for each in part]


def _listed(texts: str | Iterable[Any]) -> list[Any]:
    """Return one text or several as a list.

    Raises: InputError for what has columns, keys, or no order: only its user knows which texts are meant.
    """
    if isinstance(texts, str):
        return [texts]
    refuse_table(texts)
    # Elements of a pyarrow array are no Python strings.
    if callable(to_list := getattr(type(texts), "to_pylist", None)):
        return list(to_list(texts))
    # A numpy array without dimensions is of an iterable class, and cannot be iterated over.
    if isinstance(texts, Iterable) and not isinstance(texts, bytes) and getattr(texts, "ndim", None) != 0:
        return list(texts)
    raise InputError(f"texts: found {type(texts).__name__}, expected a text or several")


def _checked(texts: list[Any], *, pairs_ok: bool = False) -> list[Any]:
    """Check that every text, and each of a pair where there may be some, is text."""
    for number, text in enumerate(texts):
        parts = text if pairs_ok and isinstance(text, tuple) and len(text) == 2 else (text,)
        wrong = [part for part in parts if not isinstance(part, str)]
        if wrong:
            is_missing = isinstance(wrong[0], float) and wrong[0] != wrong[0]
            found = "a missing value (NaN)" if is_missing else type(wrong[0]).__name__
            raise InputError(f"text {number}: found {found}, expected str")
    return texts


def _check_number(name: str, value: Any, most: int | None = None) -> None:
    """Check that what counts something is a whole number, at least 1."""
    is_whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_whole or value < 1 or (most is not None and value > most):
        raise InputError(f"{name}: found {value!r}, expected {'at least 1' if most is None else f'1 to {most}'}")


def _load_foreign(name: str | Path, folder: Path, device: torch.device, dtype: torch.dtype) -> ModernBert:
    tokenizer = Tokenizer.load(folder, vocabulary_of(folder))
    encoder = load_foreign_encoder(folder, tokenizer.pad_id, tokenizer.sep_id, dtype).to(device)
    release_threads_before_fork()
    print(f"{name}: device {device}, dtype {str(dtype)[6:]}, a {family_of(folder)} of transformers", file=sys.stderr)
    projection = load_projection(folder, encoder.hidden_size)
    if projection is not None:
        projection = projection.to(device, dtype)
    bert = ModernBert(
        tokenizer, encoder, vectors=load_vectors(folder), projection=projection, max_length=max_length_of(folder)
    )  # fmt: skip
    bert._kept, bert._unused_head = load_kept(folder), unused_head_of(folder)
    return bert
