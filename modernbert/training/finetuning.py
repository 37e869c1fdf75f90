"""Labelled rows -> a model that classifies, regresses, reranks, chooses, tags or extracts.

In: a `FinetuneConfig`. Out: a folder with `config.yaml`, `log.jsonl`, `timing.jsonl`, and at the end `model/` with the
weights that did best on the dev rows, `predictions.jsonl` where there are test rows, and `scores.json`, the last.
Stopped and started again, it goes on from its last checkpoint.

Source: the paper's fine-tuning, appendix E.1: linear decay after a warm-up of a tenth of the steps, early stopping.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from modernbert.batch import Batch, batch_by_size
from modernbert.checkpoints.folder import load_config, load_model, save_folder
from modernbert.checkpoints.sentence_transformers_format import max_length_of
from modernbert.checkpoints.transformers_models import (
    OURS,
    ForeignClassifier,
    family_of,
    load_foreign_classifier,
    longest_of,
    save_foreign,
    vocabulary_of,
)
from modernbert.config_files import MISSING
from modernbert.data.example_sampler import ExampleSampler
from modernbert.data.labeled_rows import Row, check_files, read_rows
from modernbert.data.unused_columns import check_signals, without_columns
from modernbert.devices import choose_device, choose_precision, keep_freed_memory
from modernbert.engines.attention import choose_backend
from modernbert.errors import InputError
from modernbert.evaluation.metrics import (
    LIBRARIES,
    METRICS,
    answer_scores,
    label_scores,
    multilabel_scores,
    number_scores,
    pair_scores,
    tag_scores,
)
from modernbert.extras import require
from modernbert.files import only_process, write_file
from modernbert.hub_download import find_folder
from modernbert.model.encoder import Encoder
from modernbert.model.heads import TASKS, Classifier, encoder_of, start_classifier
from modernbert.tasks.examples import (
    Columns,
    Examples,
    batch_of,
    character_spans,
    chosen,
    labelled,
    multilabelled,
    names_of,
    names_of_many,
    pairs_of_negatives,
    rated,
    tag_names_of,
    tagged,
)
from modernbert.tasks.question_answering import Passage, answer_in, qa_examples
from modernbert.tokenizer.tokenizer import Tokenizer
from modernbert.training.distributed import Loss
from modernbert.training.finetuning_config import FinetuneOptions
from modernbert.training.finetuning_loop import (
    GiveUp,
    LinearPlan,
    TrainState,
    Tuning,
    digest_of_rows,
    groups_by_depth,
    predict,
    tune,
)
from modernbert.training.losses import bce_loss, cross_entropy_loss, mse_loss, multiple_choice_loss, span_loss
from modernbert.training.optimizers import StableAdamW, fused_runs_on, parameter_groups
from modernbert.training.run_folder import begin_run_folder

__all__ = ["FinetuneConfig", "check_inputs", "finetune"]

# Fields of Columns that each task reads.
_COLUMNS = {
    "classify": ("text", "pair", "label"),
    "multilabel": ("text", "pair", "label"),
    "regress": ("text", "pair", "label"),
    "rerank": ("text", "pair", "label"),
    "choose": ("text", "choices", "label"),
    "extract": ("text", "pair", "answers"),
    "tag": ("words", "tags", "text", "spans"),
}


@dataclass
class FinetuneConfig(FinetuneOptions):
    """Fine-tune a model on labeled rows."""

    task: Literal["classify", "multilabel", "regress", "rerank", "choose", "tag", "extract"] = MISSING
    """What the model learns."""
    columns: Columns = field(default_factory=Columns)
    """Names of the columns."""
    max_len: int | None = None
    """Maximum tokens of a text; that of the model, by default."""
    cut: bool = False
    """Cut longer texts, instead of refusing them."""
    head_lr: float | None = None
    """Peak learning rate of the new head; `lr`, by default."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: an error on a label weighs the more, the rarer the label is."""

    def check(self) -> None:
        """Check all values that can be checked without opening a file.

        Raises: InputError naming the field.
        """
        if self.task not in TASKS:
            raise InputError(f"task: found {self.task!r}, expected {', '.join((*TASKS, 'embed', 'late'))}")
        super().check()
        if self.task == "rerank" and self.columns.pair is None:
            raise InputError("columns.pair: found none, expected the column of the texts that are ranked")
        if self.class_weights != "none" and self.task not in ("classify", "tag"):
            raise InputError(f"class_weights: found {self.class_weights!r}, but {self.task} has no classes")
        for name, of_columns in vars(Columns()).items():
            found = getattr(self.columns, name)
            if found != of_columns and name not in _COLUMNS[self.task]:
                raise InputError(
                    f"columns.{name}: found {found!r}, but {self.task} reads {', '.join(_COLUMNS[self.task])}"
                )
        if not self.dev and (self.patience is not None or self.metric is not None):
            raise InputError("dev: found no rows, expected some to choose and stop by (patience, metric)")
        if self.dev or self.test:
            require(f"task={self.task}", *LIBRARIES.get(self.task, ()))


@dataclass(frozen=True)
class _Inputs:
    """What a config names, opened and checked."""

    tokenizer: Tokenizer
    labels: list[str]
    splits: dict[str, Examples]
    metric: str
    device: torch.device
    dtype: torch.dtype
    backend: str
    folder: Path
    passages: dict[str, list[Passage]]
    """Of each split, what leads from tokens back to answers; empty for other tasks."""


def finetune(config: FinetuneConfig, give_up: GiveUp | None = None) -> Path:
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


def check_inputs(config: FinetuneConfig) -> None:
    """Read all that a config names, as a run does before it begins.

    Raises: InputError for what cannot be learned from.
    """
    config.check()
    _open_inputs(config)


def _open_inputs(config: FinetuneConfig) -> _Inputs:
    device = choose_device(config.device)
    dtype = choose_precision(config.dtype, device, "dtype")
    folder = find_folder(config.model)
    is_foreign = family_of(folder) != OURS
    _check_family(config, folder, is_foreign)
    for name in ("train", "dev", "test"):
        check_files(getattr(config, name), getattr(config, f"{name}_split"), config.subset)
    tokenizer = Tokenizer.load(folder, vocabulary_of(folder) if is_foreign else load_config(folder).vocab_size)
    most = longest_of(folder) if is_foreign else load_config(folder).max_position_embeddings
    longest = config.max_len or min(max_length_of(folder) or most, most)
    if longest > most:
        raise InputError(f"max_len: found {longest:,}, but {folder} takes at most {most:,} tokens")
    rows = {name: _read(config, name) for name in ("train", "dev", "test") if getattr(config, name)}
    learned = {row.origin for row in rows["train"]}
    for name in ("dev", "test"):
        if shared := sum(row.origin in learned for row in rows.get(name, ())):
            print(f"{name}: {shared:,} rows are learned from too, the scores of these say what was learned by heart")
    labels = _labels(config, rows["train"])
    splits: dict[str, Examples] = {}
    passages: dict[str, list[Passage]] = {}
    for name, some in rows.items():
        if config.task == "extract":
            splits[name], passages[name] = qa_examples(some, tokenizer, config.columns, longest, cut=config.cut)
        else:
            splits[name] = _examples(config, some, tokenizer, labels, longest)
    for name, examples in splits.items():
        _tell(name, examples)
    graded = config.task == "rerank" and _is_graded(splits)
    metric = _metric(config.metric, "regress" if graded else config.task, labels)
    backend = "transformers" if is_foreign else choose_backend(config.engine, device, dtype, load_config(folder))
    return _Inputs(
        tokenizer, labels, splits, metric, device, dtype, backend, folder, passages
    )  # fmt: skip


def _read(config: FinetuneConfig, name: str) -> list[Row]:
    """Read the rows of train, dev or test, and make pairs of those that have negatives.

    Raises: InputError naming a row with a column that looks like something to learn from, and is not read.
    """
    columns = config.columns
    rows = read_rows(getattr(config, name), getattr(config, f"{name}_split"), config.subset)
    rows = without_columns(rows, config.ignore_columns)
    if config.task == "rerank":
        rows = pairs_of_negatives(rows, columns)
    used = [getattr(columns, each) for each in _COLUMNS[config.task]]
    if config.task == "extract" and columns.pair is None:
        used.append("context")
    check_signals(rows, config.task, [each for each in used if each is not None])
    return rows


def _is_graded(splits: Mapping[str, Examples]) -> bool:
    """Say whether the labels of pairs are grades, and not only 0 and 1.

    Raises: InputError naming the row, for one outside of 0 to 1.
    """
    for examples in splits.values():
        for example, origin in zip(examples.items, examples.origins, strict=True):
            if not 0 <= example.labels[0] <= 1:
                raise InputError(f"{origin}: the label of a pair is {example.labels[0]:g}, expected 0 to 1")
    return any(example.labels[0] not in (0, 1) for examples in splits.values() for example in examples.items)


def _metric(asked: str | None, task: str, labels: Sequence[str]) -> str:
    """Return the metric that decides, by default the first of the task's; of tags that mark no spans, accuracy."""
    known = METRICS[task]
    if task == "tag" and not any(label.startswith(("B-", "I-")) for label in labels):
        known = ("accuracy",)
    if task == "classify" and len(labels) != 2:
        known = tuple(name for name in known if name != "f1")
    if asked is not None and asked not in known:
        raise InputError(f"metric: found {asked!r}, expected {', '.join(known)}")
    return asked or known[0]


def _labels(config: FinetuneConfig, rows: Sequence[Row]) -> list[str]:
    if config.task == "classify":
        return names_of(rows, config.columns)
    if config.task == "multilabel":
        return names_of_many(rows, config.columns)
    if config.task == "extract":
        return ["start", "end"]
    return tag_names_of(rows, config.columns) if config.task == "tag" else ["score"]


def _examples(
    config: FinetuneConfig, rows: Sequence[Row], tokenizer: Tokenizer, labels: Sequence[str], longest: int
) -> Examples:
    if config.task == "tag":
        return tagged(rows, tokenizer, config.columns, labels, longest, cut=config.cut)
    if config.task == "choose":
        return chosen(rows, tokenizer, config.columns, longest, cut=config.cut)
    if config.task == "classify":
        return labelled(rows, tokenizer, config.columns, labels, longest, cut=config.cut)
    if config.task == "multilabel":
        return multilabelled(rows, tokenizer, config.columns, labels, longest, cut=config.cut)
    return rated(rows, tokenizer, config.columns, longest, cut=config.cut)


def _tell(name: str, examples: Examples) -> None:
    share = f" ({examples.share_unaligned:.1%} of {sum(map(len, examples.spans)):,})"
    counted = (
        (examples.num_cut, "texts cut"),
        (examples.num_words_cut, "words cut off with them"),
        (examples.num_unaligned, f"spans widened to whole words{share}"),
    )
    more = "".join(f", {number:,} {what}" for number, what in counted if number)
    print(f"{name}: {len(examples.items):,} rows, {sum(len(each.tokens) for each in examples.items):,} tokens{more}")


def _check_family(config: FinetuneConfig, folder: Path, is_foreign: bool) -> None:
    """Refuse what is known of our own models alone."""
    if is_foreign:
        require(str(folder), "transformers")
    if is_foreign and config.task in ("choose", "extract"):
        raise InputError(f"task: found {config.task!r}, but {folder} is a {family_of(folder)}")
    for name, usual in (("layer_decay", 1.0), ("head_lr", None), ("dropout", None), ("engine", "auto")):
        if is_foreign and getattr(config, name) != usual:
            raise InputError(f"{name}: found {getattr(config, name)!r}, but {folder} is a {family_of(folder)}")


def _start(config: FinetuneConfig, inputs: _Inputs) -> tuple[Classifier | ForeignClassifier, list[dict[str, Any]]]:
    """Return the model to begin with, and its parameters in groups."""
    if inputs.backend == "transformers":
        tokenizer = inputs.tokenizer
        foreign = load_foreign_classifier(
            inputs.folder, config.task, inputs.labels, config.seed, tokenizer.pad_id, tokenizer.sep_id
        )
        return foreign, parameter_groups(foreign, config.weight_decay)
    loaded = load_model(inputs.folder, dtype=torch.float32, backend=inputs.backend)
    model = start_classifier(loaded, config.task, inputs.labels, config.seed)
    # Kept in the folder, so that the model never scores single texts.
    model.reads_pairs = model.reads_pairs or (config.columns.pair is not None and config.task != "tag")
    encoder = encoder_of(model)
    assert isinstance(encoder, Encoder)
    if config.dropout is not None:
        encoder.set_dropout(config.dropout)
    head_lr = config.head_lr or config.lr
    return model, groups_by_depth(model, encoder, config.lr, head_lr, config.layer_decay, config.weight_decay)


def _finetune(out: Path, config: FinetuneConfig, inputs: _Inputs, give_up: GiveUp | None) -> None:
    """Train from the last checkpoint on, keep the best weights, and write what came out."""
    model, groups = _start(config, inputs)
    model.to(inputs.device)
    print(f"{config.task}: {len(inputs.labels)} labels, on {inputs.device}, {str(inputs.dtype)[6:]}, {inputs.backend}")
    optimizer = StableAdamW(
        groups,
        lr=config.lr,
        betas=(config.optim.beta1, config.optim.beta2),
        eps=config.optim.eps,
        fused=fused_runs_on(inputs.device),
    )
    examples = inputs.splits["train"].items
    lengths = [len(each.tokens) for each in examples]
    lessons = ExampleSampler(lengths, config.batch, config.epochs, config.seed, config.budget_tokens)

    def batches_from(first: int) -> Iterator[Batch]:
        for step in range(first, lessons.num_steps):
            for numbers in lessons.micro_batches(step):
                yield batch_of([examples[number] for number in numbers])

    arrays = (
        each for item in examples for each in (item.tokens, item.labels, item.label_positions) if each is not None
    )
    rows = digest_of_rows(lessons.num_steps, inputs.labels, arrays)
    tuning = Tuning(
        out=out, rows=rows, model=model, loss=_loss(config, inputs), optimizer=optimizer,
        plan=LinearPlan(lessons.num_steps, config.lr, config.warmup, lambda step: len(lessons.micro_batches(step))),
        steps_per_epoch=lessons.steps_per_epoch, num_tokens=config.epochs * sum(lengths), seed=config.seed,
        device=inputs.device, dtype=inputs.dtype, metric=inputs.metric,
        score=(lambda: _scores(config, inputs, model, "dev")[0]) if "dev" in inputs.splits else None,
        scorings_per_epoch=config.scorings_per_epoch, patience=config.patience, save_every_s=config.checkpoint.every_s,
        give_up=give_up,
    )  # fmt: skip
    _write(out, config, inputs, model, tune(tuning, batches_from))


def _loss(config: FinetuneConfig, inputs: _Inputs) -> Loss:
    if config.task == "regress":
        return mse_loss
    if config.task in ("multilabel", "rerank"):
        return bce_loss
    if config.task == "choose":
        return multiple_choice_loss
    if config.task == "extract":
        return span_loss
    if config.class_weights == "none":
        return cross_entropy_loss()
    labels = np.concatenate([each.labels for each in inputs.splits["train"].items])
    counts = np.bincount(labels, minlength=len(inputs.labels))
    weights = torch.tensor(counts.sum() / (len(counts) * np.maximum(counts, 1)), dtype=torch.float32)
    return cross_entropy_loss(weights.to(inputs.device))


def _scores(
    config: FinetuneConfig, inputs: _Inputs, model: nn.Module, split: str
) -> tuple[dict[str, float], list[Any]]:
    """Return the scores of a split, and what was predicted for each row."""
    items = inputs.splits[split].items
    groups = batch_by_size(items, config.budget_tokens, lambda item: len(item.tokens))
    found = predict(model, map(batch_of, groups), device=inputs.device, dtype=inputs.dtype)
    expected = np.concatenate([each.labels for each in items])
    if config.task == "regress":
        return number_scores(found[:, 0], expected), found[:, 0].tolist()
    if config.task == "rerank":
        chances = 1 / (1 + np.exp(-found[:, 0]))
        graded = inputs.metric not in METRICS["rerank"]
        return (number_scores if graded else pair_scores)(chances, expected), chances.tolist()
    if config.task == "multilabel":
        has = found > 0
        names = [[inputs.labels[number] for number in row.nonzero()[0]] for row in has]
        return multilabel_scores(has, expected > 0), names
    if config.task == "extract":
        ends = np.cumsum([len(each.tokens) for each in items])[:-1]
        passages = inputs.passages[split]
        answers = [answer_in(each, scores) for each, scores in zip(passages, np.split(found, ends), strict=True)]
        return answer_scores(answers, [each.answers for each in passages]), answers
    if config.task == "choose":
        ends = np.cumsum([len(each.labels) for each in items])[:-1]
        guesses = [int(each.argmax()) for each in np.split(found[:, 0], ends)]
        right = [int(each.labels[:, 1].argmax()) for each in items]
        return {"accuracy": float(np.mean(np.equal(guesses, right)))}, guesses
    best = found.argmax(axis=1)
    if config.task == "classify":
        return label_scores(best, expected), [inputs.labels[number] for number in best]
    ends = np.cumsum([len(each.labels) for each in items])[:-1]
    named = [[[inputs.labels[n] for n in part] for part in np.split(each, ends)] for each in (best, expected)]
    words = inputs.splits[split].words
    spans = [character_spans(ranges, tags) for (_, ranges), tags in zip(words, named[0], strict=True)]
    said = [
        [{"start": a, "end": b, "label": label, "text": text[a:b]} for a, b, label in sorted(of_row)]
        for (text, _), of_row in zip(words, spans, strict=True)
    ]
    return tag_scores(named[0], named[1], (spans, inputs.splits[split].spans)), said


def _write(
    out: Path, config: FinetuneConfig, inputs: _Inputs, model: Classifier | ForeignClassifier, position: TrainState
) -> None:
    """Write the model, predictions, and scores, which come last: with them the run is finished.

    The model comes first, so that no error in scoring loses it.
    """
    model.cpu()
    if isinstance(model, ForeignClassifier):
        save_foreign(out / "model", model, inputs.folder)
    else:
        most = encoder_of(model).config.max_position_embeddings
        # A limit of the folder it came from still holds, unless it was trained on longer texts.
        longest = min(max(max_length_of(inputs.folder) or most, config.max_len or 0), most)
        save_folder(out / "model", model, lambda partial: inputs.tokenizer.save_folder(partial, longest), replace=True)
    model.to(inputs.device)
    written: dict[str, Any] = {
        "metric": inputs.metric,
        "best_step": position.best_step,
        "dev": position.best_scores,
        "stopped": position.stopped,
    }
    if config.task == "tag":
        written["spans_widened"] = {name: each.share_unaligned for name, each in inputs.splits.items()}
    if "test" in inputs.splits:
        written["test"], predicted = _scores(config, inputs, model, "test")
        lines = [
            json.dumps({"row": origin, "predicted": each}, ensure_ascii=False)
            for origin, each in zip(inputs.splits["test"].origins, predicted, strict=True)
        ]
        write_file(out / "predictions.jsonl", "\n".join(lines) + "\n")
        print("test: " + ", ".join(f"{name} {value:.4f}" for name, value in written["test"].items()))
    write_file(out / "scores.json", json.dumps(written, indent=2) + "\n")
