"""Queries and their answers -> a model that finds them, by one vector a text or one a token.

In: a `RetrieverConfig`. Out: a folder with `config.yaml`, `log.jsonl`, `timing.jsonl`, and at the end `model/` with the
weights that did best on the dev collections, and `scores.json`, the last. sentence-transformers loads the model folder
unedited; one for late interaction is in PyLate's layout. A run that was stopped goes on from its last checkpoint.

Source: section 3.1.2 and appendix E.2 of the paper.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from modernbert.batch import Batch, batch_by_size
from modernbert.checkpoints.colbert_format import check_stanford, write_stanford
from modernbert.checkpoints.folder import load_config, load_model, save_folder
from modernbert.checkpoints.projection import load_projection
from modernbert.checkpoints.sentence_transformers_format import load_vectors, max_length_of, write_vectors
from modernbert.checkpoints.transformers_models import (
    OURS,
    family_of,
    load_foreign_encoder,
    longest_of,
    save_foreign,
    vocabulary_of,
)
from modernbert.config_files import MISSING
from modernbert.data.collections import Collection, is_collection, judgments_file, read_collection, read_texts
from modernbert.data.example_sampler import ExampleSampler
from modernbert.data.labeled_rows import check_files, read_rows
from modernbert.data.unused_columns import without_columns
from modernbert.devices import autocast, choose_device, choose_precision, keep_freed_memory
from modernbert.engines.engine import Engine
from modernbert.engines.registry import choose_engine, find_optimizer_kernels
from modernbert.errors import InputError
from modernbert.evaluation.retrieval_eval import (
    Rank,
    Retrieval,
    hard_negatives,
    rank_by_model,
    rank_by_words,
    score_collection,
)
from modernbert.extras import require
from modernbert.files import only_process, write_file
from modernbert.hub_download import find_folder
from modernbert.inference.modernbert import ModernBert
from modernbert.model.embedder import Embedder, EmbeddingConfig
from modernbert.model.interface import MODERNBERT
from modernbert.number_checks import check_numbers
from modernbert.tasks.retrieval_examples import (
    Question,
    questions_of_collection,
    questions_of_ids,
    questions_of_rows,
    step_of,
    with_answers_shared,
)
from modernbert.tasks.task import retrieval_task
from modernbert.tokenizer.input_templates import EncodedText, InputTemplate, encode_with_template
from modernbert.tokenizer.tokenizer import Tokenizer
from modernbert.training.finetuning_config import FinetuneOptions
from modernbert.training.finetuning_loop import (
    GiveUp,
    LinearPlan,
    TrainState,
    Tuning,
    digest_of_rows,
    groups_by_depth,
    tune,
)
from modernbert.training.optimizers import StableAdamW, parameter_groups
from modernbert.training.retrieval_losses import Comparison, RetrievalLoss
from modernbert.training.run_folder import begin_run_folder
from modernbert.training.training_loop import derive_seed

__all__ = ["RetrieverConfig", "finetune_retriever"]

_METRICS = ("ndcg_10", "mrr_10", "recall_100")


@dataclass
class RetrieverConfig(FinetuneOptions):
    """Fine-tune a model for retrieval, from queries and the passages that answer them.

    `train` names files or data sets of rows with `query`, `positive`, `negative`, `negative_1`, ... or `negatives`, and
    `scores`, or collections (folders in BEIR's format). `dev` and `test` name collections. With `scores` the model
    learns the scores of a teacher, otherwise to tell the answer of a query from the other passages of the step. Rows
    with `query_id`, `document_ids` and `scores` refer to the texts of the collection `texts`.
    """

    FREE_TO_CHANGE: ClassVar[tuple[str, ...]] = ("output", "device", "checkpoint", "budget_tokens")

    task: str = MISSING
    """embed: one vector for a text; late: one for each token (late interaction)."""
    vectors: EmbeddingConfig = field(default_factory=lambda: EmbeddingConfig(query_length=512, document_length=512))
    """Pooling, prompts and lengths of queries and documents."""
    projection: int | None = 128
    """Dimension of a token's vector, for late interaction; None keeps the hidden size."""
    stanford: bool = False
    """Also write `stanford/`, the model in the format of ColBERT's own library, for late interaction."""
    texts: str | None = None
    """Collection with the texts of rows that have ids only."""
    negatives: int = 0
    """Hard negatives to mine for each query, by BM25 or by the model `mined_by`."""
    mined_by: str | None = None
    """Model that mines the hard negatives."""
    temperature: float | None = None
    """Divisor of the scores; 0.05 for embed and 1 for late, by default."""
    normalize_scores: bool = True
    """Scale the scores of a query to the range from 0 to 1 before they are compared with a teacher's."""
    projection_lr: float | None = None
    """Peak learning rate of the projection; `lr`, by default."""
    epochs: int = 1
    """Passes over the training data."""
    batch: int = 64
    """Queries of a step."""
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises from 0; it then falls linearly to 0."""
    metric: Literal["ndcg_10", "mrr_10", "recall_100"] = "ndcg_10"
    """Score on `dev` that decides."""

    def check(self) -> None:
        """Check all values that can be checked without opening a file.

        Raises: InputError naming the field.
        """
        task = retrieval_task(self.task)
        super().check()
        check_numbers(self.vectors, "vectors.")
        if not task.per_token and self.vectors.pooling not in ("mean", "cls"):
            raise InputError(f"vectors.pooling: found {self.vectors.pooling!r}, expected mean or cls")
        if task.per_token and self.vectors.truncate_dim is not None:
            raise InputError("vectors.truncate_dim: found a number, but late interaction has `projection` for that")
        for name in ("dev", "test"):
            folders = [Path(each).resolve().name for each in getattr(self, name)]
            if len(set(folders)) < len(folders):
                raise InputError(f"{name}: found two folders of one name, expected other names to tell scores apart by")
        if self.stanford and not task.per_token:
            raise InputError(f"stanford: found true, but {self.task} is no late interaction")
        if self.stanford:
            check_stanford(self.vectors, self.projection)
        if self.mined_by is not None and not self.negatives:
            raise InputError("mined_by: found a model, but negatives is 0")
        if self.negatives and self.mined_by is None:
            require(f"negatives={self.negatives}", "bm25s")
        if not self.dev and (self.patience is not None or self.metric != type(self).metric):
            raise InputError("dev: found no collection, expected some to choose and stop by (patience, metric)")


@dataclass(frozen=True)
class _Inputs:
    """What a config names, opened and checked; every text is laid out once."""

    tokenizer: Tokenizer
    folder: Path
    longest: int
    vectors: EmbeddingConfig
    questions: list[Question]
    queries: dict[str, EncodedText]
    passages: dict[str, EncodedText]
    collections: dict[str, list[Collection]]
    device: torch.device
    dtype: torch.dtype
    engine: Engine | None


def finetune_retriever(config: RetrieverConfig, give_up: GiveUp | None = None) -> Path:
    """Fine-tune, or go on with a stopped run, and return the model folder.

    `give_up` is asked after each scoring whether the run may stop.

    Raises: InputError for what cannot be learned from, or does not fit together, before `out` is touched; and for what
    only a run can show, such as a loss that is not finite.
    """
    config.check()
    out = Path(config.output)
    inputs = _open_inputs(config)
    begin_run_folder(out, config)
    with only_process(out):
        if (out / "scores.json").exists():
            print(f"{out}: this run is finished")
        else:
            keep_freed_memory()
            _finetune(out, config, inputs, give_up)
    return out / "model"


def _open_inputs(config: RetrieverConfig) -> _Inputs:
    device = choose_device(config.device)
    dtype = choose_precision(config.dtype, device, "dtype")
    folder = find_folder(config.model)
    is_foreign = family_of(folder) != OURS
    if is_foreign:
        require(str(folder), "transformers")
    files = [source for source in config.train if not is_collection(Path(source))]
    check_files(files, config.train_split, config.subset)
    tokenizer = Tokenizer.load(folder, vocabulary_of(folder) if is_foreign else load_config(folder).vocab_size)
    most = longest_of(folder) if is_foreign else load_config(folder).max_position_embeddings
    longest = min(max_length_of(folder) or most, most)
    if is_foreign and (config.layer_decay != 1.0 or config.dropout is not None or config.engine != "auto"):
        raise InputError(f"layer_decay, dropout, engine: found one set, but {folder} is a {family_of(folder)}")
    task = retrieval_task(config.task)
    vectors = replace(config.vectors, pooling="tokens") if task.per_token else config.vectors
    for name in ("query_length", "document_length"):
        if (getattr(vectors, name) or 0) > most:
            raise InputError(f"vectors.{name}: found {getattr(vectors, name):,}, but {folder} takes at most {most:,}")
    if not is_foreign and task.per_token and config.projection is not None:
        load_projection(folder, load_config(folder).hidden_size)  # refuses one that does not fit
    for prompt in (vectors.query_prompt, vectors.document_prompt):
        if config.stanford and tokenizer.id_of(prompt.strip()) is None:
            raise InputError(f"vectors: found the mark {prompt.strip()!r}, which is no token of {folder}")
    collections = {
        name: [read_collection(Path(each), getattr(config, f"{name}_split"), name) for each in getattr(config, name)]
        for name in ("dev", "test")
    }
    _check_apart(config)
    texts_of_ids = None if config.texts is None else read_texts(Path(config.texts))
    questions = _questions(config, texts_of_ids)
    if len({question.scores is None for question in questions}) > 1:
        raise InputError("train: some sources have scores and others none, expected all or none")
    if config.temperature is not None and config.normalize_scores and questions[0].scores is not None:
        raise InputError(
            f"temperature: found {config.temperature}, but scores that are compared with a teacher's are stretched to "
            "reach from 0 to 1, whatever it is; expected none, or normalize_scores=false"
        )
    forms = {
        "queries": InputTemplate(vectors.query_length or longest, vectors.query_prompt, vectors.expand_queries),
        "passages": InputTemplate(
            vectors.document_length or longest,
            vectors.document_prompt,
            False,
            _skipped(tokenizer, vectors),
        ),
    }
    queries = _lay(tokenizer, forms["queries"], "queries", [question.query for question in questions])
    texts = [text for question in questions for text in (question.answer, *question.others)]
    passages = _lay(tokenizer, forms["passages"], "passages", texts)
    return _Inputs(
        tokenizer, folder, longest, vectors, questions, queries, passages, collections, device, dtype,
        None if is_foreign else choose_engine(config.engine, device, dtype, load_config(folder)),
    )  # fmt: skip


def _check_apart(config: RetrieverConfig) -> None:
    """Say which judgments are both learned from and scored by.

    Raises: InputError for those that are so under two names: a folder with one file for all splits.
    """
    folders = [Path(source) for source in config.train if is_collection(Path(source))]
    learned = {judgments_file(folder, config.train_split, "train").resolve() for folder in folders}
    for name in ("dev", "test"):
        split = getattr(config, f"{name}_split")
        for folder in getattr(config, name):
            path = judgments_file(Path(folder), split, name)
            if path.resolve() not in learned:
                continue
            if split != config.train_split:
                raise InputError(
                    f"{name}_split: found {split!r} and train_split={config.train_split!r}, but {path} is one set of "
                    "judgments for both; expected another folder to score by"
                )
            print(f"{name}: {path} is learned from too, its scores say what was learned by heart")


def _questions(config: RetrieverConfig, texts_of_ids: tuple[dict[str, str], dict[str, str]] | None) -> list[Question]:
    """Read the questions of all sources, and find as many negatives for each as the config asks for."""
    read = [_read(config, source, texts_of_ids) for source in config.train]
    # What answers a question in one source is no negative in another.
    questions = with_answers_shared([question for of_source, _ in read for question in of_source])
    if not config.negatives:
        return questions
    rank = rank_by_model(_miner(config)) if config.mined_by else rank_by_words
    found, left = [], iter(questions)
    for source, (of_source, pool) in zip(config.train, read, strict=True):
        found += _with_negatives(config, source, list(islice(left, len(of_source))), pool, rank)
    return found


def _read(
    config: RetrieverConfig, source: str, texts_of_ids: tuple[dict[str, str], dict[str, str]] | None
) -> tuple[list[Question], list[str]]:
    """Read the questions of a source, and the passages among which are negatives.

    `texts_of_ids` are documents and queries.
    """
    if is_collection(Path(source)):
        collection = read_collection(Path(source), config.train_split, "train")
        questions = questions_of_collection(collection.queries, collection.documents, collection.judgments)
        if not questions:
            raise InputError(f"{source}: no relevant document of the split {config.train_split!r} has a text")
        return questions, list(dict.fromkeys(collection.documents.values()))
    rows = without_columns(read_rows([source], config.train_split, config.subset), config.ignore_columns)
    if texts_of_ids is None:
        questions = questions_of_rows(rows, retrieval_task(config.task))
    else:
        documents, queries = texts_of_ids
        questions = questions_of_ids(rows, queries, documents, retrieval_task(config.task))
    return questions, list(dict.fromkeys(text for each in questions for text in (each.answer, *each.others)))


def _with_negatives(
    config: RetrieverConfig, source: str, questions: Sequence[Question], pool: Sequence[str], rank: Rank
) -> list[Question]:
    if any(question.scores is not None for question in questions):
        raise InputError(
            f"negatives: found {config.negatives}, but {source} has a teacher's scores of its own passages"
        )
    answers = [question.answers for question in questions]
    mined = hard_negatives([question.query for question in questions], answers, pool, config.negatives, rank)
    return [
        replace(question, others=[*question.others, *more]) for question, more in zip(questions, mined, strict=True)
    ]


def _miner(config: RetrieverConfig) -> ModernBert:
    assert config.mined_by is not None
    return ModernBert.load(config.mined_by, device=config.device, dtype=config.dtype)


def _skipped(tokenizer: Tokenizer, vectors: EmbeddingConfig) -> frozenset[int]:
    return frozenset(token for name in vectors.skip if (token := tokenizer.id_of(name)) is not None)


def _lay(tokenizer: Tokenizer, form: InputTemplate, name: str, texts: Sequence[str]) -> dict[str, EncodedText]:
    distinct = list(dict.fromkeys(texts))
    laid, num_cut = form.lay(tokenizer, distinct)
    cut = f", {num_cut:,} cut at {form.longest:,} tokens" if num_cut else ""
    print(f"{name}: {len(distinct):,} texts, {sum(len(each.tokens) for each in laid):,} tokens{cut}")
    return dict(zip(distinct, laid, strict=True))


def _finetune(out: Path, config: RetrieverConfig, inputs: _Inputs, give_up: GiveUp | None) -> None:
    """Train from the last checkpoint on, keep the best weights, and write what came out."""
    model, groups = _start(config, inputs)
    model.to(inputs.device)
    print(f"{config.task}: {len(inputs.questions):,} questions, on {inputs.device}, {str(inputs.dtype)[6:]}, "
          f"{inputs.engine.name if inputs.engine else 'transformers'}")  # fmt: skip
    temperature = config.temperature or retrieval_task(config.task).default_temperature
    loss = RetrievalLoss(temperature, config.normalize_scores)
    optimizer = StableAdamW(
        groups,
        lr=config.lr,
        betas=(config.optim.beta1, config.optim.beta2),
        eps=config.optim.eps,
        kernels=find_optimizer_kernels(inputs.device),
    )
    steps = _Steps(config, inputs)

    def batches_from(first: int) -> Iterator[Batch]:
        for step in range(first, steps.lessons.num_steps):
            parts, comparison = steps.step(step)
            yield from loss.micro_batches(
                model, parts, comparison, step_seed=derive_seed(config.seed, step), device=inputs.device,
                dtype=inputs.dtype,
            )  # fmt: skip

    rows = digest_of_rows(steps.lessons.num_steps, [], _learned_from(config, inputs))
    tuning = Tuning(
        out=out, rows=rows, model=model, loss=loss, optimizer=optimizer,
        plan=LinearPlan(steps.lessons.num_steps, config.lr, config.warmup, steps.num_parts),
        steps_per_epoch=steps.lessons.steps_per_epoch, num_tokens=config.epochs * sum(steps.lessons.lengths),
        seed=config.seed, device=inputs.device, dtype=inputs.dtype, metric=config.metric,
        score=(lambda: _mean(_scores(inputs, model, "dev"))) if config.dev else None,
        scorings_per_epoch=config.scorings_per_epoch, patience=config.patience, save_every_s=config.checkpoint.every_s,
        give_up=give_up,
    )  # fmt: skip
    _write(out, config, inputs, model, tune(tuning, batches_from))


def _learned_from(config: RetrieverConfig, inputs: _Inputs) -> Iterator[np.ndarray]:
    """Yield what questions became, but for what a model finds for them: another device may find its equal."""
    for question in inputs.questions:
        yield inputs.queries[question.query].tokens
        for passage in (question.answer, *(() if config.mined_by else question.others)):
            yield inputs.passages[passage].tokens
        if question.scores is not None:
            yield question.scores


class _Steps:
    """What each step compares, as micro-batches; all a function of the seed and the step."""

    def __init__(self, config: RetrieverConfig, inputs: _Inputs) -> None:
        self._inputs, self._budget = inputs, config.budget_tokens
        lengths = [
            len(inputs.queries[each.query].tokens)
            + sum(len(inputs.passages[text].tokens) for text in (each.answer, *each.others))
            for each in inputs.questions
        ]
        self.lessons = ExampleSampler(lengths, config.batch, config.epochs, config.seed, config.budget_tokens)

    def num_parts(self, step: int) -> int:
        """Number of micro-batches of a step."""
        return len(self._groups(self._texts(step)[0]))

    def step(self, step: int) -> tuple[list[Batch], Comparison]:
        """Return the micro-batches of a step, and what is compared over all of them."""
        texts, questions, candidates, known = self._texts(step)
        fits = torch.zeros(len(questions), len(texts) - len(questions), dtype=torch.bool)
        for question, passage in known:
            fits[question, passage] = True
        late = self._inputs.vectors.pooling == "tokens"
        teacher = [each.scores for each in questions if each.scores is not None]
        comparison = Comparison(
            num_queries=len(questions),
            lengths=[each.num_rows if late else 1 for each in texts],
            known=fits.to(self._inputs.device),
            candidates=candidates if teacher else None,
            teacher=teacher or None,
        )
        return [encode_with_template(group) for group in self._groups(texts)], comparison

    def _texts(self, step: int) -> tuple[list[EncodedText], list[Question], list[list[int]], list[tuple[int, int]]]:
        numbers = [number for part in self.lessons.micro_batches(step) for number in part]
        questions = [self._inputs.questions[number] for number in numbers]
        passages, candidates, known = step_of(questions)
        laid = [self._inputs.queries[each.query] for each in questions]
        return laid + [self._inputs.passages[text] for text in passages], questions, candidates, known

    def _groups(self, texts: Sequence[EncodedText]) -> list[list[EncodedText]]:
        return list(batch_by_size(texts, self._budget, lambda each: len(each.tokens)))


def _start(config: RetrieverConfig, inputs: _Inputs) -> tuple[Embedder, list[dict[str, Any]]]:
    """Return the model to begin with, and its parameters in groups."""
    if inputs.engine is None:
        tokenizer = inputs.tokenizer
        torch.manual_seed(config.seed)  # what the folder lacks, as a BERT's pooler, is drawn
        foreign = load_foreign_encoder(inputs.folder, tokenizer.pad_id, tokenizer.sep_id, torch.float32)
        model = Embedder(foreign, inputs.vectors.pooling, _start_projection(config, inputs, foreign.hidden_size))
        groups = parameter_groups(foreign, config.weight_decay)
        if model.projection is not None:
            scale = (config.projection_lr or config.lr) / config.lr
            groups += [{"params": [model.projection.weight], "weight_decay": config.weight_decay, "lr_scale": scale,
                        "lr": config.lr * scale, "max_lr": config.lr * scale}]  # fmt: skip
        return model, groups
    encoder = load_model(inputs.folder, dtype=torch.float32, engine=inputs.engine).encoder
    if config.dropout is not None:
        encoder.set_dropout(config.dropout)
    projection = _start_projection(config, inputs, encoder.config.hidden_size)
    model = Embedder(encoder, inputs.vectors.pooling, projection)
    above = config.projection_lr or config.lr
    return model, groups_by_depth(model, encoder, config.lr, above, config.layer_decay, config.weight_decay)


def _start_projection(config: RetrieverConfig, inputs: _Inputs, width: int) -> nn.Linear | None:
    """Return the linear layer behind the encoder: that of the folder, or a new one from the seed."""
    if not retrieval_task(config.task).per_token or config.projection is None:
        return None
    found = load_projection(inputs.folder, width)
    if found is not None and found.out_features == config.projection:
        return found.float()
    projection = nn.Linear(width, config.projection, bias=False)
    generator = torch.Generator().manual_seed(config.seed)
    nn.init.normal_(projection.weight, std=width**-0.5, generator=generator)
    return projection


def _scores(inputs: _Inputs, model: Embedder, split: str) -> list[Retrieval]:
    bert = ModernBert(
        inputs.tokenizer, model.model, vectors=inputs.vectors, projection=model.projection, max_length=inputs.longest
    )
    training = model.training
    model.eval()
    with autocast(inputs.device, inputs.dtype):
        found = [score_collection(collection, rank_by_model(bert)) for collection in inputs.collections[split]]
    model.train(training)
    return found


def _mean(scores: Sequence[Retrieval]) -> dict[str, float]:
    return {name: sum(getattr(each, name) for each in scores) / len(scores) for name in _METRICS}


def _write(out: Path, config: RetrieverConfig, inputs: _Inputs, model: Embedder, position: TrainState) -> None:
    """Write the model, then scores: with them the run is finished. No error in scoring loses the model."""
    model.cpu()
    longest, encoder = inputs.longest, model.model

    def write_beside(partial: Path) -> None:
        write_vectors(partial, inputs.vectors, model.projection, longest)

    def write_tokenizer_too(partial: Path) -> None:
        inputs.tokenizer.save_folder(partial, longest)
        write_beside(partial)

    if encoder.family != MODERNBERT:
        save_foreign(out / "model", encoder, inputs.folder, write_beside)
    else:
        save_folder(out / "model", encoder, write_tokenizer_too, replace=True)
    if config.stanford:
        assert model.projection is not None, "checked before anything was begun"
        write_stanford(
            out / "stanford", out / "model", encoder.base_model_prefix, load_vectors(out / "model"), model.projection
        )
    model.to(inputs.device)
    written: dict[str, Any] = {
        "metric": config.metric,
        "best_step": position.best_step,
        "dev": position.best_scores,
        "stopped": position.stopped,
    }
    if inputs.collections["test"]:
        scores = _scores(inputs, model, "test")
        named = zip(inputs.collections["test"], scores, strict=True)
        written["test"] = {collection.name: asdict(each) for collection, each in named}
        print("test: " + ", ".join(f"{name} {value:.4f}" for name, value in _mean(scores).items()))
    write_file(out / "scores.json", json.dumps(written, indent=2) + "\n")
