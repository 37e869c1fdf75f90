"""Options of a pretraining run, their checks, and the schedules that follow from them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from modernbert.data.prepare_options import SplitDocuments
from modernbert.errors import InputError
from modernbert.options import MISSING, default_of
from modernbert.training.run_options import RunOptions, Seed, expect
from modernbert.training.schedules import Schedule

__all__ = [
    "DataConfig",
    "EvaluationConfig",
    "Phase",
    "PretrainConfig",
    "SpikeGuardConfig",
    "schedule_of",
]


@dataclass
class Phase:
    """One phase of pretraining: its tokens, document length, batch size, learning rate and data mixture.

    A step has up to `max_micro_batches` micro-batches of `micro_batch_tokens` tokens, divided among the processes.
    """

    tokens: Annotated[int, Gt(0)] = MISSING
    """Tokens of the phase."""
    lr: Annotated[float, Gt(0)] = MISSING
    """Peak learning rate."""
    max_len: Annotated[int, Ge(3)] = 1_024
    """Maximum tokens of a document; longer documents are cut into pieces, and all pieces are kept."""
    micro_batch_tokens: Annotated[int, Gt(0)] = 16_384
    """Token budget of a micro-batch."""
    max_micro_batches: Annotated[int, Gt(0)] = 1
    """Micro-batches of a step, after the batch size warm-up."""
    batch_warmup_tokens: Annotated[int, Ge(0)] = 0
    """Tokens over which a step grows to `max_micro_batches`."""
    batch_growth: Annotated[int, Gt(0)] = 1
    """Micro-batches of the first step, and by how many a step grows."""
    warmup_tokens: Annotated[int, Ge(0)] = 0
    """Tokens over which the learning rate rises linearly from 0."""
    decay: Literal["none", "one_minus_sqrt"] = "none"
    """one_minus_sqrt: the learning rate falls as 1 - sqrt(t) over the whole phase, to `lr_floor` of its peak."""
    lr_floor: Annotated[float, Ge(0), Le(1)] = 0.001
    """Learning rate at the end of the decay, as a share of `lr`."""
    weight_decay: Annotated[float, Ge(0)] = 1e-5
    """Share of each weight that a step at the peak learning rate removes."""
    mask_rate: Annotated[float, Gt(0), Lt(1)] = 0.3
    """Share of tokens that are masked."""
    global_rope_theta: Annotated[float, Gt(0)] = 10_000.0
    """RoPE base of the layers with global attention."""
    local_rope_theta: Annotated[float, Gt(0)] = 10_000.0
    """RoPE base of the layers with sliding-window attention."""
    weights: dict[str, Annotated[float, Ge(0)]] = field(default_factory=dict)
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

    every_steps: Annotated[int, Ge(0)] = 0
    """Score held-out text each time this many steps are done; 0 turns it off."""
    mask_rate: Annotated[float, Gt(0), Lt(1)] = 0.15
    """Share of held-out tokens that are masked."""
    max_tokens: Annotated[int, Gt(0)] | None = None
    """Held-out tokens of each source to score; all, by default."""
    lengths: list[Annotated[int, Ge(3)]] = field(default_factory=list)
    """Maximum tokens of a held-out document, one score for each; that of the first phase, by default."""


@dataclass
class SpikeGuardConfig:
    """When a step is skipped, and when a run returns to its last checkpoint.

    A step is skipped if its loss or gradient is not finite, or if one of them is far above the median of the last
    `window` steps of the phase. After a return, the run continues with the text behind the skipped steps.
    """

    window: Annotated[int, Ge(8)] = 128
    """Number of last steps of which the medians are taken."""
    loss_rise: Annotated[float, Gt(0)] = 2.0
    """Skip a step whose loss is this much above the median."""
    norm_factor: Annotated[float, Gt(1)] = 20.0
    """Skip a step whose gradient norm is more than this many times the median."""
    patience: Annotated[int, Ge(1)] = 5
    """Skipped steps in a row after which the run returns to its last checkpoint."""
    max_rollbacks: Annotated[int, Ge(0)] = 3
    """Returns to a checkpoint in one phase after which the run ends with an error."""


@dataclass(kw_only=True)
class PretrainConfig(SplitDocuments, RunOptions):
    """Pretrain a model, or continue the pretraining of one, in one or more phases."""

    FREE_TO_CHANGE: ClassVar[tuple[str, ...]] = (
        *RunOptions.FREE_TO_CHANGE, "compile", "recompute", "data.verify",
    )  # fmt: skip

    text: list[str] = field(default_factory=list)
    """Training text to tokenize first, into the run folder: file, folder, URL or data set on the Hub; repeat for
    several. It becomes the source `text`; documents held out of it are scored. A run continues only with the same
    text, or with the shards in its folder if the text was deleted."""
    data: DataConfig = field(default_factory=DataConfig)
    """Training text and held-out text that is tokenized already."""
    tokenizer: str | None = None
    """A tokenizer.json, a folder with one, or a model on the Hub; that of `init_from`, by default."""
    init_from: str | None = None
    """A model folder, a model on the Hub, a checkpoint or a run to start from. Its shape is kept. Its context length
    becomes the `max_len` of the last phase, and its RoPE bases those of the phases; a new model, by default."""
    init_optimizer: bool = False
    """Start with the optimizer state of `init_from` too."""
    new_vocabulary: bool = False
    """Give the model of `init_from` another tokenizer; the embeddings of tokens that both share are kept."""
    model: dict[str, Any] = field(default_factory=dict)
    """Shape of a new model: `preset`, and fields of `ModelConfig` that differ from it. The vocabulary size is that of
    the tokenizer, rounded up to a multiple of 64, by default."""
    phases: dict[str, Phase] = field(default_factory=dict)
    """The phases by name, in order."""
    seed: Seed = 17
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
            reason = "for `new_vocabulary`" if self.new_vocabulary else "or `init_from=MODEL`"
            raise InputError(
                f"Missing required option `tokenizer` (for example `tokenizer=answerdotai/ModernBERT-base`), {reason}."
            )
        if not self.phases:
            raise InputError("phases: found none, expected at least one with its tokens and lr")
        if not self.data.sources and not self.text:
            raise InputError(
                "Missing required option `text` (for example `text=corpus/`), or `data.sources.NAME=SHARDS`."
            )
        if self.text and "text" in self.data.sources:
            raise InputError("data.sources.text: found a folder of shards, but `text` has the source of that name")
        super().check()
        self._refuse_unused()
        if self.init_optimizer or self.new_vocabulary:
            expect("init_from", self.init_from, self.init_from is not None, "a model to start from")
        both = self.init_optimizer and self.new_vocabulary
        expect("init_optimizer", self.init_optimizer, not both, "false, for a new vocabulary has no moments yet")
        for name, phase in self.phases.items():
            _check_phase(f"phases.{name}", phase, self.sources)

    def _refuse_unused(self) -> None:
        """Refuse options that have no effect, because the text that they are about is missing."""
        for each in () if self.text else fields(SplitDocuments):
            found, default = getattr(self, each.name), default_of(each)
            expect(each.name, found, found == default, f"{default}, for there is no `text` to read")
        if not (self.data.heldout or (self.text and self.heldout)):
            # `max_tokens` is a limit, which no text keeps, too.
            for name in ("every_steps", "mask_rate", "lengths"):
                found, default = getattr(self.evaluation, name), getattr(EvaluationConfig(), name)
                fix = "--heldout 0.01 to hold out text" if self.text else "--data.heldout.NAME SHARDS"
                expected = f"{default}, for there is no held-out text; add {fix}"
                expect(f"evaluation.{name}", found, found == default, expected)

    @property
    def sources(self) -> list[str]:
        """Names of the sources of training text."""
        return [*self.data.sources, *(["text"] if self.text else [])]


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


def _check_phase(key: str, phase: Phase, sources: Sequence[str]) -> None:
    """Check how the values of a phase fit together; annotations bound each alone."""
    growth, budget = phase.batch_growth, phase.micro_batch_tokens
    warmup, floor = phase.batch_warmup_tokens, phase.lr_floor
    expect(f"{key}.batch_growth", growth, growth == 1 or warmup > 0, "1, for there are no batch_warmup_tokens")
    grows = phase.max_micro_batches > growth
    expect(f"{key}.batch_warmup_tokens", warmup, warmup == 0 or grows, f"0, or more than {growth} max_micro_batches")
    expect(
        f"{key}.lr_floor", floor, floor == Phase.lr_floor or phase.decay != "none", "a decay other than none with it"
    )
    is_multiple = phase.max_micro_batches % growth == 0
    expect(f"{key}.max_micro_batches", phase.max_micro_batches, is_multiple, f"a multiple of batch_growth ({growth})")
    expect(f"{key}.max_len", phase.max_len, phase.max_len <= budget, f"3 to {budget} (micro_batch_tokens)")
    first_step = schedule_of(phase).plan(0).num_micro_batches * budget
    is_a_step = schedule_of(phase).num_steps >= 1
    expect(
        f"{key}.tokens", phase.tokens, is_a_step,
        f"at least the {first_step:,} of one step; pass more, or lower --{key}.max-micro-batches "
        f"({phase.max_micro_batches}) or --{key}.micro-batch-tokens ({budget:,})",
    )  # fmt: skip
    for name in phase.weights:
        expect(
            f"{key}.weights", name, name in sources,
            f"a name in data.sources ({', '.join(sources)}); add --data.sources.{name} SHARDS, or leave the weight out",
        )  # fmt: skip
    if phase.weights:
        absent = [name for name in sources if name not in phase.weights]
        expect(
            f"{key}.weights", list(phase.weights), not absent, f"a weight for {', '.join(absent)} too, 0 to leave out"
        )
        expect(f"{key}.weights", dict(phase.weights), sum(phase.weights.values()) > 0, "one weight above 0")
