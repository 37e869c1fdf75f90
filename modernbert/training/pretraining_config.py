"""What a pretraining run is made of, and what must hold before it begins.

In: fields, from YAML or Python. Out: a checked config, the schedule of each phase, the shape of the model. A file of
its own so that the run itself reads as a run.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from modernbert.config_files import MISSING
from modernbert.errors import InputError
from modernbert.model.config import ModelConfig
from modernbert.tokenizer.tokenizer import Tokenizer
from modernbert.training.schedules import Schedule
from modernbert.training.trackers import check_sinks

__all__ = ["Phase", "PretrainConfig", "model_config", "schedule_of"]

DECAYS = ("none", "one_minus_sqrt")
# Fields that decide which weights there are, and how they meet.
_SHAPE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "global_attn_every_n_layers",
)
# Fields of the model that a phase or the tokenizer decides.
_DECIDED = {
    "max_position_embeddings": "max_len of the last phase",
    "global_rope_theta": "global_rope_theta of each phase",
    "local_rope_theta": "local_rope_theta of each phase",
    "pad_token_id": "the tokenizer",
    "cls_token_id": "the tokenizer",
    "sep_token_id": "the tokenizer",
}


@dataclass
class Phase:
    """One phase: its tokens, lengths, batch, learning rate and data.

    A step is `max_micro_batches` micro-batches of `micro_batch_tokens` tokens, shared out over the processes; the
    number grows up to there by `batch_growth` at a time over `batch_warmup_tokens`. `decay: one_minus_sqrt` lets the
    learning rate fall over the whole phase to `lr_floor` of its peak. `weights` are the sources' shares of the tokens;
    by default as their sizes.
    """

    tokens: int = MISSING
    lr: float = MISSING
    max_len: int = 1_024
    micro_batch_tokens: int = 16_384
    max_micro_batches: int = 1
    batch_warmup_tokens: int = 0
    batch_growth: int = 1
    warmup_tokens: int = 0
    decay: str = "none"
    lr_floor: float = 0.001
    weight_decay: float = 1e-5
    mask_rate: float = 0.3
    global_rope_theta: float = 10_000.0
    local_rope_theta: float = 10_000.0
    weights: dict[str, float] = field(default_factory=dict)


@dataclass
class SpikeGuardConfig:
    """When a step is skipped, and when a run goes back: see `Guard`.

    A step is not taken where its loss or gradient is not finite, its loss is `loss_rise` above the median of the last
    `window` steps taken in the phase, or its gradient norm `norm_factor` times theirs. After `patience` such steps in a
    row the run goes back to its last checkpoint and on with the text after them, at most `max_rollbacks` times in a
    phase.
    """

    window: int = 128
    loss_rise: float = 2.0
    norm_factor: float = 20.0
    patience: int = 5
    max_rollbacks: int = 3


@dataclass
class PretrainConfig:
    """A run: where it goes, what it learns from, its model, its phases in order.

    `model` has `preset` and any field of `ModelConfig` to change; the vocabulary is the tokenizer's, rounded up to a
    multiple of 64, unless named. `tokenizer` is a `tokenizer.json`, a folder with one, or a name on the hub; by default
    that of `init_from`. `init_from` is a model folder, a name on the hub, a checkpoint or an earlier run to start from,
    with its shape; `init_optimizer` takes over the optimizer's moments too; `new_vocabulary` gives it the
    rows that another tokenizer needs. `sources` and `heldout` are
    named folders of shards. Held-out text is scored at each of `heldout_lengths`, by default the first phase's.

    Steps are counted over all phases; `eval_every` 0 scores held-out text at the end of each phase only, a
    `save_every_...` of 0 is off. The newest `keep` checkpoints stay, the last of each phase, and every one whose step
    is a multiple of `keep_every_steps`. `watch` names boards that show the rows of the log besides: tensorboard, wandb,
    trackio.
    """

    FREE_TO_CHANGE: ClassVar[tuple[str, ...]] = (
        "out", "device", "sharding", "compile", "recompute", "save_every_steps", "save_every_s", "keep",
        "keep_every_steps", "verify", "watch",
    )  # fmt: skip

    out: str = MISSING
    tokenizer: str | None = None
    sources: dict[str, str] = field(default_factory=dict)
    heldout: dict[str, str] = field(default_factory=dict)
    init_from: str | None = None
    init_optimizer: bool = False
    new_vocabulary: bool = False
    model: dict[str, Any] = field(default_factory=dict)
    phases: dict[str, Phase] = field(default_factory=dict)
    seed: int = 17
    device: str = "auto"
    precision: str = "auto"
    backend: str = "auto"
    sharding: str = "none"
    compile: bool = False
    recompute: bool = False
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    eval_every: int = 0
    eval_mask_rate: float = 0.15
    heldout_tokens: int | None = None
    heldout_lengths: list[int] = field(default_factory=list)
    guard: SpikeGuardConfig = field(default_factory=SpikeGuardConfig)
    log_every: int = 1
    watch: list[str] = field(default_factory=list)
    save_every_steps: int = 0
    save_every_s: float = 300.0
    keep: int = 2
    keep_every_steps: int = 0
    verify: bool = True

    def check(self) -> None:
        """Check all that can be checked without opening a file.

        Raises: InputError naming the field, what was found and what was expected.
        """
        if self.tokenizer is None and (self.init_from is None or self.new_vocabulary):
            raise InputError(
                "tokenizer: found none, expected a tokenizer.json, a folder with one, or a name on the hub"
                + (", for new_vocabulary" if self.new_vocabulary else ", or init_from with a model to start from")
            )
        if not self.phases:
            raise InputError("phases: found none, expected at least one with its tokens and lr")
        if not self.sources:
            raise InputError("sources: found none, expected at least one `name: folder of shards`")
        _expect("seed", self.seed, 0 <= self.seed < 2**32, "0 to 2**32 - 1")
        _expect("log_every", self.log_every, self.log_every >= 1, "at least 1")
        _expect("eval_every", self.eval_every, self.eval_every >= 0, "0 or more steps")
        _expect("save_every_steps", self.save_every_steps, self.save_every_steps >= 0, "0 or more")
        _expect("save_every_s", self.save_every_s, self.save_every_s >= 0, "0 or more seconds")
        _expect("keep", self.keep, self.keep >= 2, "at least 2 checkpoints, in case one is damaged")
        _expect("eval_mask_rate", self.eval_mask_rate, 0 < self.eval_mask_rate < 1, "a share between 0 and 1")
        _expect("heldout_tokens", self.heldout_tokens, (self.heldout_tokens or 1) > 0, "a number above 0, or null")
        _expect("keep_every_steps", self.keep_every_steps, self.keep_every_steps >= 0, "0 or more")
        for length in self.heldout_lengths:
            _expect("heldout_lengths", length, length >= 3, "lengths of at least 3")
        if self.init_optimizer or self.new_vocabulary:
            _expect("init_from", self.init_from, self.init_from is not None, "a model to start from")
        both = self.init_optimizer and self.new_vocabulary
        _expect("init_optimizer", self.init_optimizer, not both, "false, for a new vocabulary has no moments yet")
        _check_guard(self.guard)
        check_sinks(self.watch)
        for name in ("beta1", "beta2"):
            _expect(name, getattr(self, name), 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        _expect("eps", self.eps, self.eps > 0, "a number above 0")
        for name, phase in self.phases.items():
            _check_phase(f"phases.{name}", phase, self.sources)


def schedule_of(phase: Phase) -> Schedule:
    """Return the schedule of a phase."""
    return Schedule(
        tokens=phase.tokens,
        micro_batch_tokens=phase.micro_batch_tokens,
        peak_lr=phase.lr,
        warmup_tokens=phase.warmup_tokens,
        decay_tokens=0 if phase.decay == "none" else phase.tokens,
        lr_floor=phase.lr_floor,
        max_micro_batches=phase.max_micro_batches,
        batch_warmup_tokens=phase.batch_warmup_tokens,
        batch_growth=phase.batch_growth,
    )


def model_config(config: PretrainConfig, tokenizer: Tokenizer, start: ModelConfig | None = None) -> ModelConfig:
    """Return the shape of the model as it is after the last phase: that of `start`, where a run starts from a model.

    Raises: InputError for an unknown preset or field, a vocabulary too small for the tokenizer, or a shape that the
    model to start from does not have.
    """
    changes = {str(key): value for key, value in config.model.items()}
    for key, decider in _DECIDED.items():
        if key in changes:
            raise InputError(f"model.{key}: found {changes[key]}, but it follows from {decider}; leave it out")
    if start is not None:
        _check_shape(config, changes, start)
        shape = asdict(start)
        if config.new_vocabulary:
            del shape["vocab_size"]  # follows from the new tokenizer, unless named
        changes = {**shape, **changes}
    for key in _DECIDED:
        changes.pop(key, None)
    preset = changes.pop("preset", "base")
    vocab_size = changes.setdefault("vocab_size", -(-tokenizer.vocab_size // 64) * 64)
    if not isinstance(vocab_size, int) or vocab_size < tokenizer.vocab_size:
        expected = f"at least the {tokenizer.vocab_size:,} of {config.tokenizer or config.init_from}"
        raise InputError(f"model.vocab_size: found {vocab_size}, expected {expected}")
    last = list(config.phases.values())[-1]
    try:
        return ModelConfig.preset(
            str(preset),
            **changes,
            max_position_embeddings=last.max_len,
            global_rope_theta=last.global_rope_theta,
            local_rope_theta=last.local_rope_theta,
            pad_token_id=tokenizer.pad_id,
            cls_token_id=tokenizer.cls_id,
            sep_token_id=tokenizer.sep_id,
        )
    except InputError as error:
        # The model names its field; here that field is one of several groups.
        raise InputError(f"model.{str(error).removeprefix('model.')}") from None


def _check_shape(config: PretrainConfig, changes: dict[str, Any], start: ModelConfig) -> None:
    """Refuse what would make another model of the one to start from; what has no weights may be changed."""
    if "preset" in changes:
        raise InputError(
            f"model.preset: found {changes['preset']}, but the shape is that of {config.init_from}; leave it out"
        )
    for key, value in changes.items():
        found = getattr(start, key, value)
        if key in _SHAPE and value != found and not (key == "vocab_size" and config.new_vocabulary):
            raise InputError(f"model.{key}: found {value}, expected {found}, as in {config.init_from}")


def _check_guard(guard: SpikeGuardConfig) -> None:
    for name, least in (("window", 8), ("patience", 1), ("max_rollbacks", 0)):
        _expect(f"guard.{name}", getattr(guard, name), getattr(guard, name) >= least, f"at least {least}")
    _expect("guard.loss_rise", guard.loss_rise, guard.loss_rise > 0, "a number above 0")
    _expect("guard.norm_factor", guard.norm_factor, guard.norm_factor > 1, "a number above 1")


def _check_phase(key: str, phase: Phase, sources: dict[str, str]) -> None:
    def expect(name: str, holds: Callable[[Any], bool], expected: str) -> None:
        found = getattr(phase, name)
        _expect(f"{key}.{name}", found, holds(found), expected)

    for name in ("max_micro_batches", "lr", "global_rope_theta", "local_rope_theta", "micro_batch_tokens"):
        expect(name, lambda value: value > 0, "a number above 0")
    for name in ("batch_warmup_tokens", "warmup_tokens", "weight_decay"):
        expect(name, lambda value: value >= 0, "0 or more")
    expect("batch_growth", lambda value: value > 0, "a number above 0")
    growth = phase.batch_growth
    expect("max_micro_batches", lambda value: value % growth == 0, f"a multiple of batch_growth ({growth})")
    expect("decay", lambda value: value in DECAYS, " or ".join(DECAYS))
    expect("lr_floor", lambda value: 0 <= value <= 1, "a share of lr, 0 to 1")
    expect("mask_rate", lambda value: 0 < value < 1, "a share between 0 and 1")
    budget = phase.micro_batch_tokens
    expect("max_len", lambda value: 3 <= value <= budget, f"3 to {budget} (micro_batch_tokens)")
    expect("tokens", lambda value: value > 0, "a number above 0")
    first_step = schedule_of(phase).plan(0).num_micro_batches * budget
    expect("tokens", lambda _: schedule_of(phase).num_steps >= 1, f"at least the {first_step:,} of one step")
    for name, weight in phase.weights.items():
        known = ", ".join(sources)
        _expect(f"{key}.weights", name, name in sources, f"a name in sources ({known})")
        _expect(f"{key}.weights.{name}", weight, weight >= 0, "0 or more")
    if phase.weights:
        absent = [name for name in sources if name not in phase.weights]
        _expect(
            f"{key}.weights", list(phase.weights), not absent, f"a weight for {', '.join(absent)} too, 0 to leave out"
        )
        _expect(f"{key}.weights", dict(phase.weights), sum(phase.weights.values()) > 0, "one weight above 0")


def _expect(key: str, found: Any, holds: bool, expected: str) -> None:
    if isinstance(found, float) and not math.isfinite(found):
        raise InputError(f"{key}: found {found!r}, expected a finite number")
    if not holds:
        raise InputError(f"{key}: found {found!r}, expected {expected}")
