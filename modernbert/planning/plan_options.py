"""Options of the cost forecast."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Annotated

from annotated_types import Ge

__all__ = ["PlanConfig"]


@dataclass(frozen=True)
class PlanConfig:
    """Forecast the cost of a pretraining config: memory, tokens per second, hours."""

    recipe: str | None = None
    """YAML file of pretraining options, or the name of a shipped config, such as pretrain/base; a billion tokens at
    each of two lengths, by default."""
    _: KW_ONLY
    set: Sequence[str] = ()
    """Pretraining option to change, such as phases.adapt.tokens=5000000; repeat for several."""
    device: Sequence[str] = ("h100",)
    """cpu, or a GPU: t4, a10, l4, 3090, 4090, a100, h100, h200; repeat for several."""
    count: Annotated[int, Ge(1)] = 8
    """Number of GPUs."""
    length: Annotated[int, Ge(3)] | None = None
    """Tokens of every document; the maximum of each phase, by default."""
    shapes: bool = False
    """Search for model shapes that use GPUs well, too."""
    json: bool = False
    """Print JSON on standard output, and tables on standard error."""
