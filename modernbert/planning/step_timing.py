"""Time training steps of a model with random weights on random tokens."""

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
    """Yield the seconds of `num_steps` steps, after one that warms up.

    Args:
        model: Shape of the model.
        lengths: Tokens of the documents of a micro-batch.
        device: Device.
        dtype: Data type of GEMMs.
        engine: Engine.
        num_steps: Number of timed steps.
        mask_rate: Share of masked tokens.
        compiled: Whether `torch.compile` compiles the layers.
        num_micro_batches: Micro-batches per step.

    Raises:
        InputError: The layers cannot be compiled.
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
        started = time.perf_counter()
        # A step ends by reading its loss, which waits for the device.
        train_step(objective, [batch] * num_micro_batches, optimizer, 1e-4, seed=step, device=device, dtype=dtype)
        yield time.perf_counter() - started


def random_batch(model: ModelConfig, lengths: Sequence[int], mask_rate: float, seed: int = 0) -> Batch:
    """Return documents of uniformly random token ids, with a share of the positions as labels."""
    generator = torch.Generator().manual_seed(seed)
    layout = SequenceLengths.from_lengths(lengths)
    tokens = torch.randint(0, model.vocab_size, (layout.num_tokens,), generator=generator)
    chosen = torch.randperm(layout.num_tokens, generator=generator)[: round(mask_rate * layout.num_tokens)]
    positions = chosen.sort().values
    return Batch(tokens, layout, positions, tokens[positions])
