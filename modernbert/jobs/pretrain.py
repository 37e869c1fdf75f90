"""`modernbert pretrain`: shards of text -> a model folder, through as many phases as the config names.

In: a `PretrainConfig`. Out: a run folder with `config.yaml`, `log.jsonl`, `timing.jsonl`, `checkpoints/`, and at the
end `model/`. Stopped at any moment and started again, a run goes on from its last checkpoint and ends with the same
bits.

Source: section 2.2 of the paper (stable phase, context extension, decay phase).
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modernbert.config import load, to_yaml
from modernbert.device import choose_device, choose_precision
from modernbert.errors import InputError
from modernbert.model.attention import choose_backend
from modernbert.model.config import ModelConfig
from modernbert.model.heads import MaskedLM
from modernbert.model.hub import save_folder
from modernbert.model.init import initialize
from modernbert.ragged import Batch
from modernbert.storage import only_process, sha256_of, write_file
from modernbert.text.shards import Shards
from modernbert.text.stream import Packed, Stream, heldout_batches, prefetch
from modernbert.text.tokenizer import Tokenizer
from modernbert.train.checkpoint import Checkpoint, latest, save
from modernbert.train.journal import Journal
from modernbert.train.loop import StepResult, derive_seed, evaluate, train
from modernbert.train.losses import masked_lm
from modernbert.train.optim import StableAdamW, load_named_state, named_state, parameter_groups
from modernbert.train.progress import Report, show_progress
from modernbert.train.recipe import Phase, PretrainConfig, model_config, schedule_of
from modernbert.train.schedule import StepPlan

__all__ = ["Phase", "PretrainConfig", "begin_run_folder", "pretrain", "run"]

# They change when and where a run is computed and kept, never what it computes.
_FREE_TO_CHANGE = ("out", "device", "save_every_steps", "save_every_s", "keep", "verify")

_BEFORE_A_CHECKPOINT = {"config.yaml", ".lock", "log.jsonl", "timing.jsonl", "checkpoints"}


@dataclass(frozen=True)
class _Inputs:
    """What a config names, opened and checked."""

    tokenizer: Tokenizer
    sources: dict[str, Shards]
    heldout: Shards | None
    model: ModelConfig
    device: torch.device
    dtype: torch.dtype
    backend: str
    digests: dict[str, str]
    """Of the index of each folder of shards: what a resumed run must find again."""


@dataclass
class _Position:
    """How far a run has come: what a checkpoint holds besides tensors."""

    phase: int = 0
    phase_step: int = 0
    step: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    cursor: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Run:
    """What every step of a run has at hand."""

    config: PretrainConfig
    inputs: _Inputs
    model: MaskedLM
    position: _Position
    journal: Journal
    report: Report
    started: float


def run(config: PretrainConfig) -> Path:
    """Pretrain and say where the model is; see `pretrain`."""
    folder = pretrain(config)
    print(f"model: {folder}")
    return folder


def pretrain(config: PretrainConfig) -> Path:
    """Pretrain, or go on with a stopped run, and return the exported model folder.

    Raises: InputError for what does not fit together: phases, sources, tokenizer, model, or a run folder that was begun
    with another config, all before that folder is touched; and for what only a run can show, such as a loss that is not
    finite or a full disk, with the checkpoints so far kept.
    """
    out = Path(config.out)
    inputs = _open_inputs(config)
    begin_run_folder(out, config)
    with only_process(out):
        if (out / "model").exists():
            print(f"{out}: this run is finished")
        else:
            _pretrain(out, config, inputs)
    return out / "model"


def _pretrain(out: Path, config: PretrainConfig, inputs: _Inputs) -> None:
    """Go through the phases that are left, from the newest checkpoint on, and export the model."""
    model = MaskedLM(inputs.model, inputs.backend)
    initialize(model, inputs.model, config.seed)
    checkpoint = latest(out / "checkpoints")
    _check_shards(inputs, checkpoint)
    _describe(config, inputs, model, checkpoint)
    optimizer_state = _restore(model, checkpoint)
    state = checkpoint.state if checkpoint else {"position": asdict(_Position()), "sizes": {}}
    position = _Position(**state["position"])
    num_steps, num_tokens = _whole(config)
    with (
        Journal(out, state["sizes"]) as journal,
        show_progress(num_steps, num_tokens, position.tokens) as report,
    ):
        model.to(inputs.device)
        begun = _Run(config, inputs, model, position, journal, report, time.monotonic() - position.elapsed_s)
        for number in range(position.phase, len(config.phases)):
            optimizer_state = _run_phase(begun, list(config.phases)[number], number, optimizer_state)
    _export(out / "model", model, inputs)


def _run_phase(run: _Run, name: str, number: int, optimizer_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Train one phase from where the run stands to its end; return the optimizer's state."""
    config, inputs, model, position = run.config, run.inputs, run.model, run.position
    phase = config.phases[name]
    model.model.config = replace(
        inputs.model, global_rope_theta=phase.global_rope_theta, local_rope_theta=phase.local_rope_theta
    )
    optimizer = StableAdamW(
        parameter_groups(model, phase.weight_decay), lr=phase.lr, betas=(config.beta1, config.beta2), eps=config.eps
    )
    if optimizer_state:
        load_named_state(model, optimizer, optimizer_state)
    seed = derive_seed(config.seed, number)
    schedule = schedule_of(phase)
    feed = _Feed(_stream(inputs, phase, seed, position.cursor))
    steps = train(
        model, masked_lm, optimizer, schedule, feed,
        seed=seed, device=inputs.device, dtype=inputs.dtype, first_step=position.phase_step,
    )  # fmt: skip
    if position.step == 0:
        _score_heldout(run, name)
    saved_at = begun = time.monotonic()
    with closing(feed):
        for plan, result in steps:
            seconds = time.monotonic() - begun
            is_last = position.phase_step + 1 == schedule.num_steps
            _advance(position, result, feed.last, phase_ends=is_last)
            _record(run, name, plan, result, feed.last, seconds)
            if is_last or (config.eval_every and position.step % config.eval_every == 0):
                _score_heldout(run, name)
            if is_last or _is_due(config, position.step, saved_at):
                _save(run, optimizer)
                saved_at = time.monotonic()
            begun = time.monotonic()
    return named_state(model, optimizer)


def _stream(inputs: _Inputs, phase: Phase, seed: int, cursor: Mapping[str, Any] | None) -> Stream:
    return Stream(
        inputs.sources,
        inputs.tokenizer,
        seed=seed,
        max_len=phase.max_len,
        budget_tokens=phase.micro_batch_tokens,
        mask_rate=phase.mask_rate,
        weights=phase.weights or None,
        cursor=cursor,
    )


class _Feed(Iterator[Batch]):
    """Batches of a stream, made ahead by a thread; `last` is what the newest came in."""

    def __init__(self, stream: Stream) -> None:
        self.last: Packed
        self._ahead = prefetch(iter(stream))

    def __next__(self) -> Batch:
        self.last = next(self._ahead)
        return self.last.batch

    def close(self) -> None:
        self._ahead.close()  # type: ignore[attr-defined]


def _advance(position: _Position, result: StepResult, packed: Packed, *, phase_ends: bool) -> None:
    position.step += 1
    position.tokens += result.num_tokens
    if phase_ends:
        position.phase, position.phase_step, position.cursor = position.phase + 1, 0, None
    else:
        position.phase_step, position.cursor = position.phase_step + 1, packed.cursor()


def _record(run: _Run, name: str, plan: StepPlan, result: StepResult, packed: Packed, seconds: float) -> None:
    """Write one step to the journal, and show it."""
    position = run.position
    position.elapsed_s = time.monotonic() - run.started
    tokens_per_s = result.num_tokens / seconds
    if position.step % run.config.log_every == 0:
        run.journal.log(
            kind="step",
            phase=name,
            step=position.step,
            tokens=position.tokens,
            lr=float(f"{plan.lr:.6g}"),
            micro_batches=plan.num_micro_batches,
            loss=round(result.loss, 6),
            grad_norm=round(result.grad_norm, 6),
            fill=round(result.num_tokens / (plan.num_micro_batches * packed.budget_tokens), 6),
            masked=result.num_rows,
            source_tokens=packed.source_tokens,
        )
        run.journal.time(
            step=position.step,
            seconds=round(seconds, 4),
            tokens_per_s=round(tokens_per_s, 1),
            elapsed=round(position.elapsed_s, 3),
        )
    run.report(name, position.step, position.tokens, result.loss, tokens_per_s)


def _score_heldout(run: _Run, name: str) -> None:
    """Score held-out text, cut and packed as in the first phase, so that scores of all phases compare."""
    config, inputs, position = run.config, run.inputs, run.position
    if inputs.heldout is None:
        return
    first = next(iter(config.phases.values()))
    batches = heldout_batches(
        inputs.heldout,
        inputs.tokenizer,
        seed=config.seed,
        max_len=first.max_len,
        budget_tokens=first.micro_batch_tokens,
        mask_rate=config.eval_mask_rate,
        limit_tokens=config.heldout_tokens,
    )
    score = evaluate(run.model, batches, device=inputs.device, dtype=inputs.dtype)
    run.journal.log(
        kind="heldout",
        phase=name,
        step=position.step,
        tokens=position.tokens,
        loss=round(score.loss, 6),
        accuracy=round(score.accuracy, 6),
        perplexity=round(score.perplexity, 4),
        masked=score.num_rows,
    )


def _is_due(config: PretrainConfig, step: int, saved_at: float) -> bool:
    by_steps = config.save_every_steps > 0 and step % config.save_every_steps == 0
    return by_steps or (config.save_every_s > 0 and time.monotonic() - saved_at >= config.save_every_s)


def _save(run: _Run, optimizer: StableAdamW) -> None:
    tensors: dict[str, dict[str, Tensor]] = {
        "model": dict(run.model.named_parameters()),
        "optimizer": named_state(run.model, optimizer),
    }
    state = {"position": asdict(run.position), "sizes": run.journal.sizes(), "shards": run.inputs.digests}
    save(Path(run.config.out) / "checkpoints", run.position.step, tensors, state, keep=run.config.keep)


def _check_shards(inputs: _Inputs, checkpoint: Checkpoint | None) -> None:
    """Refuse to go on with shards that were made anew with other content."""
    for key, digest in checkpoint.state.get("shards", {}).items() if checkpoint else ():
        found = inputs.digests.get(key)
        if found != digest:
            raise InputError(
                f"{key}: found other shards than this run began with (sha256 of index.json {str(found)[:16]}, "
                f"expected {digest[:16]}); choose another `out` for other data"
            )


def _restore(model: MaskedLM, checkpoint: Checkpoint | None) -> dict[str, Tensor]:
    """Put a checkpoint's weights into the model; return the optimizer's state."""
    if checkpoint is None:
        return {}
    weights = checkpoint.tensors("model")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return checkpoint.tensors("optimizer")


def _export(folder: Path, model: MaskedLM, inputs: _Inputs) -> None:
    model.model.config = inputs.model
    save_folder(
        folder, model, lambda partial: inputs.tokenizer.save_folder(partial, inputs.model.max_position_embeddings)
    )


def _open_inputs(config: PretrainConfig) -> _Inputs:
    """Check a whole config and open what it names; nothing is written."""
    config.check()
    device = choose_device(config.device)
    dtype = choose_precision(config.precision, device)
    tokenizer = Tokenizer.load(config.tokenizer)
    named = {f"sources.{name}": folder for name, folder in config.sources.items()}
    if config.heldout is not None:
        named["heldout"] = config.heldout
    opened = {}
    for key, folder in named.items():
        shards = Shards.open(Path(folder), verify=config.verify)
        if shards.fingerprint != tokenizer.fingerprint:
            raise InputError(
                f"{key}: {folder} was made with tokenizer {shards.fingerprint}, "
                f"but {config.tokenizer} is {tokenizer.fingerprint}"
            )
        opened[key] = shards
    return _Inputs(
        tokenizer=tokenizer,
        sources={name: opened[f"sources.{name}"] for name in config.sources},
        heldout=opened.get("heldout"),
        model=model_config(config, tokenizer),
        device=device,
        dtype=dtype,
        backend=choose_backend(config.backend, device, dtype),
        digests={key: sha256_of(Path(folder) / "index.json") for key, folder in named.items()},
    )


def begin_run_folder(out: Path, config: PretrainConfig) -> None:
    """Write the config into a new run folder, or check that a begun one has the same.

    A config under which no checkpoint was written, nor anything beside the run, may be corrected: it is replaced.

    Raises: InputError naming the first field that differs, or the folder if it is something else.
    """
    path = out / "config.yaml"
    if path.exists() and not _may_be_corrected(out):
        begun, asked = _flat(asdict(load(PretrainConfig, path))), _flat(asdict(config))
        for key in [*asked, *begun]:
            if key.split(".")[0] not in _FREE_TO_CHANGE and begun.get(key) != asked.get(key):
                raise InputError(
                    f"{path}: this run was begun with {key}={begun.get(key)}, found {key}={asked.get(key)}; "
                    "choose another `out` for another config"
                )
    elif not path.exists() and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists and is not a run folder, expected a new folder or one with config.yaml")
    with only_process(out):
        write_file(path, to_yaml(config))


def _may_be_corrected(out: Path) -> bool:
    """Say whether a run folder has only what a run writes before its first checkpoint."""
    names = {path.name for path in out.iterdir()}
    return ".lock" in names and names <= _BEFORE_A_CHECKPOINT and not any((out / "checkpoints").glob("step-*"))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _describe(config: PretrainConfig, inputs: _Inputs, model: MaskedLM, checkpoint: Checkpoint | None) -> None:
    num_steps, num_tokens = _whole(config)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    dtype = str(inputs.dtype).removeprefix("torch.")
    print(f"device {inputs.device}, precision {dtype}, attention {inputs.backend}")
    print(f"{num_parameters:,} parameters, {len(config.phases)} phases, {num_steps:,} steps, {num_tokens:,} tokens")
    if checkpoint is not None:
        print(f"going on after step {checkpoint.step:,}", flush=True)


def _whole(config: PretrainConfig) -> tuple[int, int]:
    """Return the number of steps of all phases, and their nominal tokens."""
    schedules = [schedule_of(phase) for phase in config.phases.values()]
    ends = [schedule.plan(schedule.num_steps).tokens_before for schedule in schedules]
    return sum(schedule.num_steps for schedule in schedules), sum(ends)
