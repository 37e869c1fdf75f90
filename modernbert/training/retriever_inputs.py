"""Inputs of fine-tuning for retrieval: queries, passages, mined negatives and collections, encoded once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch

from modernbert.checkpoints.folder import ModelFolder
from modernbert.data.beir import Collection, Rank, is_collection, judgments_file, read_collection, read_texts
from modernbert.data.hard_negatives import hard_negatives
from modernbert.data.labeled_rows import check_files, read_rows
from modernbert.data.rows import Row
from modernbert.data.unused_columns import check_ignored, without_columns
from modernbert.devices import choose_precision
from modernbert.engines.engine import Engine
from modernbert.engines.registry import choose_engine
from modernbert.errors import InputError, counted
from modernbert.evaluation.retrieval_eval import rank_by_model, rank_by_words
from modernbert.extras import require
from modernbert.inference.modernbert import ModernBert
from modernbert.model.embedder import document_template, query_template
from modernbert.model.embedding_config import EmbeddingConfig
from modernbert.tasks.retrieval_examples import (
    RetrievalExample,
    examples_of_collection,
    examples_of_ids,
    examples_of_rows,
    share_positives,
)
from modernbert.tasks.task import retrieval_task
from modernbert.tokenizer.input_templates import EncodedText, InputTemplate
from modernbert.tokenizer.tokenizer import Tokenizer
from modernbert.training.finetuning_loop import check_sharding
from modernbert.training.retriever_config import RetrieverConfig

__all__ = ["RetrieverInputs", "open_inputs"]


@dataclass(frozen=True)
class RetrieverInputs:
    """The opened and checked inputs of a run; every text is encoded once."""

    folder: ModelFolder
    vectors: EmbeddingConfig
    examples: list[RetrievalExample]
    queries: dict[str, EncodedText]
    passages: dict[str, EncodedText]
    collections: dict[str, list[Collection]]
    device: torch.device
    dtype: torch.dtype
    engine: Engine | None


def open_inputs(config: RetrieverConfig, device: torch.device) -> RetrieverInputs:
    """Read the queries, passages and collections of a config.

    Raises: InputError for inputs that cannot be learned from, or do not fit together.
    """
    dtype = choose_precision(config.dtype, device, "dtype")
    folder = ModelFolder.open(config.model, config.revision)
    folder.check_not_int8()
    if not folder.is_modernbert:
        require(str(folder), "transformers")
    check_sharding(config, folder.family)
    files = [source for source in config.train if not is_collection(Path(source))]
    check_files(files, config.train_split, config.subset)
    tokenizer, most = folder.tokenizer, folder.num_positions
    is_changed = config.layer_decay != 1.0 or config.dropout is not None or config.engine != "auto"
    if is_changed and not folder.is_modernbert:
        raise InputError(f"`layer_decay`, `dropout`, `engine`: found one set, but {folder} is a {folder.family}")
    task = retrieval_task(config.task)
    vectors = replace(config.vectors, pooling="tokens") if task.per_token else config.vectors
    for name in ("query_length", "document_length"):
        if (getattr(vectors, name) or 0) > most:
            raise InputError(f"vectors.{name}: found {getattr(vectors, name):,}, but {folder} takes at most {most:,}")
    if folder.is_modernbert and task.per_token and config.projection is not None:
        folder.load_projection(folder.config.hidden_size)  # refuses one that does not fit
    for prompt in (vectors.query_prompt, vectors.document_prompt):
        if config.stanford and tokenizer.token_to_id(prompt.strip()) is None:
            raise InputError(f"vectors: found the mark {prompt.strip()!r}, which is no token of {folder}")
    collections = {
        name: [read_collection(Path(each), getattr(config, f"{name}_split"), name) for each in getattr(config, name)]
        for name in ("dev", "test")
    }
    _check_apart(config)
    texts_of_ids = None if config.texts is None else read_texts(Path(config.texts))
    examples = _examples(config, texts_of_ids, device)
    config.check_scorings(len(examples))
    if len({example.scores is None for example in examples}) > 1:
        raise InputError("train: some sources have scores and others none, expected all or none")
    if config.temperature is not None and config.normalize_scores and examples[0].scores is not None:
        raise InputError(
            f"temperature: found {config.temperature}, but scores that are compared with a teacher's are stretched to "
            "reach from 0 to 1, whatever it is; expected none, or `normalize_scores=False`"
        )
    template = query_template(vectors, folder.max_length)
    queries = _encode(tokenizer, template, "queries", [example.query for example in examples])
    template = document_template(vectors, folder.max_length, tokenizer)
    texts = [text for example in examples for text in (example.positive, *example.others)]
    passages = _encode(tokenizer, template, "passages", texts)
    return RetrieverInputs(
        folder, vectors, examples, queries, passages, collections, device, dtype,
        choose_engine(config.engine, device, dtype, folder.config) if folder.is_modernbert else None,
    )  # fmt: skip


def _check_apart(config: RetrieverConfig) -> None:
    """Print which judgments are both trained on and scored by.

    Raises: InputError for judgments under two names: a folder with one file for all splits.
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
                    f"{name}_split: found {split!r} and `train_split={config.train_split}`, but {path} is one set of "
                    "judgments for both; expected another folder to score by"
                )
            print(f"{name}: {path} is also trained on; its scores measure memorization")


def _examples(
    config: RetrieverConfig, texts_of_ids: tuple[dict[str, str], dict[str, str]] | None, device: torch.device
) -> list[RetrievalExample]:
    """Read the queries of all sources, and mine the negatives that the config asks for."""
    rows = {
        source: read_rows([source], config.train_split, config.subset)
        for source in config.train
        if not is_collection(Path(source))
    }
    check_ignored(config.ignore_columns, rows.values())
    read = [_read(config, source, rows.get(source), texts_of_ids) for source in config.train]
    # An answer to a query in one source is no negative in another.
    examples = share_positives([example for of_source, _ in read for example in of_source])
    if not config.negatives:
        return examples
    rank = rank_by_model(_miner(config, device)) if config.mined_by else rank_by_words
    found, left = [], iter(examples)
    for source, (of_source, pool) in zip(config.train, read, strict=True):
        found += _with_negatives(config, source, list(islice(left, len(of_source))), pool, rank)
    return found


def _read(
    config: RetrieverConfig,
    source: str,
    rows: Sequence[Row] | None,
    texts_of_ids: tuple[dict[str, str], dict[str, str]] | None,
) -> tuple[list[RetrievalExample], list[str]]:
    """Return the queries of a source, and the passages to mine negatives from.

    `rows` are None for a collection. `texts_of_ids` are documents and queries by their ids.
    """
    if rows is None:
        collection = read_collection(Path(source), config.train_split, "train")
        examples = examples_of_collection(collection.queries, collection.documents, collection.judgments)
        if not examples:
            raise InputError(f"{source}: no relevant document of the split {config.train_split!r} has a text")
        return examples, list(dict.fromkeys(collection.documents.values()))
    rows = without_columns(rows, config.ignore_columns)
    if texts_of_ids is None:
        examples = examples_of_rows(rows, retrieval_task(config.task))
    else:
        documents, queries = texts_of_ids
        examples = examples_of_ids(rows, queries, documents, retrieval_task(config.task))
    return examples, list(dict.fromkeys(text for each in examples for text in (each.positive, *each.others)))


def _with_negatives(
    config: RetrieverConfig, source: str, examples: Sequence[RetrievalExample], pool: Sequence[str], rank: Rank
) -> list[RetrievalExample]:
    if any(example.scores is not None for example in examples):
        raise InputError(f"negatives: found {config.negatives}, but {source} has a teacher's scores for its passages")
    answers = [example.positives for example in examples]
    mined = hard_negatives([example.query for example in examples], answers, pool, config.negatives, rank)
    return [replace(example, others=[*example.others, *more]) for example, more in zip(examples, mined, strict=True)]


def _miner(config: RetrieverConfig, device: torch.device) -> ModernBert:
    assert config.mined_by is not None
    return ModernBert.load(config.mined_by, device=str(device), dtype=config.dtype)


def _encode(tokenizer: Tokenizer, template: InputTemplate, name: str, texts: Sequence[str]) -> dict[str, EncodedText]:
    distinct = list(dict.fromkeys(texts))
    encoded, num_truncated = template.encode(tokenizer, distinct)
    cut = f", {num_truncated:,} cut at {template.max_length:,} tokens" if num_truncated else ""
    num_tokens = sum(len(each.tokens) for each in encoded)
    print(f"{name}: {counted(len(distinct), 'text')}, {counted(num_tokens, 'token')}{cut}")
    return dict(zip(distinct, encoded, strict=True))
