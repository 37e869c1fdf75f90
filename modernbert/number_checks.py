"""Numbers of a config that can be told to be senseless without looking at files."""

import math
from typing import Any

from modernbert.errors import InputError

__all__ = ["check_numbers"]

# (least, most, whether the least is allowed); None stands for what is chosen elsewhere, and is always allowed.
_BOUNDS: dict[str, tuple[float, float, bool]] = {
    "epochs": (1, math.inf, True),
    "batch": (1, math.inf, True),
    "budget_tokens": (1, math.inf, True),
    "scorings_per_epoch": (1, math.inf, True),
    "patience": (1, math.inf, True),
    # Special tokens, and something between them.
    "max_len": (8, math.inf, True),
    "query_length": (4, math.inf, True),
    "document_length": (8, math.inf, True),
    "truncate_dim": (1, math.inf, True),
    "projection": (1, math.inf, True),
    "negatives": (0, math.inf, True),
    "lr": (0, math.inf, False),
    "head_lr": (0, math.inf, False),
    "projection_lr": (0, math.inf, False),
    "temperature": (0, math.inf, False),
    "layer_decay": (0, 1, False),
    "weight_decay": (0, 1, True),
    "warmup": (0, 1, True),
    "dropout": (0, 0.99, True),
    "seed": (0, 2**32 - 1, True),
}


def check_numbers(config: Any, prefix: str = "") -> None:
    """Check every field that has bounds.

    Raises: InputError naming the first that is outside of them, or is no number.
    """
    for name, (least, most, inclusive) in _BOUNDS.items():
        number = getattr(config, name, None)
        if number is None:
            continue
        if not (least <= number <= most and (inclusive or number != least) and number != math.inf):
            bound = f"at least {least}" if inclusive else f"more than {least}"
            raise InputError(
                f"{prefix}{name}: found {number}, expected {bound}{'' if most == math.inf else f', at most {most}'}"
            )
