"""Pretraining in phases, from shards of tokenized text to a model folder.

The run folder has `config.yaml`, `log.jsonl`, `timing.jsonl`, `checkpoints/`, and at the end `model/`. A run that is
stopped at any moment and started again ends with the same bits. Under `torchrun`, all processes train one model, on the
same text as one process.

Source: section 2.2 of the paper (stable phase, context extension, decay phase).
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modernbert.batch import Batch
from modernbert.checkpoints.command_line import command_line
from modernbert.checkpoints.folder import ModelFolder
from modernbert.checkpoints.model_card import ModelCard, Scores
from modernbert.data.prepare import run as prepare
from modernbert.data.stream import Packed, Stream, prefetch
from modernbert.devices import dtype_name, peak_memory
from modernbert.errors import counted
from modernbert.files import new_folder
from modernbert.model.config import ModelConfig
from modernbert.model.heads import MaskedLM
from modernbert.model.initialization import initialize
from modernbert.model.surgery import change_vocabulary
from modernbert.tokenizer.shared_entries import entries_of
from modernbert.training.distributed import World, first_process_prints, full_tensor
from modernbert.training.flops import peak_flops, step_flops
from modernbert.training.heldout_evaluation import mean_loss, position_lines, score_heldout
from modernbert.training.initial_model import TOKENIZER_OF_RUN
from modernbert.training.losses import masked_lm
from modernbert.training.optimizers import Optimizer, OptimizerContext, build_optimizer, parameter_groups
from modernbert.training.pretraining_config import Phase, PretrainConfig, schedule_of
from modernbert.training.pretraining_inputs import (
    PretrainInputs,
    add_text_shards,
    check_digests,
    open_inputs,
    preparation,
)
from modernbert.training.run_checkpoint import Checkpoint
from modernbert.training.run_log import read_log
from modernbert.training.schedules import StepPlan
from modernbert.training.spike_guard import LossSpikeGuard
from modernbert.training.training_loop import StepResult, derive_seed
from modernbert.training.training_run import Feed, Recipe, Stage, TrainingRun, TrainState, run_in_folder

__all__ = ["Phase", "PretrainConfig", "pretrain", "run"]


@first_process_prints()
def run(config: PretrainConfig) -> Path:
    """Pretrain and print where the model is; see `pretrain`."""
    folder = pretrain(config)
    print(f"model: {folder}")
    return folder


def pretrain(config: PretrainConfig) -> Path:
    """Pretrain, or continue a run that was stopped, and return the model folder.

    Args:
        config: Options of the run. A run folder can only be continued with the same options, except for
            `RunOptions.FREE_TO_CHANGE`.

    Raises:
        InputError: For phases, sources, tokenizer or model that do not fit together, and a run folder of another
            config, before that folder is touched. For a loss that stays out of bounds or a full disk, with the
            checkpoints so far kept.
    """
    out = Path(config.output)

    def begin(inputs: PretrainInputs) -> None:
        """Copy the tokenizer of the model to start from, which may be gone when the run continues; tokenize text."""
        if config.tokenizer is None and inputs.start is not None:
            with new_folder(out / TOKENIZER_OF_RUN, replace=True) as partial:
                inputs.tokenizer.save_folder(partial, inputs.model.max_position_embeddings)
        if inputs.needs_text:
            tokenizer = config.tokenizer or str(out / TOKENIZER_OF_RUN)
            prepare(preparation(config, tokenizer), replace_other=True)

    def train_and_write(inputs: PretrainInputs, world: World) -> None:
        if config.text:
            with world.together():
                inputs = add_text_shards(config, inputs, world)
        recipe = _PretrainRecipe(config, inputs, world)
        state = TrainingRun(config, recipe, world, inputs.device).train()
        with world.together():
            _export(out / "model", recipe.model, inputs, world, _card(config, inputs, state))
        if world.is_main:
            for line in position_lines(read_log(out)):
                print(line)

    return run_in_folder(
        config, "model", lambda world, device: open_inputs(config, world, device), train_and_write, begin
    )


class _PretrainRecipe(Recipe):
    """Masked language modeling in the phases of a config."""

    model: MaskedLM
    evaluates_first = True

    def __init__(self, config: PretrainConfig, inputs: PretrainInputs, world: World) -> None:
        self.config, self.inputs, self.world = config, inputs, world
        self.model = MaskedLM(inputs.model, inputs.engine)
        self.model.to(inputs.device)
        self.model.model.recompute = config.recompute
        if config.compile and (reason := inputs.engine.compile_blocks(self.model.model, inputs.dtype)):
            print(f"compile: not used ({reason})")
        self.loss, self.blocks = masked_lm, self.model.model.layers
        self.engine, self.dtype = inputs.engine.name, inputs.dtype
        self.evaluate_every = config.evaluation.every_steps
        self.phases = list(config.phases.values())
        schedules = [schedule_of(phase) for phase in self.phases]
        self.stages = [
            Stage(schedule, derive_seed(config.seed, number), name)
            for number, (name, schedule) in enumerate(zip(config.phases, schedules, strict=True))
        ]
        self.num_tokens = sum(schedule.plan(schedule.num_steps).tokens_before for schedule in schedules)
        self._evaluation: dict[str, Any] = {}

    def start_phase(self, phase: int) -> Optimizer:
        """Set the RoPE bases of a phase, and return its optimizer."""
        options, world = self.phases[phase], self.world
        self.model.model.config = replace(
            self.inputs.model, global_rope_theta=options.global_rope_theta, local_rope_theta=options.local_rope_theta
        )
        kernels = self.inputs.engine.optimizer_kernels(self.inputs.device)
        context = OptimizerContext(self.config.optim, world.sum_shards if world.mesh else None, kernels)
        return build_optimizer(self.model, parameter_groups(self.model, options.weight_decay), options.lr, context)

    def feed(self, run: TrainingRun) -> Feed:
        """Return the packed text of the current phase, starting at the cursor."""
        phase = self.phases[run.state.phase]
        stream = Stream(
            self.inputs.sources,
            self.inputs.tokenizer,
            seed=self.stages[run.state.phase].seed,
            max_len=phase.max_len,
            budget_tokens=phase.micro_batch_tokens,
            mask_rate=phase.mask_rate,
            weights=phase.weights or None,
            cursor=run.state.cursor,
            share=(self.world.rank, self.world.size),
        )
        return _PackedFeed(stream, self.model.model.config, self.inputs, self.world)

    def guard(self, state: TrainState) -> LossSpikeGuard:
        """Return the filter that skips loss spikes."""
        return LossSpikeGuard(self.config.guard, state.guard)

    def evaluate(self, run: TrainingRun, *, is_last: bool = False) -> None:
        """Score held-out text into the log, and keep the loss for the next checkpoint."""
        inputs, state, name = self.inputs, run.state, run.stage.name
        if not inputs.heldout:
            return
        scores = score_heldout(
            run.objective, inputs.heldout, inputs.tokenizer, self.config,
            device=inputs.device, dtype=inputs.dtype, world=self.world,
        )  # fmt: skip
        state.evaluation = {"step": state.step, "loss": mean_loss(scores)}
        for score in scores:
            run.log(kind="heldout", phase=name, step=state.step, tokens=state.tokens, **score)

    def initial(self) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Return the weights of the model to start from, or random ones."""
        config, inputs = self.config, self.inputs
        if inputs.start is None:
            drawn = MaskedLM(inputs.model)
            initialize(drawn, inputs.model, config.seed)
            return dict(drawn.named_parameters()), {}
        weights: Mapping[str, Tensor] = inputs.start.weights
        if config.new_vocabulary:
            entries = entries_of(inputs.tokenizer, inputs.start.tokenizer)
            weights = change_vocabulary(weights, entries, inputs.model.vocab_size)
        return weights, inputs.start.optimizer if config.init_optimizer else {}

    def check(self, checkpoint: Checkpoint | None) -> None:
        """Refuse to continue with shards whose content has changed."""
        check_digests(checkpoint, self.inputs.digests)

    def checkpoint_state(self, run: TrainingRun) -> dict[str, Any]:
        """Return the state that `--init-from` and averaging need."""
        return {
            "shards": self.inputs.digests,
            "model": asdict(self.model.model.config),
            "tokenizer": self.inputs.tokenizer.fingerprint,
            "heldout": run.state.evaluation or None,
        }

    def describe(self, checkpoint: Checkpoint | None) -> None:
        """Print device, processes, start, size and length of the run."""
        config, inputs, world = self.config, self.inputs, self.world
        num_steps = sum(stage.schedule.num_steps for stage in self.stages)
        num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        dtype = dtype_name(inputs.dtype)
        print(f"device {inputs.device}, dtype {dtype}, engine {inputs.engine.name}")
        if world.size > 1:
            print(f"{world.size} processes, sharding {config.distributed.sharding}")
            for name, phase in config.phases.items():
                if phase.max_micro_batches % world.size:
                    number = phase.max_micro_batches
                    print(f"phases.{name}: {number} micro-batches a step do not divide evenly among {world.size}")
        if checkpoint is None and inputs.start is not None:
            print(f"starting from {config.init_from}")
            name, phase = next(iter(config.phases.items()))
            for key in ("global_rope_theta", "local_rope_theta"):
                was, now = getattr(inputs.start.config, key), getattr(phase, key)
                if was != now:
                    print(
                        f"phases.{name}.{key}: changes from {was:,.0f}, with which the model was trained, to {now:,.0f}"
                    )
            was, now = inputs.start.config.max_position_embeddings, inputs.model.max_position_embeddings
            if was != now:
                last = list(config.phases)[-1]
                print(f"max_position_embeddings: changes from {was:,} to {now:,}, the max_len of phases.{last}")
        for name, phase in config.phases.items():
            if phase.warmup_tokens > phase.tokens:
                print(
                    f"phases.{name}: the learning rate does not reach {phase.lr:g}, since its {phase.tokens:,} tokens "
                    f"are fewer than {phase.warmup_tokens:,} warmup_tokens"
                )
        phases = f"phase{'s' * (len(config.phases) > 1)} {', '.join(config.phases)}"
        print(f"{num_parameters:,} parameters, {phases}, {counted(num_steps, 'step')}, {self.num_tokens:,} tokens")
        if checkpoint is not None:
            before = checkpoint.state.get("engine", self.engine)
            if before != self.engine:
                print(f"the engine was {before} before and rounds differently: the run will not end with the same bits")


class _PackedFeed(Feed):
    """Batches of a stream, built ahead by a thread.

    It counts the floating-point operations of the batches of this process.
    """

    def __init__(self, stream: Stream, model: ModelConfig, inputs: PretrainInputs, world: World) -> None:
        self._last: Packed
        self._flops = 0
        self._model, self._inputs, self._world = model, inputs, world
        self._ahead = prefetch(iter(stream))

    def __next__(self) -> Batch | None:
        self._last = next(self._ahead)
        batch = self._last.batch
        if batch is not None:
            self._flops += step_flops(self._model, batch.layout.lengths, batch.num_labels)
        return batch

    def cursor(self) -> dict[str, Any]:
        """Return the position in the text behind the last batch."""
        return self._last.cursor()

    def log_row(self, plan: StepPlan, result: StepResult, step: int) -> dict[str, Any]:
        """Return the fill of the batches and the tokens and epochs read of each source."""
        packed = self._last
        return {
            "fill": round(result.num_tokens / (plan.num_micro_batches * packed.budget_tokens), 6),
            "masked": result.num_rows,
            "source_tokens": packed.source_tokens,
            "epochs": {name: round(epochs, 4) for name, epochs in packed.epochs.items()},
        }

    def timing_row(self, seconds: float) -> dict[str, Any]:
        """Return operations per second, MFU and memory since the last call, as a mean over the processes."""
        device = self._inputs.device
        # Summed over all processes, since one of them may have had no batch in this step.
        flops = self._world.sum(torch.tensor(float(self._flops), dtype=torch.float64, device=device))
        flops_per_s, self._flops = float(flops) / self._world.size / seconds, 0
        peak = peak_flops(device, self._inputs.dtype)
        return {
            "tflops_per_s": float(f"{flops_per_s / 1e12:.4g}"),
            "mfu": None if peak is None else round(flops_per_s / peak, 4),
            "memory_gib": round(peak_memory(device) / 2**30, 3),
        }

    def close(self) -> None:
        """Stop the thread."""
        self._ahead.close()  # type: ignore[attr-defined]


def _card(config: PretrainConfig, inputs: PretrainInputs, state: TrainState) -> ModelCard:
    settings: dict[str, Any] = {"Tokens": state.tokens, "Steps": state.step}
    for number, (name, phase) in enumerate(config.phases.items(), start=1):
        settings[f"Phase {number}"] = (
            f"{name}: {phase.tokens:,} tokens, documents of up to {phase.max_len:,} tokens, "
            f"peak learning rate {phase.lr:g}, mask rate {phase.mask_rate:g}"
        )
    settings |= {
        "Optimizer": config.optim.kind, "Seed": config.seed,
        "Data type of the matrix products": dtype_name(inputs.dtype),
    }  # fmt: skip
    # The loss is None if it is not finite.
    loss = state.evaluation.get("loss") if state.evaluation.get("step") == state.step else None
    return ModelCard(
        method="Trained further by masked language modeling."
        if config.init_from
        else "Pretrained from random weights.",
        command=command_line("modernbert pretrain", config, config.FREE_TO_CHANGE),
        bases=[config.init_from] if config.init_from else [],
        relation="finetune" if config.init_from else None,
        data=[*config.text, *config.data.sources.values()],
        settings=settings,
        scores=[Scores("heldout", {"loss": loss}, list(inputs.heldout))] if loss is not None else [],
    )


def _export(folder: Path, model: MaskedLM, inputs: PretrainInputs, world: World, card: ModelCard) -> None:
    """Write the model folder; a collective call, if the model is sharded."""
    weights = {name: full_tensor(parameter.detach()).cpu() for name, parameter in model.named_parameters()}
    if not world.is_main:
        return
    exported = MaskedLM(inputs.model)
    exported.load_state_dict(weights, strict=False)
    ModelFolder.save(folder, exported, inputs.tokenizer, card=card)
