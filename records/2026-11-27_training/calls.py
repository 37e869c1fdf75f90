"""How long each of the package's loops takes in a step of training, base shape, 4,096 tokens: `python calls.py`."""

import time
from collections import Counter
from typing import Any

import torch

from benchmarks.training_systems import mixed_lengths
from modernbert.devices import keep_freed_memory
from modernbert.engines.cpu import build, checked_calls
from modernbert.engines.registry import find_engine
from modernbert.model.config import ModelConfig
from modernbert.planning.step_timing import time_steps

LIBRARY = build.library()
SECONDS: Counter[str] = Counter()


class Timed:
    """The library, every call of it timed."""

    def __getattr__(self, name: str) -> Any:
        def timed(*words: Any) -> Any:
            begun = time.perf_counter()
            answer = getattr(LIBRARY, name)(*words)
            SECONDS[name] += time.perf_counter() - begun
            return answer

        return timed


def main() -> None:
    torch.set_num_threads(2)
    keep_freed_memory()
    checked_calls.library = Timed  # type: ignore[assignment]
    lengths = mixed_lengths(4096)
    steps = time_steps(
        ModelConfig.preset("base"), lengths, device=torch.device("cpu"), dtype=torch.bfloat16,
        engine=find_engine("cpu"), num_steps=5,
    )  # fmt: skip
    for seconds in steps:
        print(f"step of {seconds:.2f} s, in loops {sum(SECONDS.values()):.2f}")
        last = dict(SECONDS)
        SECONDS.clear()
    for name, seconds in sorted(last.items(), key=lambda item: -item[1]):
        if seconds >= 0.005:
            print(f"{name:40} {seconds:.3f}")


if __name__ == "__main__":
    main()
