"""Options of the cost forecast."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from modernbert.training.pretraining_config import PretrainConfig

__all__ = ["PlanConfig"]


@dataclass(kw_only=True)
class PlanConfig(PretrainConfig):
    """Forecast the cost of a pretraining run: memory, tokens per second, hours.

    Takes the options of `modernbert pretrain`. By default, the run has the shape of base, and a billion tokens at each
    of two lengths.
    """

    output: str = ""
    """Has no effect; a config file of `pretrain` may have it."""
    device: Sequence[str] = ("h100",)  # type: ignore[assignment]
    """cpu, or a GPU: t4, a10, l4, 3090, 4090, a100, h100, h200; repeat for several."""
    count: Annotated[int, Ge(1)] = 8
    """Number of GPUs."""
    length: Annotated[int, Ge(3)] | None = None
    """Tokens of every document; the maximum of each phase, by default."""
    shapes: bool = False
    """Search for model shapes that use GPUs well, too."""
    json: bool = False
    """Print JSON on standard output, and tables on standard error."""
