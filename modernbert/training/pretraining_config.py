"""Options of a pretraining run, their checks, and the model and schedules that follow from them."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from modernbert.config_files import MISSING
from modernbert.errors import InputError
from modernbert.model.config import ModelConfig
from modernbert.tokenizer.tokenizer import Tokenizer
from modernbert.training.run_options import RunOptions, check_choices, expect
from modernbert.training.schedules import Schedule

__all__ = [
    "DataConfig",
    "EvaluationConfig",
    "Phase",
    "PretrainConfig",
    "SpikeGuardConfig",
    "model_config",
    "schedule_of",
]

# Fields that decide the shapes of the weights and how they are used.
_SHAPE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "global_attn_every_n_layers",
)
# Fields of the model that follow from a phase or the tokenizer.
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
    """One phase of pretraining: its tokens, document length, batch size, learning rate and data mixture.

    A step has up to `max_micro_batches` micro-batches of `micro_batch_tokens` tokens, divided among the processes.
    """

    tokens: int = MISSING
    """Tokens of the phase."""
    lr: float = MISSING
    """Peak learning rate."""
    max_len: int = 1_024
    """Maximum tokens of a document; longer documents are cut into pieces, and all pieces are kept."""
    micro_batch_tokens: int = 16_384
    """Token budget of a micro-batch."""
    max_micro_batches: int = 1
    """Micro-batches of a step, after the batch size warm-up."""
    batch_warmup_tokens: int = 0
    """Tokens over which a step grows to `max_micro_batches`."""
    batch_growth: int = 1
    """Micro-batches of the first step, and by how many a step grows."""
    warmup_tokens: int = 0
    """Tokens over which the learning rate rises linearly from 0."""
    decay: Literal["none", "one_minus_sqrt"] = "none"
    """one_minus_sqrt: the learning rate falls as 1 - sqrt(t) over the whole phase, to `lr_floor` of its peak."""
    lr_floor: float = 0.001
    """Learning rate at the end of the decay, as a share of `lr`."""
    weight_decay: float = 1e-5
    """Share of each weight that a step at the peak learning rate removes."""
    mask_rate: float = 0.3
    """Share of tokens that are masked."""
    global_rope_theta: float = 10_000.0
    """RoPE base of the layers with global attention."""
    local_rope_theta: float = 10_000.0
    """RoPE base of the layers with sliding-window attention."""
    weights: dict[str, float] = field(default_factory=dict)
    """Share of the tokens from each source; by default in proportion to the sizes of the sources."""


@dataclass
class DataConfig:
    """Folders of shards, written by `modernbert prepare`."""

    sources: dict[str, str] = field(default_factory=dict)
    """Training text: a folder of shards for each name."""
    heldout: dict[str, str] = field(default_factory=dict)
    """Held-out text: a folder of shards for each name."""
    verify: bool = True
    """Verify the SHA-256 of each shard before training starts."""


@dataclass
class EvaluationConfig:
    """When and how held-out text is scored. It is always scored before the first step and at the end of a phase."""

    every_steps: int = 0
    """Score held-out text each time this many steps are done; 0 turns it off."""
    mask_rate: float = 0.15
    """Share of held-out tokens that are masked."""
    max_tokens: int | None = None
    """Held-out tokens to score of each source; all, by default."""
    lengths: list[int] = field(default_factory=list)
    """Maximum tokens of a held-out document, one score for each; that of the first phase, by default."""

    def check(self, prefix: str = "evaluation.") -> None:
        """Check the values. Raises: InputError naming the field."""
        expect(f"{prefix}every_steps", self.every_steps, self.every_steps >= 0, "0 or more steps")
        expect(f"{prefix}mask_rate", self.mask_rate, 0 < self.mask_rate < 1, "a share between 0 and 1")
        expect(f"{prefix}max_tokens", self.max_tokens, (self.max_tokens or 1) > 0, "a number above 0, or null")
        for length in self.lengths:
            expect(f"{prefix}lengths", length, length >= 3, "lengths of at least 3")


@dataclass
class SpikeGuardConfig:
    """When a step is skipped, and when a run returns to its last checkpoint.

    A step is skipped if its loss or gradient is not finite, or if one of them is far above the median of the last
    `window` steps of the phase. After a return, the run continues with the text behind the skipped steps.
    """

    window: int = 128
    """Number of last steps of which the medians are taken."""
    loss_rise: float = 2.0
    """Skip a step whose loss is this much above the median."""
    norm_factor: float = 20.0
    """Skip a step whose gradient norm is more than this many times the median."""
    patience: int = 5
    """Skipped steps in a row after which the run returns to its last checkpoint."""
    max_rollbacks: int = 3
    """Returns to a checkpoint in one phase after which the run ends with an error."""

    def check(self, prefix: str = "guard.") -> None:
        """Check the values. Raises: InputError naming the field."""
        for name, least in (("window", 8), ("patience", 1), ("max_rollbacks", 0)):
            expect(f"{prefix}{name}", getattr(self, name), getattr(self, name) >= least, f"at least {least}")
        expect(f"{prefix}loss_rise", self.loss_rise, self.loss_rise > 0, "a number above 0")
        expect(f"{prefix}norm_factor", self.norm_factor, self.norm_factor > 1, "a number above 1")


@dataclass(kw_only=True)
class PretrainConfig(RunOptions):
    """Pretrain a model from scratch, or continue the pretraining of one, in one or more phases."""

    FREE_TO_CHANGE: ClassVar[tuple[str, ...]] = (
        *RunOptions.FREE_TO_CHANGE, "compile", "recompute", "data.verify",
    )  # fmt: skip

    data: DataConfig = field(default_factory=DataConfig)
    """Training text and held-out text."""
    tokenizer: str | None = None
    """A tokenizer.json, a folder with one, or a model on the Hub; that of `init_from`, by default."""
    init_from: str | None = None
    """A model folder, a model on the Hub, a checkpoint or a run to start from; its shape is kept. A new model,
    by default."""
    init_optimizer: bool = False
    """Start with the optimizer state of `init_from` too."""
    new_vocabulary: bool = False
    """Give the model of `init_from` another tokenizer; the embeddings of tokens that both share are kept."""
    model: dict[str, Any] = field(default_factory=dict)
    """Shape of a new model: `preset`, and fields of `ModelConfig` that differ from it. The vocabulary size is that of
    the tokenizer, rounded up to a multiple of 64, by default."""
    phases: dict[str, Phase] = field(default_factory=dict)
    """The phases by name, in order."""
    seed: int = 17
    """Seed of the weights, the order of the text, the masks and dropout."""
    compile: bool = False
    """Compile the layers with `torch.compile`."""
    recompute: bool = False
    """Recompute activations in the backward pass, which needs less memory and more time."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Scoring of held-out text."""
    guard: SpikeGuardConfig = field(default_factory=SpikeGuardConfig)
    """Skipping of steps with a loss spike."""

    def check(self) -> None:
        """Check all values that can be checked without opening a file.

        Raises: InputError naming the field, the value found and the value expected.
        """
        if self.tokenizer is None and (self.init_from is None or self.new_vocabulary):
            raise InputError(
                "tokenizer: found none, expected a tokenizer.json, a folder with one, or a name on the hub"
                + (", for new_vocabulary" if self.new_vocabulary else ", or init_from with a model to start from")
            )
        if not self.phases:
            raise InputError("phases: found none, expected at least one with its tokens and lr")
        if not self.data.sources:
            raise InputError("data.sources: found none, expected at least one `name: folder of shards`")
        super().check()
        if self.init_optimizer or self.new_vocabulary:
            expect("init_from", self.init_from, self.init_from is not None, "a model to start from")
        both = self.init_optimizer and self.new_vocabulary
        expect("init_optimizer", self.init_optimizer, not both, "false, for a new vocabulary has no moments yet")
        for group in (self.evaluation, self.guard):
            group.check()
        for name, phase in self.phases.items():
            _check_phase(f"phases.{name}", phase, self.data.sources)


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
    """Return the config of the model after the last phase, with the shape of `start` if the run starts from a model.

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
        # The message begins with the field of the model, which is in a group here.
        raise InputError(f"model.{str(error).removeprefix('model.')}") from None


def _check_shape(config: PretrainConfig, changes: dict[str, Any], start: ModelConfig) -> None:
    """Refuse changes to the shape of the model to start from; fields without weights may change."""
    if "preset" in changes:
        raise InputError(
            f"model.preset: found {changes['preset']}, but the shape is that of {config.init_from}; leave it out"
        )
    for key, value in changes.items():
        found = getattr(start, key, value)
        if key in _SHAPE and value != found and not (key == "vocab_size" and config.new_vocabulary):
            raise InputError(f"model.{key}: found {value}, expected {found}, as in {config.init_from}")


def _check_phase(key: str, phase: Phase, sources: dict[str, str]) -> None:
    def check(name: str, holds: Callable[[Any], bool], expected: str) -> None:
        found = getattr(phase, name)
        expect(f"{key}.{name}", found, holds(found), expected)

    check_choices(phase, f"{key}.")
    for name in ("max_micro_batches", "lr", "global_rope_theta", "local_rope_theta", "micro_batch_tokens"):
        check(name, lambda value: value > 0, "a number above 0")
    for name in ("batch_warmup_tokens", "warmup_tokens", "weight_decay"):
        check(name, lambda value: value >= 0, "0 or more")
    check("batch_growth", lambda value: value > 0, "a number above 0")
    growth = phase.batch_growth
    check("max_micro_batches", lambda value: value % growth == 0, f"a multiple of batch_growth ({growth})")
    check("lr_floor", lambda value: 0 <= value <= 1, "a share of lr, 0 to 1")
    check("mask_rate", lambda value: 0 < value < 1, "a share between 0 and 1")
    budget = phase.micro_batch_tokens
    check("max_len", lambda value: 3 <= value <= budget, f"3 to {budget} (micro_batch_tokens)")
    check("tokens", lambda value: value > 0, "a number above 0")
    first_step = schedule_of(phase).plan(0).num_micro_batches * budget
    check("tokens", lambda _: schedule_of(phase).num_steps >= 1, f"at least the {first_step:,} of one step")
    for name, weight in phase.weights.items():
        known = ", ".join(sources)
        expect(f"{key}.weights", name, name in sources, f"a name in data.sources ({known})")
        expect(f"{key}.weights.{name}", weight, weight >= 0, "0 or more")
    if phase.weights:
        absent = [name for name in sources if name not in phase.weights]
        expect(
            f"{key}.weights", list(phase.weights), not absent, f"a weight for {', '.join(absent)} too, 0 to leave out"
        )
        expect(f"{key}.weights", dict(phase.weights), sum(phase.weights.values()) > 0, "one weight above 0")
