"""Training steps of a random model on random tokens: what they cost is what any others of this shape and length cost.

In: a shape, lengths, where to compute. Out: seconds of each step.
"""

import time
from collections.abc import Iterator, Sequence

import torch

from modernbert.batch import Batch, SequenceLengths
from modernbert.engines.engine import Engine
from modernbert.errors import InputError
from modernbert.model.config import ModelConfig
from modernbert.model.heads import MaskedLM
from modernbert.model.initialization import initialize
from modernbert.training.distributed import Objective
from modernbert.training.losses import masked_lm
from modernbert.training.optimizers import StableAdamW, parameter_groups
from modernbert.training.training_loop import train_step

__all__ = ["random_batch", "time_steps"]


def time_steps(
    model: ModelConfig,
    lengths: Sequence[int],
    *,
    device: torch.device,
    dtype: torch.dtype,
    engine: Engine,
    num_steps: int,
    mask_rate: float = 0.3,
    compiled: bool = False,
    num_micro_batches: int = 1,
) -> Iterator[float]:
    """Yield the seconds of each step on micro-batches of documents of these lengths; the first one warms up.

    Raises: InputError if compiled layers are asked for and there is no compiler.
    """
    masked_model = MaskedLM(model, engine)
    initialize(masked_model, model, seed=0)
    masked_model = masked_model.to(device)
    if compiled and (reason := engine.compile_blocks(masked_model.model, dtype)):
        raise InputError(f"compile: {reason}")
    objective = Objective(masked_model, masked_lm).train()
    optimizer = StableAdamW(parameter_groups(masked_model, 1e-5), lr=1e-4, kernels=engine.optimizer_kernels(device))
    batch = random_batch(model, lengths, mask_rate)
    for step in range(num_steps + 1):
        begun = time.perf_counter()
        # The step ends by reading its loss, so a device is done with it.
        train_step(objective, [batch] * num_micro_batches, optimizer, 1e-4, seed=step, device=device, dtype=dtype)
        yield time.perf_counter() - begun


def random_batch(model: ModelConfig, lengths: Sequence[int], mask_rate: float, seed: int = 0) -> Batch:
    """Return documents of these lengths, of ids drawn evenly, with a share of the rows named for a loss."""
    generator = torch.Generator().manual_seed(seed)
    layout = SequenceLengths.from_lengths(lengths)
    tokens = torch.randint(0, model.vocab_size, (layout.num_tokens,), generator=generator)
    chosen = torch.randperm(layout.num_tokens, generator=generator)[: round(mask_rate * layout.num_tokens)]
    where = chosen.sort().values
    return Batch(tokens, layout, where, tokens[where])
