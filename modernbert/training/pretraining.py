"""`modernbert pretrain`: shards of text -> a model folder, through as many phases as the config names.

In: a `PretrainConfig`. Out: a run folder with `config.yaml`, `log.jsonl`, `timing.jsonl`, `checkpoints/`, and at the
end `model/`. Stopped at any moment and started again, a run goes on from its last checkpoint and ends with the same
bits. Under `torchrun` all processes train one model on the same text as one process would.

Source: section 2.2 of the paper (stable phase, context extension, decay phase).
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modernbert.batch import Batch
from modernbert.checkpoints.folder import save_folder
from modernbert.data.shards import Shards
from modernbert.data.stream import Packed, Stream, prefetch
from modernbert.devices import choose_precision, name_of, peak_memory
from modernbert.engines.engine import Engine
from modernbert.engines.registry import choose_engine
from modernbert.errors import InputError
from modernbert.files import new_folder, only_process, sha256_of
from modernbert.hub_download import find_tokenizer
from modernbert.model.config import ModelConfig
from modernbert.model.heads import MaskedLM
from modernbert.model.initialization import initialize
from modernbert.model.resize_vocabulary import change_vocabulary
from modernbert.progress import ShowStep, show_steps
from modernbert.tokenizer.shared_entries import entries_of
from modernbert.tokenizer.tokenizer import Tokenizer
from modernbert.training.distributed import Objective, World, first_row, join, local, whole
from modernbert.training.flops import peak_flops, step_flops
from modernbert.training.heldout_evaluation import mean_loss, position_lines, score_heldout
from modernbert.training.initial_model import TOKENIZER_OF_RUN, Start, find_start, shape_of
from modernbert.training.losses import masked_lm
from modernbert.training.optimizers import StableAdamW, load_named_state, named_state, parameter_groups
from modernbert.training.pretraining_config import Phase, PretrainConfig, model_config, schedule_of
from modernbert.training.run_checkpoint import Checkpoint, Saver, latest
from modernbert.training.run_folder import begin_run_folder, check_run_folder
from modernbert.training.run_log import RunLog, number, read_log
from modernbert.training.schedules import StepPlan
from modernbert.training.spike_guard import LossSpikeGuard
from modernbert.training.trackers import open_trackers
from modernbert.training.training_loop import StepResult, derive_seed, train

__all__ = ["Phase", "PretrainConfig", "pretrain", "run"]


@dataclass(frozen=True)
class _Inputs:
    """What a config names, opened and checked."""

    tokenizer: Tokenizer
    sources: dict[str, Shards]
    heldout: dict[str, Shards]
    model: ModelConfig
    start: Start | None
    device: torch.device
    dtype: torch.dtype
    engine: Engine
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
    guard: dict[str, Any] = field(default_factory=dict)
    heldout: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Run:
    """What every step of a run has at hand."""

    config: PretrainConfig
    inputs: _Inputs
    world: World
    model: MaskedLM
    objective: nn.Module
    position: _Position
    saver: Saver
    journal: RunLog | None
    """None in all processes but the main one; so is `report`."""
    report: ShowStep | None
    started: float


def run(config: PretrainConfig) -> Path:
    """Pretrain and say where the model is; see `pretrain`."""
    folder = pretrain(config)
    print(f"model: {folder}")
    return folder


def pretrain(config: PretrainConfig) -> Path:
    """Pretrain, or go on with a stopped run, and return the exported model folder.

    Raises: InputError for what does not fit together: phases, sources, tokenizer, model, or a run folder that was begun
    with another config, all before that folder is touched; and for what only a run can show, such as a loss that stays
    out of bounds or a full disk, with the checkpoints so far kept.
    """
    config.check()
    out = Path(config.output)
    with join(config.device, config.distributed.sharding) as (world, device):
        with world.together():
            inputs = _open_inputs(config, world, device)
        with ExitStack() as held:
            with world.together():
                if world.is_main:
                    begin_run_folder(out, config)
                    held.enter_context(only_process(out))
                    if config.tokenizer is None and inputs.start is not None:
                        with new_folder(out / TOKENIZER_OF_RUN, replace=True) as partial:
                            inputs.tokenizer.save_folder(partial, inputs.model.max_position_embeddings)
            if not (out / "model").exists():
                _pretrain(out, config, inputs, world)
            elif world.is_main:
                print(f"{out}: this run is finished")
            world.wait()
    return out / "model"


def _pretrain(out: Path, config: PretrainConfig, inputs: _Inputs, world: World) -> None:
    """Go through the phases that are left, from the newest checkpoint on, and export the model."""
    checkpoint = _latest(out, world)
    _check_shards(inputs, checkpoint)
    model = MaskedLM(inputs.model, inputs.engine)
    if world.is_main:
        _describe(config, inputs, model, checkpoint, world)
    model.to(inputs.device)
    model.model.recompute = config.recompute
    if config.compile and (reason := inputs.engine.compile_blocks(model.model, inputs.dtype)) and world.is_main:
        print(f"compile: going on without ({reason})")
    objective = world.spread(Objective(model, masked_lm), model.model.layers)
    state = checkpoint.state if checkpoint else {"position": asdict(_Position()), "sizes": {}}
    position = _Position(**state["position"])
    num_steps, num_tokens = _whole_run(config)
    first_step = position.step + 1 if checkpoint else 0
    quiet = nullcontext()
    with (
        open_trackers(config.trackers if world.is_main else [], out, asdict(config), first_step) as sinks,
        RunLog(out, state["sizes"], sinks.write) if world.is_main else quiet as journal,
        show_steps(num_steps, num_tokens, position.tokens) if world.is_main else quiet as report,
        Saver(out / "checkpoints", keep=config.checkpoint.keep, kept_steps=_kept_steps(config), world=world) as saver,
    ):
        started = time.monotonic() - position.elapsed_s
        begun = _Run(config, inputs, world, model, objective, position, saver, journal, report, started)
        if journal is not None:
            journal.time(
                kind="start", after_step=position.step, world_size=world.size, sharding=config.distributed.sharding,
                device=name_of(inputs.device), dtype=str(inputs.dtype).removeprefix("torch."),
                engine=inputs.engine.name, torch=torch.__version__,
            )  # fmt: skip
        optimizer_state = _restore(begun, checkpoint)
        while position.phase < len(config.phases):
            optimizer_state = _run_phase(begun, optimizer_state)
    with world.together():
        _export(out / "model", model, inputs, world)
    if world.is_main:
        for line in position_lines(read_log(out)):
            print(line)


def _run_phase(run: _Run, optimizer_state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Train from where the run stands to the end of the phase, or until it goes back; return the optimizer's state."""
    config, inputs, model, position = run.config, run.inputs, run.model, run.position
    name = list(config.phases)[position.phase]
    phase = config.phases[name]
    model.model.config = replace(
        inputs.model, global_rope_theta=phase.global_rope_theta, local_rope_theta=phase.local_rope_theta
    )
    optimizer = StableAdamW(
        parameter_groups(model, phase.weight_decay), lr=phase.lr, betas=(config.optim.beta1, config.optim.beta2),
        eps=config.optim.eps,
        sum_shards=run.world.sum_shards if run.world.mesh else None,
        kernels=inputs.engine.optimizer_kernels(inputs.device),
    )  # fmt: skip
    if optimizer_state:
        load_named_state(model, optimizer, optimizer_state)
    seed = derive_seed(config.seed, position.phase)
    schedule = schedule_of(phase)
    feed = _Feed(_stream(run, phase, seed), model.model.config)
    guard = LossSpikeGuard(config.guard, position.guard)
    steps = train(
        run.objective, optimizer, schedule, feed, seed=seed, device=inputs.device, dtype=inputs.dtype,
        first_step=position.phase_step, judge=guard, world=run.world,
    )  # fmt: skip
    if position.step == 0:
        _score_heldout(run, name)
    saved_at = begun = time.monotonic()
    with closing(feed):
        for plan, result in steps:
            seconds = time.monotonic() - begun
            is_last = position.phase_step + 1 == schedule.num_steps
            _advance(position, result, feed.last, guard, phase_ends=is_last)
            _record(run, name, plan, result, feed, seconds)
            if guard.is_exhausted:
                return _go_back(run, name, feed.last, guard, result)
            if is_last or ((every := config.evaluation.every_steps) and position.step % every == 0):
                _score_heldout(run, name)
            if is_last or (not guard.in_a_row and _is_due(run, saved_at)):
                _save(run, named_state(model, optimizer))
                saved_at = time.monotonic()
            begun = time.monotonic()
    return _whole_state(run, optimizer)


def _go_back(run: _Run, name: str, packed: Packed, guard: LossSpikeGuard, result: StepResult) -> Mapping[str, Tensor]:
    """Return to the last checkpoint with the stream where it is now: behind the text that could not be learned from.

    Raises: InputError if that was done often enough.
    """
    position = run.position
    if guard.rollbacks >= run.config.guard.max_rollbacks:
        raise InputError(
            f"step {position.step}: {guard.in_a_row} steps in a row were refused ({result.skipped}), after "
            f"{guard.rollbacks} returns to a checkpoint; a lower lr may help, or wider bounds in guard"
        )
    run.saver.wait()
    checkpoint = _latest(Path(run.config.output), run.world)
    before = _Position(**checkpoint.state["position"]) if checkpoint else _Position()
    if run.journal is not None:
        run.journal.log(
            kind="rollback", phase=name, step=position.step, to_step=before.step, reason=str(result.skipped)
        )
    again = {**before.guard, "in_a_row": 0, "rollbacks": guard.rollbacks + 1}
    for key, value in asdict(replace(before, cursor=packed.cursor(), guard=again)).items():
        setattr(position, key, value)
    optimizer_state = _restore(run, checkpoint)
    if checkpoint is not None:
        # In its place: a run that is stopped now must not go through the same text again. The weights are those of the
        # phase that wrote them, which may be the one before.
        _save(run, optimizer_state, checkpoint.state.get("model"))
    return optimizer_state


def _stream(run: _Run, phase: Phase, seed: int) -> Stream:
    return Stream(
        run.inputs.sources,
        run.inputs.tokenizer,
        seed=seed,
        max_len=phase.max_len,
        budget_tokens=phase.micro_batch_tokens,
        mask_rate=phase.mask_rate,
        weights=phase.weights or None,
        cursor=run.position.cursor,
        share=(run.world.rank, run.world.size),
    )


class _Feed(Iterator[Batch | None]):
    """Batches of a stream, made ahead by a thread; `last` is what the newest came in.

    `flops` counts the operations that this process owes to the batches since it was last set to 0.
    """

    def __init__(self, stream: Stream, model: ModelConfig) -> None:
        self.last: Packed
        self.flops = 0
        self._model = model
        self._ahead = prefetch(iter(stream))

    def __next__(self) -> Batch | None:
        self.last = next(self._ahead)
        batch = self.last.batch
        if batch is not None:
            self.flops += step_flops(self._model, batch.layout.lengths, batch.num_labels)
        return batch

    def close(self) -> None:
        self._ahead.close()  # type: ignore[attr-defined]


def _advance(
    position: _Position, result: StepResult, packed: Packed, guard: LossSpikeGuard, *, phase_ends: bool
) -> None:
    position.step += 1
    position.tokens += 0 if result.skipped else result.num_tokens
    if phase_ends:
        position.phase, position.phase_step, position.cursor, position.guard = position.phase + 1, 0, None, {}
    else:
        position.phase_step, position.cursor, position.guard = position.phase_step + 1, packed.cursor(), guard.state()


def _record(run: _Run, name: str, plan: StepPlan, result: StepResult, feed: _Feed, seconds: float) -> None:
    """Write one step to the journal, and show it."""
    position, packed = run.position, feed.last
    # Of all processes, for one of them may have had no batch in this step.
    flops = run.world.sum(torch.tensor(float(feed.flops), dtype=torch.float64, device=run.inputs.device))
    flops_per_s, feed.flops = float(flops) / run.world.size / seconds, 0
    position.elapsed_s = time.monotonic() - run.started
    if run.journal is None or run.report is None:
        return
    if result.skipped:
        run.journal.log(
            kind="skipped", phase=name, step=position.step, loss=number(result.loss),
            grad_norm=number(result.grad_norm), reason=result.skipped,
        )  # fmt: skip
        return
    tokens_per_s = result.num_tokens / seconds
    if position.step % run.config.log_every == 0:
        run.journal.log(
            kind="step",
            phase=name,
            step=position.step,
            tokens=position.tokens,
            lr=float(f"{plan.lr:.6g}"),
            micro_batches=plan.num_micro_batches,
            loss=number(result.loss),
            grad_norm=number(result.grad_norm),
            fill=round(result.num_tokens / (plan.num_micro_batches * packed.budget_tokens), 6),
            masked=result.num_rows,
            source_tokens=packed.source_tokens,
            epochs={name: round(epochs, 4) for name, epochs in packed.epochs.items()},
        )
        run.journal.time(
            step=position.step,
            seconds=round(seconds, 4),
            tokens_per_s=round(tokens_per_s, 1),
            elapsed=round(position.elapsed_s, 3),
            **_utilisation(run.inputs, flops_per_s),
        )
    run.report(name, position.step, position.tokens, result.loss, tokens_per_s)


def _utilisation(inputs: _Inputs, flops_per_s: float) -> dict[str, float | None]:
    """Say how well a device is used, on average: operations a second, their share of its peak, most memory so far."""
    peak = peak_flops(inputs.device, inputs.dtype)
    return {
        "tflops_per_s": float(f"{flops_per_s / 1e12:.4g}"),
        "mfu": None if peak is None else round(flops_per_s / peak, 4),
        "memory_gib": round(peak_memory(inputs.device) / 2**30, 3),
    }


def _score_heldout(run: _Run, name: str) -> None:
    """Score held-out text into the journal, and remember the loss for the next checkpoint."""
    config, inputs, position = run.config, run.inputs, run.position
    if not inputs.heldout:
        return
    scores = score_heldout(
        run.objective, inputs.heldout, inputs.tokenizer, config,
        device=inputs.device, dtype=inputs.dtype, world=run.world,
    )  # fmt: skip
    position.heldout = {"step": position.step, "loss": mean_loss(scores)}
    if run.journal is not None:
        for score in scores:
            run.journal.log(kind="heldout", phase=name, step=position.step, tokens=position.tokens, **score)


def _is_due(run: _Run, saved_at: float) -> bool:
    """Say whether to save now; where the clock decides, the main process's does."""
    config, step = run.config.checkpoint, run.position.step
    by_steps = any(every and step % every == 0 for every in (config.every_steps, config.keep_every_steps))
    by_clock = config.every_s > 0 and time.monotonic() - saved_at >= config.every_s
    if run.world.size > 1 and config.every_s > 0:
        votes = torch.tensor(float(by_clock and run.world.is_main), device=run.inputs.device)
        by_clock = bool(run.world.sum(votes).item())
    return by_steps or by_clock


def _kept_steps(config: PretrainConfig) -> set[int]:
    """Return the steps whose checkpoints stay: the last of each phase, and every so many."""
    ends = list(accumulate(schedule_of(phase).num_steps for phase in config.phases.values()))
    every = config.checkpoint.keep_every_steps
    return {*ends, *(range(every, ends[-1] + 1, every) if every else ())}


def _save(run: _Run, optimizer_state: Mapping[str, Tensor], shape: Mapping[str, Any] | None = None) -> None:
    """Begin to write a checkpoint, of a model of this shape if it is not of the current phase."""
    tensors = {"model": dict(run.model.named_parameters()), "optimizer": optimizer_state}
    state = {
        "position": asdict(run.position),
        "sizes": run.journal.sizes() if run.journal else {},
        "shards": run.inputs.digests,
        "model": shape or asdict(run.model.model.config),
        "tokenizer": run.inputs.tokenizer.fingerprint,
        "engine": run.inputs.engine.name,
        "heldout": run.position.heldout,
    }
    run.saver.save(run.position.step, tensors, state)


def _latest(out: Path, world: World) -> Checkpoint | None:
    """Return the newest checkpoint; one process clears away what is half written, before the others look."""
    with world.together():
        found = latest(out / "checkpoints") if world.is_main else None
    return found if world.is_main else latest(out / "checkpoints", clean=False)


def _check_shards(inputs: _Inputs, checkpoint: Checkpoint | None) -> None:
    """Refuse to go on with shards that were made anew with other content."""
    for key, digest in checkpoint.state.get("shards", {}).items() if checkpoint else ():
        found = inputs.digests.get(key)
        if found != digest:
            raise InputError(
                f"{key}: found other shards than this run began with (sha256 of index.json {str(found)[:16]}, "
                f"expected {digest[:16]}); choose another `output` for other data"
            )


def _restore(run: _Run, checkpoint: Checkpoint | None) -> Mapping[str, Tensor]:
    """Put weights into the model: a checkpoint's, or those the run begins with; return the optimizer's state."""
    config, inputs = run.config, run.inputs
    if checkpoint is not None:
        weights: Mapping[str, Tensor] = checkpoint.tensors("model")
        optimizer_state: Mapping[str, Tensor] = checkpoint.tensors("optimizer")
    elif inputs.start is not None:
        weights = inputs.start.weights
        if config.new_vocabulary:
            entries = entries_of(inputs.tokenizer, inputs.start.tokenizer)
            weights = change_vocabulary(weights, entries, inputs.model.vocab_size)
        optimizer_state = inputs.start.optimizer if config.init_optimizer else {}
    else:
        drawn = MaskedLM(inputs.model)
        initialize(drawn, inputs.model, config.seed)
        weights, optimizer_state = dict(drawn.named_parameters()), {}
    with torch.no_grad():
        for name, parameter in run.model.named_parameters():
            mine, first = local(parameter), first_row(parameter)
            mine.copy_(weights[name][first : first + mine.shape[0]])
    return optimizer_state


def _whole_state(run: _Run, optimizer: StableAdamW) -> Mapping[str, Tensor]:
    """Return the optimizer's state of whole tensors, as the next phase loads it."""
    named = named_state(run.model, optimizer)
    return {name: whole(tensor) for name, tensor in named.items()}


def _export(folder: Path, model: MaskedLM, inputs: _Inputs, world: World) -> None:
    """Write the model folder; where the model is sharded, every process gives its part."""
    weights = {name: whole(parameter.detach()).cpu() for name, parameter in model.named_parameters()}
    if not world.is_main:
        return
    exported = MaskedLM(inputs.model)
    exported.load_state_dict(weights, strict=False)
    save_folder(
        folder, exported, lambda partial: inputs.tokenizer.save_folder(partial, inputs.model.max_position_embeddings)
    )


def _open_inputs(config: PretrainConfig, world: World, device: torch.device) -> _Inputs:
    """Check a whole config and open what it names; nothing is written."""
    dtype = choose_precision(config.dtype, device, "dtype")
    # What a run began with may be gone when it has checkpoints of its own.
    check_run_folder(Path(config.output), config)
    own = latest(Path(config.output) / "checkpoints", clean=False) if config.init_from is not None else None
    start = None
    if config.init_from is not None and (own is None or "model" not in own.state):
        start = find_start(str(config.init_from))
    tokenizer = _open_tokenizer(config, start)
    if start is not None:
        _check_start(config, tokenizer, start)
    named = {f"data.sources.{name}": folder for name, folder in config.data.sources.items()}
    named |= {f"data.heldout.{name}": folder for name, folder in config.data.heldout.items()}
    opened = {}
    for key, folder in named.items():
        shards = Shards.open(Path(folder), verify=config.data.verify and world.is_main)
        if shards.fingerprint != tokenizer.fingerprint:
            raise InputError(
                f"{key}: {folder} was made with tokenizer {shards.fingerprint}, "
                f"but {config.tokenizer or config.init_from} is {tokenizer.fingerprint}; prepare the text again with "
                f"tokenizer={config.tokenizer or config.init_from}"
            )
        opened[key] = shards
    if start is not None:
        shape: ModelConfig | None = start.config
    else:
        shape = None if own is None else shape_of(own)
    model = model_config(config, tokenizer, shape)
    return _Inputs(
        tokenizer=tokenizer,
        sources={name: opened[f"data.sources.{name}"] for name in config.data.sources},
        heldout={name: opened[f"data.heldout.{name}"] for name in config.data.heldout},
        model=model,
        start=start,
        device=device,
        dtype=dtype,
        engine=choose_engine(config.engine, device, dtype, model),
        digests={key: sha256_of(Path(folder) / "index.json") for key, folder in named.items()},
    )


def _open_tokenizer(config: PretrainConfig, start: Start | None) -> Tokenizer:
    """Return the tokenizer that is named, else that of the model to start from, of which a begun run has a copy."""
    if config.tokenizer is not None:
        return Tokenizer.load(find_tokenizer(config.tokenizer))
    return Tokenizer.load(Path(config.output) / TOKENIZER_OF_RUN) if start is None else start.tokenizer


def _check_start(config: PretrainConfig, tokenizer: Tokenizer, start: Start) -> None:
    if start.tokenizer.fingerprint != tokenizer.fingerprint and not config.new_vocabulary:
        raise InputError(
            f"init_from: {config.init_from} has tokenizer {start.tokenizer.fingerprint}, but {config.tokenizer} is "
            f"{tokenizer.fingerprint}; set new_vocabulary=true to give the model the new one"
        )
    if config.init_optimizer and not start.optimizer:
        raise InputError(f"init_optimizer: {config.init_from} has no optimizer state, expected a checkpoint or a run")


def _describe(
    config: PretrainConfig, inputs: _Inputs, model: MaskedLM, checkpoint: Checkpoint | None, world: World
) -> None:
    num_steps, num_tokens = _whole_run(config)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    dtype = str(inputs.dtype).removeprefix("torch.")
    print(f"device {inputs.device}, precision {dtype}, engine {inputs.engine.name}")
    if world.size > 1:
        print(f"{world.size} processes, sharding {config.distributed.sharding}")
        for name, phase in config.phases.items():
            if phase.max_micro_batches % world.size:
                print(f"phases.{name}: {phase.max_micro_batches} micro-batches a step do not divide among {world.size}")
    if checkpoint is None and config.init_from is not None:
        print(f"starting from {config.init_from}")
        name, phase = next(iter(config.phases.items()))
        for key in ("global_rope_theta", "local_rope_theta"):
            now = getattr(phase, key)
            was = now if inputs.start is None else getattr(inputs.start.config, key)
            if was != now:
                print(f"phases.{name}.{key}: changes from {was:,.0f}, which the model has learned with, to {now:,.0f}")
    print(f"{num_parameters:,} parameters, {len(config.phases)} phases, {num_steps:,} steps, {num_tokens:,} tokens")
    if checkpoint is not None:
        before = checkpoint.state.get("engine", inputs.engine.name)
        if before != inputs.engine.name:
            print(f"the engine was {before} before, and rounds otherwise: the run does not end with the same bits")
        print(f"going on after step {checkpoint.step:,}", flush=True)


def _whole_run(config: PretrainConfig) -> tuple[int, int]:
    """Return the number of steps of all phases, and their nominal tokens."""
    schedules = [schedule_of(phase) for phase in config.phases.values()]
    ends = [schedule.plan(schedule.num_steps).tokens_before for schedule in schedules]
    return sum(schedule.num_steps for schedule in schedules), sum(ends)
