"""Fine-tuning on labeled rows: from a `FinetuneConfig` to a run folder.

The run folder has `config.yaml`, `log.jsonl`, `timing.jsonl`, `model/` with the weights that scored best on the dev
rows, `predictions.jsonl` if there are test rows, and `scores.json`, which is written last. A stopped run continues from
its last checkpoint. Everything that depends on the task is asked of the `ClassifierTask`.

Source: the paper's fine-tuning, appendix E.1: linear decay after a warm-up of a tenth of the steps, early stopping.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modernbert.batch import batch_by_size
from modernbert.checkpoints.folder import ModelFolder
from modernbert.checkpoints.model_card import CARD, Scores
from modernbert.data.example_sampler import ExampleSampler
from modernbert.data.labeled_rows import check_files, read_rows
from modernbert.data.rows import Row
from modernbert.data.unused_columns import check_ignored, check_signals, without_columns
from modernbert.devices import choose_device, choose_precision, dtype_name, keep_freed_memory
from modernbert.engines.engine import Engine
from modernbert.engines.registry import PORTABLE, choose_engine
from modernbert.errors import InputError, counted
from modernbert.extras import require
from modernbert.files import write_file
from modernbert.model.interface import Model
from modernbert.tasks.examples import Examples, RowEncoder, batch_of
from modernbert.tasks.metrics import Metric, scores_of
from modernbert.tasks.task import ClassifierTask, Predictions, classifier_task
from modernbert.training.distributed import World
from modernbert.training.finetuning_config import FinetuneConfig
from modernbert.training.finetuning_loop import (
    FinetuneRecipe,
    FinetuneResult,
    LabeledBatches,
    StopRule,
    card_of,
    check_finished,
    check_sharding,
    digest_of_rows,
    predict,
)
from modernbert.training.training_run import run_in_folder

__all__ = ["FinetuneConfig", "check_inputs", "finetune"]


@dataclass(frozen=True)
class _Inputs:
    """The opened and checked inputs of a run."""

    task: ClassifierTask
    labels: list[str]
    splits: dict[str, Examples]
    metrics: dict[str, Metric]
    metric: str
    device: torch.device
    dtype: torch.dtype
    engine: Engine | None
    folder: ModelFolder


def finetune(config: FinetuneConfig, stop_rule: StopRule | None = None) -> Path:
    """Fine-tune a model, or continue a stopped run, and return the model folder.

    Args:
        config: The options.
        stop_rule: Is asked after each scoring whether the run may stop.

    Raises: InputError for inputs that cannot be learned from, before anything is written; and for errors that only a
    run can show, such as a loss that is not finite.
    """
    return run_in_folder(
        config, "scores.json", lambda world, device: _open_inputs(config, device),
        lambda inputs, world: _finetune(config, inputs, world, stop_rule),
        check_finished=lambda inputs: check_finished(config, _digests(config, inputs)),
    )  # fmt: skip


def check_inputs(config: FinetuneConfig) -> None:
    """Read and check all inputs of a run without starting it.

    Raises: InputError for inputs that cannot be learned from.
    """
    config.check()
    _open_inputs(config, choose_device(config.device))


def _open_inputs(config: FinetuneConfig, device: torch.device) -> _Inputs:
    dtype = choose_precision(config.dtype, device, "dtype")
    folder = ModelFolder.open(config.model, config.revision)
    folder.check_not_int8()
    task = classifier_task(config.task)
    if not folder.is_modernbert:
        _check_family(config, task, folder)
    check_sharding(config, folder.family)
    for name in ("train", "dev", "test"):
        check_files(getattr(config, name), getattr(config, f"{name}_split"), config.subset)
    tokenizer = folder.tokenizer
    read = {
        name: read_rows(getattr(config, name), getattr(config, f"{name}_split"), config.subset)
        for name in ("train", "dev", "test")
        if getattr(config, name)
    }
    check_ignored(config.ignore_columns, read.values())
    rows = {name: _prepare(config, task, some) for name, some in read.items()}
    _report_shared_rows(rows)
    labels = task.labels(rows["train"], config.columns)
    encoder = RowEncoder(tokenizer, config.columns, _max_length(config, folder), config.cut)
    splits = {name: task.examples(some, labels, encoder) for name, some in rows.items()}
    for name, examples in splits.items():
        _report_split(name, examples)
    config.check_scorings(len(splits["train"].items))
    metrics = task.metrics_of(labels, splits.values())
    known = task.deciding_metrics(metrics, labels)
    if config.metric is not None and config.metric not in known:
        raise InputError(f"metric: found {config.metric!r}, expected {', '.join(known)}")
    engine = choose_engine(config.engine, device, dtype, folder.config) if folder.is_modernbert else None
    return _Inputs(task, labels, splits, metrics, config.metric or known[0], device, dtype, engine, folder)


def _check_family(config: FinetuneConfig, task: ClassifierTask, folder: ModelFolder) -> None:
    """Refuse options that models of other families do not have."""
    require(str(folder), "transformers")
    if not task.other_families:
        raise InputError(f"task: found {config.task!r}, but {folder} is a {folder.family}")
    for name, usual in (("layer_decay", 1.0), ("head_lr", None), ("dropout", None), ("engine", "auto")):
        if getattr(config, name) != usual:
            raise InputError(f"{name}: found {getattr(config, name)!r}, but {folder} is a {folder.family}")


def _max_length(config: FinetuneConfig, folder: ModelFolder) -> int:
    """Return the most tokens of an example."""
    length = config.max_len or folder.max_length
    if length > folder.num_positions:
        raise InputError(f"max_len: found {length:,}, but {folder} takes at most {folder.num_positions:,} tokens")
    return length


def _prepare(config: FinetuneConfig, task: ClassifierTask, rows: Sequence[Row]) -> list[Row]:
    """Return the rows of a split in the form of the task, without the columns to ignore.

    Raises: InputError naming a row with a column that looks like something to learn from, and is not read.
    """
    rows = task.prepare(without_columns(rows, config.ignore_columns), config.columns)
    check_signals(rows, task.name, task.signals_beside(config.columns), task.columns_read(config.columns))
    return rows


def _report_shared_rows(rows: Mapping[str, Sequence[Row]]) -> None:
    learned = {row.origin for row in rows["train"]}
    for name in ("dev", "test"):
        if shared := sum(row.origin in learned for row in rows.get(name, ())):
            what = "row is" if shared == 1 else "rows are"
            print(f"{name}: {shared:,} {what} also trained on, so the score measures memorization")


def _report_split(name: str, examples: Examples) -> None:
    more = "".join(f", {number:,} {what}" for number, what in examples.losses() if number)
    print(f"{name}: {counted(len(examples.items), 'row')}, {counted(examples.num_tokens, 'token')}{more}")


def _start(config: FinetuneConfig, inputs: _Inputs) -> Model:
    """Return the model to start from."""
    engine = inputs.engine or PORTABLE
    model = inputs.folder.load_classifier(config.task, inputs.labels, config.seed, engine=engine)
    # Saved with the model, so that it never scores single texts.
    model.reads_pairs = model.reads_pairs or config.columns.pair is not None
    if config.dropout is not None:
        model.encoder.set_dropout(config.dropout)
    return model


def _finetune(config: FinetuneConfig, inputs: _Inputs, world: World, stop_rule: StopRule | None) -> None:
    """Train from the last checkpoint, keep the best weights, and write the results."""
    keep_freed_memory()
    model = _start(config, inputs).to(inputs.device)
    engine = inputs.engine.name if inputs.engine else "transformers"
    computation = f"device {inputs.device}, dtype {dtype_name(inputs.dtype)}, engine {engine}"
    print(f"{config.task}: {counted(len(inputs.labels), 'label')}, {computation}")
    examples = inputs.splits["train"].items
    lengths = [len(each.tokens) for each in examples]
    sampler = ExampleSampler(lengths, config.batch, config.epochs, config.seed, config.budget_tokens)
    batches = LabeledBatches(sampler, lambda numbers: batch_of([examples[number] for number in numbers]), world)
    recipe = FinetuneRecipe(
        config, model, inputs.task.loss(_class_weights(config, inputs)), config.head_lr, batches,
        rows=_digest(config, inputs, "train"), num_tokens=config.epochs * sum(lengths), engine=engine,
        dtype=inputs.dtype, metric=inputs.metric,
        score=(lambda plain: _scores(config, inputs, plain, "dev")[0]) if "dev" in inputs.splits else None,
        stop_rule=stop_rule,
    )  # fmt: skip
    tuned = recipe.train(inputs.device)
    with world.together():
        if world.is_main:
            _write(Path(config.output), config, inputs, recipe.plain, tuned)


def _digests(config: FinetuneConfig, inputs: _Inputs) -> dict[str, str]:
    """Return a digest of the rows of each split."""
    return {name: _digest(config, inputs, name) for name in inputs.splits}


def _digest(config: FinetuneConfig, inputs: _Inputs, split: str) -> str:
    items = inputs.splits[split].items
    arrays = (each for item in items for each in (item.tokens, item.labels, item.label_positions) if each is not None)
    return digest_of_rows(config.epochs * config.steps_per_epoch(len(items)), inputs.labels, arrays)


def _class_weights(config: FinetuneConfig, inputs: _Inputs) -> torch.Tensor | None:
    """Return the weight of each class, which is inverse to its frequency, if that was asked for."""
    if config.class_weights == "none":
        return None
    labels = np.concatenate([each.labels for each in inputs.splits["train"].items])
    counts = np.bincount(labels, minlength=len(inputs.labels))
    weights = torch.tensor(counts.sum() / (len(counts) * np.maximum(counts, 1)), dtype=torch.float32)
    return weights.to(inputs.device)


def _scores(config: FinetuneConfig, inputs: _Inputs, model: Model, split: str) -> tuple[dict[str, float], Predictions]:
    """Return the metrics of a split, and the predictions."""
    examples = inputs.splits[split]
    groups = batch_by_size(examples.items, config.budget_tokens, lambda item: len(item.tokens))
    logits = predict(model, map(batch_of, groups), device=inputs.device, dtype=inputs.dtype)
    predictions = inputs.task.predict(logits, examples, inputs.labels)
    return scores_of(inputs.metrics, predictions.found, predictions.expected), predictions


def _write(out: Path, config: FinetuneConfig, inputs: _Inputs, model: Model, tuned: FinetuneResult) -> None:
    """Write the model, predictions and scores.

    The model is first, so that an error in scoring does not lose it. `scores.json` marks the run as finished.
    """
    model.cpu()
    # The limit of the start folder stays, unless the model was trained on longer texts.
    max_length = max(inputs.folder.max_length, config.max_len or 0)
    sizes = {name: len(examples.items) for name, examples in inputs.splits.items()}
    card = card_of(config, tuned, sizes, inputs.dtype)
    facts = ModelFolder.save(
        out / "model", model, inputs.folder.tokenizer, max_length, source=inputs.folder.path, card=card, replace=True
    )
    model.to(inputs.device)
    written: dict[str, Any] = {
        "metric": inputs.metric,
        "best_step": tuned.best_step,
        "dev": tuned.best_scores,
        "stopped": tuned.stopped,
        "data": _digests(config, inputs),
    }
    for name, examples in inputs.splits.items():
        for fact, value in examples.facts().items():
            written.setdefault(fact, {})[name] = value
    if "test" in inputs.splits:
        written["test"], predictions = _scores(config, inputs, model, "test")
        lines = [
            json.dumps({"row": origin, "predicted": each}, ensure_ascii=False)
            for origin, each in zip(inputs.splits["test"].origins, predictions.rows, strict=True)
        ]
        write_file(out / "predictions.jsonl", "\n".join(lines) + "\n")
        print("test: " + ", ".join(f"{name} {value:.4f}" for name, value in written["test"].items()))
        card = replace(card, scores=[*card.scores, Scores("test", written["test"], config.test)])
        write_file(out / "model" / CARD, card.text(facts))
    write_file(out / "scores.json", json.dumps(written, indent=2) + "\n")
