"""The engines of this package, in order of preference, and the choice among them."""

import functools
import logging
from importlib import import_module

import torch

from modernbert.engines.engine import Engine, OptimizerKernels
from modernbert.engines.engine_names import engine_modules
from modernbert.engines.reference_engine import ReferenceEngine
from modernbert.engines.torch_engine import TorchEngine
from modernbert.errors import InputError
from modernbert.model.config import ModelConfig

__all__ = [
    "PORTABLE",
    "REFERENCE",
    "choose_engine",
    "engines",
    "find_engine",
    "find_optimizer_kernels",
    "keep_or_choose",
]

logger = logging.getLogger("modernbert")

PORTABLE = TorchEngine()
"""Runs on every device, in every dtype, for every model."""
REFERENCE = ReferenceEngine()
"""The formula that other engines are tested against."""


@functools.cache
def engines() -> tuple[Engine, ...]:
    """Return all engines, in the order in which `auto` prefers them."""
    found: list[Engine] = [PORTABLE, REFERENCE]
    for name, module in engine_modules().items():
        if all(engine.name != name for engine in found):
            classes = (each for each in vars(import_module(module)).values() if isinstance(each, type))
            found.append(
                next(each() for each in classes if issubclass(each, Engine) and vars(each).get("name") == name)
            )
    return tuple(sorted(found, key=lambda engine: -engine.preference))


def find_engine(name: str) -> Engine:
    """Return the engine of a name.

    Raises: InputError if there is none.
    """
    for engine in engines():
        if engine.name == name:
            return engine
    raise InputError(f"engine: found {name!r}, expected auto, {', '.join(engine.name for engine in engines())}")


def choose_engine(name: str, device: torch.device, dtype: torch.dtype, config: ModelConfig) -> Engine:
    """Return the engine of a name; `auto` is the fastest that runs this model there.

    Raises: InputError for an unknown engine, or one that cannot run on this device, in this dtype, or with this model.
    """
    if name != "auto":
        engine = find_engine(name)
        if reason := engine.unavailable_reason(device, dtype, config):
            raise InputError(f"engine: {name} {reason}; {PORTABLE.name} runs everywhere")
        return engine
    passed: list[str] = []
    for engine in engines():
        if engine.preference == 0 or engine.device_type not in (None, device.type):
            continue
        reason = engine.unavailable_reason(device, dtype, config)
        if reason is None:
            if passed:  # the callers print which engine it is
                logger.warning("engine %s, since %s", engine.name, "; ".join(passed))
            return engine
        passed.append(f"{engine.name} {reason}")
    raise AssertionError("the portable engine runs everywhere")


def keep_or_choose(engine: Engine, device: torch.device, dtype: torch.dtype, config: ModelConfig) -> Engine:
    """Return an engine if it is available, else the fastest that is, which is logged."""
    reason = engine.unavailable_reason(device, dtype, config)
    return engine if reason is None else choose_engine("auto", device, dtype, config)


def find_optimizer_kernels(device: torch.device) -> OptimizerKernels | None:
    """Return the optimizer kernels of the first engine that has them on a device, whatever computes the model."""
    found = (engine.optimizer_kernels(device) for engine in engines() if engine.device_type == device.type)
    return next((kernels for kernels in found if kernels is not None), None)
