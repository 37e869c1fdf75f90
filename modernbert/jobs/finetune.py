"""`modernbert finetune`: labelled rows -> a model that labels, rates, reranks or tags.

In: a `FinetuneConfig`. Out: a folder with `config.yaml`, `log.jsonl`, `timing.jsonl`, and at the end `model/` with the
weights that did best on the dev rows, `scores.json`, and `predictions.jsonl` where there are test rows. Stopped and
started again, it goes on from its last checkpoint.

Source: the paper's fine-tuning, appendix E.1: linear decay after a warm-up of a tenth of the steps, early stopping.
"""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from modernbert.config import MISSING
from modernbert.device import choose_device, choose_precision, keep_freed_memory
from modernbert.errors import InputError
from modernbert.evaluate.scores import METRICS, label_scores, number_scores, pair_scores, score_named, tag_scores
from modernbert.model.attention import choose_backend
from modernbert.model.heads import TASKS, Classifier, encoder_of, start_classifier
from modernbert.model.hub import find_folder, load_config, load_model, save_folder
from modernbert.storage import only_process, write_file
from modernbert.text.labelled.examples import (
    Columns,
    Examples,
    batch_of,
    labelled,
    names_of,
    rated,
    tag_names_of,
    tagged,
)
from modernbert.text.labelled.lessons import Lessons
from modernbert.text.labelled.rows import Row, read_rows
from modernbert.text.tokenizer import Tokenizer
from modernbert.train.checkpoint import latest, save
from modernbert.train.journal import Journal
from modernbert.train.loop import train
from modernbert.train.losses import binary_error, label_error, squared_error
from modernbert.train.optim import StableAdamW, load_named_state, named_state
from modernbert.train.parallel import Loss, Objective
from modernbert.train.progress import show_progress
from modernbert.train.run_folder import begin_run_folder
from modernbert.train.tuning import LinearPlan, groups_by_depth, predict

__all__ = ["FinetuneConfig", "finetune", "run"]


@dataclass
class FinetuneConfig:
    """What to start from, what to learn from, and how.

    `task` is classify, regress, rerank or tag. `dev` rows decide which weights are kept, and when to stop: after
    `patience` scorings without a gain. Rates and decays are those of section E.1 of the paper.
    """

    FREE_TO_CHANGE: ClassVar[tuple[str, ...]] = ("out", "device", "save_every_s")

    model: str = MISSING
    task: str = MISSING
    train: list[str] = MISSING
    out: str = MISSING
    dev: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    columns: Columns = field(default_factory=Columns)
    max_len: int | None = None
    """Tokens of the longest text; what the model was trained for, if None."""
    cut: bool = False
    epochs: int = 3
    batch: int = 32
    lr: float = 8e-5
    head_lr: float | None = None
    """Of the scores, which start from nothing; `lr` if None."""
    layer_decay: float = 1.0
    """Each layer learns at this times the rate of the one above it."""
    weight_decay: float = 1e-5
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    warmup: float = 0.1
    dropout: float | None = None
    """Of the attention's output; what the model's config says, if None."""
    class_weights: str = "none"
    """`balanced`: an error costs as much more as its label is rarer."""
    metric: str | None = None
    scorings_per_epoch: int = 1
    patience: int | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    backend: str = "auto"
    budget_tokens: int = 16_384
    save_every_s: float = 600.0

    def check(self) -> None:
        """Check what can be told without looking at files.

        Raises: InputError naming the field.
        """
        if self.task not in TASKS:
            raise InputError(f"task: found {self.task!r}, expected {', '.join(TASKS)}")
        for name in ("epochs", "batch", "budget_tokens", "scorings_per_epoch", "patience", "max_len"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise InputError(f"{name}: found {number}, expected at least 1")
        for name, low, high in (("layer_decay", 0, 1), ("warmup", -1e-9, 1), ("lr", 0, np.inf), ("head_lr", 0, np.inf)):
            number = getattr(self, name)
            if number is not None and not low < number <= high:
                raise InputError(f"{name}: found {number}, expected more than {max(low, 0)}, at most {high}")
        if self.class_weights not in ("none", "balanced"):
            raise InputError(f"class_weights: found {self.class_weights!r}, expected none or balanced")
        if self.class_weights != "none" and self.task not in ("classify", "tag"):
            raise InputError(f"class_weights: found {self.class_weights!r}, but {self.task} has no classes")
        if not self.dev and (self.patience is not None or self.metric is not None):
            raise InputError("dev: found no rows, expected some to choose and stop by (patience, metric)")


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
    max_len: int


@dataclass
class _Position:
    """How far a run has come, and what was best so far: what a checkpoint holds besides tensors."""

    step: int = 0
    tokens: int = 0
    best_step: int = 0
    best_scores: dict[str, float] = field(default_factory=dict)
    since_best: int = 0
    elapsed_s: float = 0.0


def run(config: FinetuneConfig) -> Path:
    """Fine-tune and say where the model is; see `finetune`."""
    folder = finetune(config)
    print(f"model: {folder}")
    return folder


def finetune(config: FinetuneConfig) -> Path:
    """Fine-tune, or go on with a stopped run, and return the model folder.

    Raises: InputError for what cannot be learned from, or does not fit together, before `out` is touched; and for what
    only a run can show, such as a loss that is not finite.
    """
    config.check()
    out = Path(config.out)
    inputs = _open_inputs(config)
    begin_run_folder(out, config)
    with only_process(out):
        if (out / "model").exists():
            print(f"{out}: this run is finished")
        else:
            keep_freed_memory()
            _finetune(out, config, inputs)
    return out / "model"


def _open_inputs(config: FinetuneConfig) -> _Inputs:
    device = choose_device(config.device)
    dtype = choose_precision(config.precision, device)
    folder = find_folder(config.model)
    shape = load_config(folder)
    tokenizer = Tokenizer.load(folder)
    longest = config.max_len or shape.max_position_embeddings
    rows = {name: read_rows(getattr(config, name)) for name in ("train", "dev", "test") if getattr(config, name)}
    labels = _labels(config, rows["train"])
    splits = {name: _examples(config, some, tokenizer, labels, longest) for name, some in rows.items()}
    for name, examples in splits.items():
        _tell(name, examples)
    graded = config.task == "rerank" and any(each.labels[0] not in (0, 1) for each in splits["train"].items)
    metric = _metric(config.metric, "regress" if graded else config.task, labels)
    backend = choose_backend(config.backend, device, dtype, shape)
    return _Inputs(
        tokenizer, labels, splits, metric, device, dtype, backend, folder, longest
    )  # fmt: skip


def _metric(asked: str | None, task: str, labels: Sequence[str]) -> str:
    """Return the metric that decides, by default the first of the task's; of tags that mark no spans, accuracy."""
    known = METRICS[task]
    if task == "tag" and not any(label.startswith("B-") for label in labels):
        known = ("accuracy",)
    if len(labels) != 2:
        known = tuple(name for name in known if name != "f1")
    if asked is not None and asked not in known:
        raise InputError(f"metric: found {asked!r}, expected {', '.join(known)}")
    return asked or known[0]


def _labels(config: FinetuneConfig, rows: Sequence[Row]) -> list[str]:
    if config.task == "classify":
        return names_of(rows, config.columns)
    return tag_names_of(rows, config.columns) if config.task == "tag" else ["score"]


def _examples(
    config: FinetuneConfig, rows: Sequence[Row], tokenizer: Tokenizer, labels: Sequence[str], longest: int
) -> Examples:
    if config.task == "tag":
        return tagged(rows, tokenizer, config.columns, labels, longest, cut=config.cut)
    if config.task == "classify":
        return labelled(rows, tokenizer, config.columns, labels, longest, cut=config.cut)
    return rated(rows, tokenizer, config.columns, longest, cut=config.cut)


def _tell(name: str, examples: Examples) -> None:
    counted = (
        (examples.num_cut, "texts cut"),
        (examples.num_words_cut, "words cut off with them"),
        (examples.num_unaligned, "spans widened to whole words"),
    )
    more = "".join(f", {number:,} {what}" for number, what in counted if number)
    print(f"{name}: {len(examples.items):,} rows, {sum(len(each.tokens) for each in examples.items):,} tokens{more}")


def _finetune(out: Path, config: FinetuneConfig, inputs: _Inputs) -> None:
    """Train from the last checkpoint on, keep the best weights, and write what came out."""
    loaded = load_model(inputs.folder, dtype=torch.float32, backend=inputs.backend)
    model = start_classifier(loaded, config.task, inputs.labels, config.seed)
    encoder = model.model
    if config.dropout is not None:
        encoder.set_dropout(config.dropout)
    model.to(inputs.device)
    print(f"{config.task}: {len(inputs.labels)} labels, on {inputs.device}, {str(inputs.dtype)[6:]}, {inputs.backend}")
    optimizer = StableAdamW(
        groups_by_depth(model, config.lr, config.head_lr or config.lr, config.layer_decay, config.weight_decay),
        lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, in_loops=inputs.backend == "native",
    )  # fmt: skip
    checkpoint = latest(out / "checkpoints")
    position = _Position(**checkpoint.state["position"]) if checkpoint else _Position()
    best: dict[str, Tensor] = {}
    if checkpoint:
        model.load_state_dict(checkpoint.tensors("model"))
        load_named_state(model, optimizer, checkpoint.tensors("optimizer"))
        best = checkpoint.tensors("best")
        print(f"going on after step {position.step:,}")
    best = _learn(
        out, config, inputs, model, optimizer, position, best, checkpoint.state["sizes"] if checkpoint else {}
    )
    model.load_state_dict(best)
    _write(out, config, inputs, model, position)


def _learn(
    out: Path, config: FinetuneConfig, inputs: _Inputs, model: Classifier, optimizer: StableAdamW,
    position: _Position, best: dict[str, Tensor], sizes: Mapping[str, int],
) -> dict[str, Tensor]:  # fmt: skip
    """Go through the steps that are left, and return the weights that did best."""
    examples = inputs.splits["train"].items
    lessons = Lessons(
        [len(each.tokens) for each in examples], config.batch, config.epochs, config.seed, config.budget_tokens
    )
    plan = LinearPlan(lessons.num_steps, config.lr, config.warmup, lambda step: len(lessons.micro_batches(step)))
    batches = (
        batch_of([examples[number] for number in numbers])
        for step in range(position.step, lessons.num_steps)
        for numbers in lessons.micro_batches(step)
    )
    steps = train(
        Objective(model, _loss(config, inputs)), optimizer, plan, batches, seed=config.seed, device=inputs.device,
        dtype=inputs.dtype, first_step=position.step,
    )  # fmt: skip
    every = max(1, round(lessons.steps_per_epoch / config.scorings_per_epoch))
    num_tokens = config.epochs * sum(lessons.lengths)
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(out, sizes))
        report = stack.enter_context(show_progress(lessons.num_steps, num_tokens, position.tokens))
        started = time.monotonic() - position.elapsed_s
        saved_at = begun = time.monotonic()
        for step_plan, result in steps:
            position.step += 1
            position.tokens += result.num_tokens
            epoch = position.step / lessons.steps_per_epoch
            seconds = time.monotonic() - begun
            journal.log(
                kind="step", step=position.step, epoch=round(epoch, 4), tokens=position.tokens,
                lr=float(f"{step_plan.lr:.6g}"), loss=round(result.loss, 6), grad_norm=round(result.grad_norm, 6),
            )  # fmt: skip
            journal.time(step=position.step, seconds=round(seconds, 4), tokens_per_s=round(result.num_tokens / seconds))
            report("tuning", position.step, position.tokens, result.loss, result.num_tokens / seconds)
            is_last = position.step == lessons.num_steps
            if is_last or position.step % every == 0:
                best = _score(config, inputs, model, position, best, journal, is_last)
                position.elapsed_s = time.monotonic() - started
                if config.patience is not None and position.since_best >= config.patience:
                    print(f"stopped after step {position.step:,}: {position.since_best} scorings without a gain")
                    break
                if not is_last and time.monotonic() - saved_at >= config.save_every_s:
                    state = {"position": asdict(position), "sizes": journal.sizes()}
                    tensors = {
                        "model": dict(model.state_dict()), "optimizer": named_state(model, optimizer), "best": best
                    }  # fmt: skip
                    save(out / "checkpoints", position.step, tensors, state, keep=2)
                    saved_at = time.monotonic()
            begun = time.monotonic()
    return best


def _score(
    config: FinetuneConfig, inputs: _Inputs, model: Classifier, position: _Position, best: dict[str, Tensor],
    journal: Journal, is_last: bool,
) -> dict[str, Tensor]:  # fmt: skip
    """Score the dev rows; return the best weights so far. Without dev rows the last are the best."""
    if "dev" not in inputs.splits:
        position.best_step = position.step
        return _copy(model) if is_last else best
    scores, _ = _scores(config, inputs, model, "dev")
    gained = not best or score_named(scores, inputs.metric) > score_named(position.best_scores, inputs.metric)
    journal.log(kind="dev", step=position.step, **{name: round(value, 6) for name, value in scores.items()})
    shown = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
    print(f"step {position.step:,}: {shown}{', best so far' if gained else ''}")
    position.since_best += 1
    if gained:
        position.best_step, position.best_scores, position.since_best = position.step, scores, 0
        return _copy(model)
    return best


def _copy(model: Classifier) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _loss(config: FinetuneConfig, inputs: _Inputs) -> Loss:
    if config.task == "regress":
        return squared_error
    if config.task == "rerank":
        return binary_error
    if config.class_weights == "none":
        return label_error()
    labels = np.concatenate([each.labels for each in inputs.splits["train"].items])
    counts = np.bincount(labels, minlength=len(inputs.labels))
    weights = torch.tensor(counts.sum() / (len(counts) * np.maximum(counts, 1)), dtype=torch.float32)
    return label_error(weights.to(inputs.device))


def _scores(
    config: FinetuneConfig, inputs: _Inputs, model: Classifier, split: str
) -> tuple[dict[str, float], list[Any]]:
    """Return the scores of a split, and what was predicted for each row."""
    items = inputs.splits[split].items
    found = predict(model, [batch_of(some) for some in _within(items, config.budget_tokens)],
                    device=inputs.device, dtype=inputs.dtype)  # fmt: skip
    expected = np.concatenate([each.labels for each in items])
    if config.task == "regress":
        return number_scores(found[:, 0], expected), found[:, 0].tolist()
    if config.task == "rerank":
        chances = 1 / (1 + np.exp(-found[:, 0]))
        return pair_scores(chances, expected), chances.tolist()
    best = found.argmax(axis=1)
    if config.task == "classify":
        return label_scores(best, expected), [inputs.labels[number] for number in best]
    ends = np.cumsum([len(each.labels) for each in items])[:-1]
    named = [[[inputs.labels[n] for n in part] for part in np.split(each, ends)] for each in (best, expected)]
    return tag_scores(*named), named[0]


def _within(items: Sequence[Any], budget_tokens: int) -> list[list[Any]]:
    """Cut examples, in order, into groups of a bounded number of tokens."""
    groups: list[list[Any]] = []
    num_tokens = budget_tokens
    for item in items:
        if num_tokens + len(item.tokens) > budget_tokens:
            groups.append([])
            num_tokens = 0
        groups[-1].append(item)
        num_tokens += len(item.tokens)
    return groups


def _write(out: Path, config: FinetuneConfig, inputs: _Inputs, model: Classifier, position: _Position) -> None:
    """Write scores, predictions and the model, which comes last: with it the run is finished."""
    written: dict[str, Any] = {"metric": inputs.metric, "best_step": position.best_step, "dev": position.best_scores}
    if "test" in inputs.splits:
        written["test"], predicted = _scores(config, inputs, model, "test")
        lines = [
            json.dumps({"row": origin, "predicted": each}, ensure_ascii=False)
            for origin, each in zip(inputs.splits["test"].origins, predicted, strict=True)
        ]
        write_file(out / "predictions.jsonl", "\n".join(lines) + "\n")
        print("test: " + ", ".join(f"{name} {value:.4f}" for name, value in written["test"].items()))
    write_file(out / "scores.json", json.dumps(written, indent=2) + "\n")
    longest = encoder_of(model).config.max_position_embeddings
    save_folder(out / "model", model.cpu(), lambda partial: inputs.tokenizer.save_folder(partial, longest))
