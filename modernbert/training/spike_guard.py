"""A filter that skips steps with a loss spike, so that one damaged document does not cost a run its weights."""

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

from modernbert.training.pretraining_config import SpikeGuardConfig

__all__ = ["LossSpikeGuard"]

# Steps of a phase before a step can be an outlier.
FEWEST = 32


class LossSpikeGuard:
    """Compare each step with the last ones of its phase, and count the skipped ones; see `SpikeGuardConfig`.

    Skipped steps do not enter the medians. All processes see the same values and skip the same steps.
    """

    def __init__(self, config: SpikeGuardConfig, state: Mapping[str, Any] | None = None) -> None:
        state = state or {}
        self.config = config
        self._losses = deque[float](state.get("losses", ()), maxlen=config.window)
        self._norms = deque[float](state.get("norms", ()), maxlen=config.window)
        self.in_a_row: int = state.get("in_a_row", 0)
        self.rollbacks: int = state.get("rollbacks", 0)

    def __call__(self, loss: float, norm: float) -> str | None:
        """Return why a step must be skipped; or return None, and remember its loss and gradient norm."""
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
        """Whether `patience` steps in a row were skipped."""
        return self.in_a_row >= self.config.patience

    def state(self) -> dict[str, Any]:
        """Return the state from which a new guard continues."""
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
        if len(self._losses) < min(FEWEST, self.config.window):
            return None
        usual_loss, usual_norm = median(self._losses), median(self._norms)
        if loss > usual_loss + self.config.loss_rise:
            return f"the loss is {loss:.4g}, usual is {usual_loss:.4g}"
        if norm > usual_norm * self.config.norm_factor:
            return f"the gradient norm is {norm:.4g}, usual is {usual_norm:.4g}"
        return None
