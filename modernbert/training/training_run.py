"""One training run, for pretraining, fine-tuning and retrieval: phases, log, evaluation, checkpoints, resume, rollback.

A `Recipe` defines the model, loss, data and evaluation. `TrainingRun` runs any recipe.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from modernbert.batch import Batch
from modernbert.devices import dtype_name, name_of
from modernbert.errors import InputError
from modernbert.files import only_process
from modernbert.progress import ShowStep, show_steps
from modernbert.training.distributed import Loss, Objective, World, first_row, full_tensor, join, local_shard
from modernbert.training.optimizers import Optimizer, load_named_state, named_state
from modernbert.training.run_checkpoint import Checkpoint, CheckpointWriter, latest, newest_step
from modernbert.training.run_folder import open_run_folder, remove_unused
from modernbert.training.run_log import RunLog, number
from modernbert.training.run_options import RunOptions
from modernbert.training.schedules import Plans, StepPlan
from modernbert.training.spike_guard import LossSpikeGuard
from modernbert.training.trackers import open_trackers
from modernbert.training.training_loop import StepResult, must_be_finite, train

__all__ = ["Feed", "Recipe", "Stage", "TrainState", "TrainingRun", "run_in_folder"]

Inputs = TypeVar("Inputs")


@dataclass
class TrainState:
    """Progress of a run, as checkpoints store it."""

    phase: int = 0
    phase_step: int = 0
    step: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    cursor: dict[str, Any] | None = None
    """Position in the data, for a recipe whose data is a stream."""
    guard: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    """Results of the recipe's evaluation that later evaluations or the end of the run need."""
    stopped: str | None = None
    """Reason why the run ended before its last step, if it did."""


@dataclass(frozen=True)
class Stage:
    """Schedule of one phase. `name` is logged with each step; a recipe with one phase needs none."""

    schedule: Plans
    seed: int
    name: str | None = None


class Feed(Iterator["Batch | None"]):
    """Micro-batches of a phase, in order; None for one that another process trains on."""

    def __init__(self, batches: Iterator["Batch | None"]) -> None:
        self._batches = batches

    def __next__(self) -> "Batch | None":
        return next(self._batches)

    def cursor(self) -> dict[str, Any] | None:
        """Return the position behind the last micro-batch, from which a resumed run continues."""
        return None

    def log_row(self, plan: StepPlan, result: StepResult, step: int) -> dict[str, Any]:
        """Return further values of a step for `log.jsonl`."""
        return {}

    def timing_row(self, seconds: float) -> dict[str, Any]:
        """Return further values of a step for `timing.jsonl`; called once a step, in every process."""
        return {}

    def close(self) -> None:
        """Stop the workers of the feed."""


class Recipe:
    """One kind of training: model, loss, phases, data, optimizer and evaluation."""

    model: nn.Module
    """The model, on its device."""
    loss: Loss
    blocks: nn.ModuleList
    """Layers of the model, each a unit of sharding."""
    engine: str
    dtype: torch.dtype
    stages: Sequence[Stage]
    num_tokens: int
    """Tokens of all phases, for the progress bar."""
    evaluate_every: int = 0
    """Steps between evaluations; 0: at the end of each phase only."""
    evaluates_first: bool = False
    saves_last: bool = True
    """Whether a checkpoint is written at the end of each phase."""
    filler: Batch | None = None
    """Batch for a process that has no micro-batch in a step; its loss counts 0."""

    def start_phase(self, phase: int) -> Optimizer:
        """Adapt the model to a phase, and return its optimizer."""
        raise NotImplementedError

    def feed(self, run: "TrainingRun") -> Feed:
        """Return the data of the current phase, starting at the state of the run."""
        raise NotImplementedError

    def evaluate(self, run: "TrainingRun", *, is_last: bool = False) -> str | None:
        """Score the model into the log; return why training should stop, if it should."""
        raise NotImplementedError

    def guard(self, state: TrainState) -> LossSpikeGuard | None:
        """Return the filter of steps; without one, a loss that is not finite ends the run."""
        return None

    def initial(self) -> tuple[Mapping[str, Tensor] | None, Mapping[str, Tensor]]:
        """Return weights and optimizer state to start with; None: the weights that the model has."""
        return None, {}

    def check(self, checkpoint: Checkpoint | None) -> None:
        """Check that a run may continue from a checkpoint. Raises: InputError if it may not."""

    def resume(self, checkpoint: Checkpoint) -> None:
        """Restore the recipe's own state."""

    def describe(self, checkpoint: Checkpoint | None) -> None:
        """Print the settings of the run."""

    def checkpoint_state(self, run: "TrainingRun") -> dict[str, Any]:
        """Return further state for checkpoints."""
        return {}

    def checkpoint_tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Return further tensors for checkpoints, by file stem."""
        return {}


def run_in_folder(
    config: RunOptions,
    finished_by: str,
    open_inputs: Callable[[World, torch.device], Inputs],
    train_and_write: Callable[[Inputs, World], None],
    begin: Callable[[Inputs], None] = lambda inputs: None,
    check_finished: Callable[[Inputs], None] = lambda inputs: None,
) -> Path:
    """Check a config, open its inputs, begin or reopen its run folder, and train unless the run is finished.

    Under `torchrun` every process calls this. `finished_by` names the file or folder that is written last. `begin`
    writes what belongs into a new run folder. `check_finished` checks that the inputs are those of a finished run.

    Returns: the folder of the model.

    Raises: InputError for inputs that do not fit together, before the run folder is touched; and for failures of the
        run itself, such as a loss that is not finite or a full disk.
    """
    config.check()
    out = Path(config.output)
    with join(config.device, config.distributed.sharding) as (world, device), ExitStack() as held:
        with world.together():
            inputs = open_inputs(world, device)
        with world.together():
            if world.is_main:
                is_new = not os.path.exists(out)  # a name that is too long is reported by the next line
                open_run_folder(out, config)
                held.enter_context(only_process(out))
                held.enter_context(_tell_how_to_continue(out))
                try:
                    begin(inputs)
                except InputError:
                    if is_new:
                        remove_unused(out)
                    raise
        if (out / finished_by).exists():
            with world.together():
                check_finished(inputs)
            print(f"{out}: this run is finished")
        else:
            train_and_write(inputs, world)
        world.wait()
    return out / "model"


@contextmanager
def _tell_how_to_continue(out: Path) -> Iterator[None]:
    """Add to an interrupt how the run continues."""
    try:
        yield
    except KeyboardInterrupt:
        step = newest_step(out / "checkpoints")
        where = f"after step {step:,}" if step else "from its start, since there is no checkpoint yet"
        raise KeyboardInterrupt(f"the same command continues {out} {where}") from None


class TrainingRun:
    """Run the phases of a recipe, starting at the newest checkpoint in the run folder."""

    def __init__(self, config: RunOptions, recipe: Recipe, world: World, device: torch.device) -> None:
        self.config, self.recipe, self.world, self.device = config, recipe, world, device
        self.folder = Path(config.output)
        self.state = TrainState()
        self._log: RunLog | None = None  # in the main process only, as is the progress bar
        self._report: ShowStep | None = None

    def train(self) -> TrainState:
        """Train to the end of the last phase, or until the recipe stops the run.

        Raises: InputError for a checkpoint of other data, a loss that stays out of bounds, or a full disk.
        """
        config, recipe, world = self.config, self.recipe, self.world
        checkpoint = _latest(self.folder, world)
        recipe.check(checkpoint)
        recipe.describe(checkpoint)
        if checkpoint is not None:
            print(f"resuming after step {checkpoint.step:,}", flush=True)
        self.objective = world.parallelize(Objective(recipe.model, recipe.loss), list(recipe.blocks), recipe.dtype)
        found = checkpoint.state if checkpoint else {"position": {}, "sizes": {}}
        self.state = TrainState(**found["position"])
        first_step = self.state.step + 1 if checkpoint else 0
        num_steps = sum(stage.schedule.num_steps for stage in recipe.stages)
        quiet = nullcontext()
        with (
            open_trackers(
                config.trackers if world.is_main else [], self.folder, asdict(config), first_step
            ) as trackers,
            RunLog(self.folder, found["sizes"], trackers.write) if world.is_main else quiet as self._log,
            show_steps(num_steps, recipe.num_tokens, self.state.tokens) if world.is_main else quiet as self._report,
            CheckpointWriter(
                self.folder / "checkpoints", keep=config.checkpoint.keep, kept_steps=self._kept_steps(), world=world
            ) as self.saver,
        ):
            self._started = time.monotonic() - self.state.elapsed_s
            self._log_start()
            optimizer_state = self._restore(checkpoint)
            while self.state.phase < len(recipe.stages) and self.state.stopped is None:
                optimizer_state = self._train_phase(optimizer_state)
        return self.state

    @property
    def stage(self) -> Stage:
        """The current phase; after the end of the run, the last one."""
        return self.recipe.stages[self._phase]

    def log(self, **row: Any) -> None:
        """Write a row into the log, in the main process."""
        if self._log is not None:
            self._log.log(**row)

    def _train_phase(self, optimizer_state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Train to the end of a phase, or until a rollback; return the state of the optimizer."""
        recipe, state = self.recipe, self.state
        self._phase = state.phase
        optimizer = recipe.start_phase(state.phase)
        if optimizer_state:
            load_named_state(recipe.model, optimizer, optimizer_state)
        feed, guard, schedule = recipe.feed(self), recipe.guard(state), self.stage.schedule
        steps = train(
            self.objective, optimizer, schedule, feed, seed=self.stage.seed, device=self.device, dtype=recipe.dtype,
            first_step=state.phase_step, step_filter=guard or must_be_finite, world=self.world,
            filler=recipe.filler,
        )  # fmt: skip
        if state.step == 0 and recipe.evaluates_first:
            recipe.evaluate(self)
        saved_at = started = time.monotonic()
        with closing(feed):
            for plan, result in steps:
                seconds = time.monotonic() - started
                is_last = state.phase_step + 1 == schedule.num_steps
                self._advance(result, feed, guard, phase_ends=is_last)
                self._record(plan, result, feed, seconds)
                if guard is not None and guard.is_exhausted:
                    return self._roll_back(feed, guard, result)
                every = recipe.evaluate_every
                if is_last or (every and state.step % every == 0):
                    state.stopped = recipe.evaluate(self, is_last=is_last)
                    if state.stopped is not None:
                        break
                spiking = guard is not None and guard.in_a_row
                if recipe.saves_last if is_last else not spiking and self._save_is_due(saved_at):
                    self._save(named_state(recipe.model, optimizer))
                    saved_at = time.monotonic()
                started = time.monotonic()
        if state.phase == len(recipe.stages) or state.stopped is not None:
            return {}
        return {name: full_tensor(tensor) for name, tensor in named_state(recipe.model, optimizer).items()}

    def _advance(self, result: StepResult, feed: Feed, guard: LossSpikeGuard | None, *, phase_ends: bool) -> None:
        state = self.state
        state.step += 1
        state.tokens += 0 if result.skipped else result.num_tokens
        if phase_ends:
            state.phase, state.phase_step, state.cursor, state.guard = state.phase + 1, 0, None, {}
        else:
            state.phase_step, state.cursor = state.phase_step + 1, feed.cursor()
            state.guard = guard.state() if guard is not None else {}

    def _record(self, plan: StepPlan, result: StepResult, feed: Feed, seconds: float) -> None:
        """Write one step into the log, and show it."""
        state, name = self.state, self.stage.name
        phase = {} if name is None else {"phase": name}
        timing = feed.timing_row(seconds)
        state.elapsed_s = time.monotonic() - self._started
        if self._log is None or self._report is None:
            return
        if result.skipped:
            self._log.log(
                kind="skipped", **phase, step=state.step, loss=number(result.loss), grad_norm=number(result.grad_norm),
                reason=result.skipped,
            )  # fmt: skip
            return
        tokens_per_s = result.num_tokens / seconds
        if state.step % self.config.log_every == 0:
            self._log.log(
                kind="step", **phase, step=state.step, tokens=state.tokens, lr=float(f"{plan.lr:.6g}"),
                micro_batches=plan.num_micro_batches, loss=number(result.loss), grad_norm=number(result.grad_norm),
                **feed.log_row(plan, result, state.step),
            )  # fmt: skip
            self._log.time(
                step=state.step, seconds=round(seconds, 4), tokens_per_s=round(tokens_per_s, 1),
                elapsed=round(state.elapsed_s, 3), **timing,
            )  # fmt: skip
        self._report(name or "training", state.step, state.tokens, result.loss, tokens_per_s)

    def _log_start(self) -> None:
        if self._log is not None:
            self._log.time(
                kind="start", after_step=self.state.step, world_size=self.world.size,
                sharding=self.config.distributed.sharding, device=name_of(self.device),
                dtype=dtype_name(self.recipe.dtype), engine=self.recipe.engine,
                torch=torch.__version__,
            )  # fmt: skip

    def _roll_back(self, feed: Feed, guard: LossSpikeGuard, result: StepResult) -> Mapping[str, Tensor]:
        """Restore the last checkpoint, but keep the position in the data: after the skipped steps.

        Raises: InputError after `guard.max_rollbacks` rollbacks.
        """
        state = self.state
        if guard.rollbacks >= guard.config.max_rollbacks:
            raise InputError(
                f"step {state.step}: {guard.in_a_row} steps in a row were skipped ({result.skipped}), after "
                f"{guard.rollbacks} rollbacks; a lower lr or wider bounds in guard may help"
            )
        self.saver.wait()
        checkpoint = _latest(self.folder, self.world)
        before = TrainState(**checkpoint.state["position"]) if checkpoint else TrainState()
        self.log(
            kind="rollback", phase=self.stage.name, step=state.step, to_step=before.step, reason=str(result.skipped)
        )
        again = {**before.guard, "in_a_row": 0, "rollbacks": guard.rollbacks + 1}
        for key, value in asdict(replace(before, cursor=feed.cursor(), guard=again)).items():
            setattr(state, key, value)
        optimizer_state = self._restore(checkpoint)
        if checkpoint is not None:
            # Replaces that checkpoint: a run that is stopped now must not read the same text again. Its weights may
            # belong to the phase before.
            self._save(optimizer_state, {key: checkpoint.state[key] for key in ("model",) if key in checkpoint.state})
        return optimizer_state

    def _save_is_due(self, saved_at: float) -> bool:
        """Say whether to write a checkpoint now; the clock of the main process decides for all."""
        options, step = self.config.checkpoint, self.state.step
        by_steps = any(every and step % every == 0 for every in (options.every_steps, options.keep_every_steps))
        by_clock = options.every_s > 0 and time.monotonic() - saved_at >= options.every_s
        if self.world.size > 1 and options.every_s > 0:
            votes = torch.tensor(float(by_clock and self.world.is_main), device=self.device)
            by_clock = bool(self.world.sum(votes).item())
        return by_steps or by_clock

    def _kept_steps(self) -> set[int]:
        """Return the steps whose checkpoints are kept: the last of each phase, and multiples of `keep_every_steps`."""
        ends = list(accumulate(stage.schedule.num_steps for stage in self.recipe.stages))
        every = self.config.checkpoint.keep_every_steps
        return {*ends, *(range(every, ends[-1] + 1, every) if every else ())}

    def _save(self, optimizer_state: Mapping[str, Tensor], changes: Mapping[str, Any] | None = None) -> None:
        """Begin to write a checkpoint; `changes` replace entries of the recipe's state."""
        recipe = self.recipe
        tensors = {"model": dict(recipe.model.named_parameters()), "optimizer": optimizer_state}
        state = {
            "position": asdict(self.state),
            "sizes": self._log.sizes() if self._log else {},
            "engine": recipe.engine,
            **recipe.checkpoint_state(self),
            **(changes or {}),
        }
        self.saver.save(self.state.step, {**tensors, **recipe.checkpoint_tensors()}, state)

    def _restore(self, checkpoint: Checkpoint | None) -> Mapping[str, Tensor]:
        """Load the weights of a checkpoint, or the initial ones; return the state of the optimizer."""
        if checkpoint is not None:
            self.recipe.resume(checkpoint)
            weights: Mapping[str, Tensor] | None = checkpoint.tensors("model")
            optimizer_state: Mapping[str, Tensor] = checkpoint.tensors("optimizer")
        else:
            weights, optimizer_state = self.recipe.initial()
        if weights is not None:
            with torch.no_grad():
                for name, parameter in self.recipe.model.named_parameters():
                    mine, first = local_shard(parameter), first_row(parameter)
                    own = weights[name]
                    mine.copy_(own[first : first + mine.shape[0]] if mine.ndim else own)
        return optimizer_state


def _latest(out: Path, world: World) -> Checkpoint | None:
    """Return the newest checkpoint; the main process first removes half-written ones."""
    with world.together():
        found = latest(out / "checkpoints") if world.is_main else None
    return found if world.is_main else latest(out / "checkpoints", clean=False)
