"""Whether a step is taken.

In: loss and gradient norm of each step. Out: a reason not to take it, or none; and when to give up waiting and go back.
A file of its own because one damaged document, or one bad device, must not cost a run its weights.
"""

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

from modernbert.training.pretraining_config import SpikeGuardConfig

__all__ = ["LossSpikeGuard"]

# Steps of a phase that have to be taken before one can be called far out.
FEWEST = 32


class LossSpikeGuard:
    """Judge steps by those taken before them, and count the refused ones; see `SpikeGuardConfig`.

    A refused step enters no statistic. All processes see the same numbers, and so judge alike.
    """

    def __init__(self, config: SpikeGuardConfig, state: Mapping[str, Any] | None = None) -> None:
        state = state or {}
        self._config = config
        self._losses = deque[float](state.get("losses", ()), maxlen=config.window)
        self._norms = deque[float](state.get("norms", ()), maxlen=config.window)
        self.in_a_row: int = state.get("in_a_row", 0)
        self.rollbacks: int = state.get("rollbacks", 0)

    def __call__(self, loss: float, norm: float) -> str | None:
        """Return why a step must not be taken, or None and remember its numbers."""
        reason = self._fault(loss, norm)
        if reason is None:
            self._losses.append(loss)
            self._norms.append(norm)
            self.in_a_row = 0
        else:
            self.in_a_row += 1
        return reason

    @property
    def is_exhausted(self) -> bool:
        """Whether so many steps in a row were refused that waiting will not help."""
        return self.in_a_row >= self._config.patience

    def state(self) -> dict[str, Any]:
        """Return what makes a new guard go on from here."""
        return {
            "losses": list(self._losses),
            "norms": list(self._norms),
            "in_a_row": self.in_a_row,
            "rollbacks": self.rollbacks,
        }

    def _fault(self, loss: float, norm: float) -> str | None:
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the gradient norm is {norm}"
        if len(self._losses) < min(FEWEST, self._config.window):
            return None
        usual_loss, usual_norm = median(self._losses), median(self._norms)
        if loss > usual_loss + self._config.loss_rise:
            return f"the loss is {loss:.4g}, usual is {usual_loss:.4g}"
        if norm > usual_norm * self._config.norm_factor:
            return f"the gradient norm is {norm:.4g}, usual is {usual_norm:.4g}"
        return None
