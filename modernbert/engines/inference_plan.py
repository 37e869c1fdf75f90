"""Inference plans: faster ways to compute an encoder without gradients, cached beside its ordinary modules.

A plan reads weights and skips the calls of modules: packed weights, all layers in one call, CUDA graphs. It is used
only for a plain encoder (no hooks, adapters or replaced modules), and is rebuilt when a weight or module changes.
"""

import operator
import threading
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from modernbert.batch import SequenceLengths
from modernbert.devices import release_pages

if TYPE_CHECKING:
    from modernbert.engines.engine import Engine
    from modernbert.model.encoder import Encoder

__all__ = ["InferencePlan", "PlanCache", "is_plain", "is_plain_norm"]

_TORCH_TYPES = (nn.Dropout, nn.Embedding, nn.Identity, nn.LayerNorm, nn.Linear, nn.ModuleList)
_OUR_TYPES = ("modernbert.model.encoder", "modernbert.model.int8_linear")
_get_version = operator.attrgetter("_version")
_is_training = operator.attrgetter("training")


@runtime_checkable
class InferencePlan(Protocol):
    """Data that an engine prepared from the weights of an encoder."""

    def accepts(self, tokens: Tensor, lengths: SequenceLengths) -> bool:
        """Return whether the plan computes this batch."""

    def run(self, encoder: "Encoder", tokens: Tensor, lengths: SequenceLengths, rows: Tensor | None) -> Tensor:
        """Compute `encoder.run_layers` without gradients."""


class PlanCache:
    """The plan of one encoder, built at the first inference call.

    Args:
        engine: The encoder's engine, which it returns to when it is moved where the engine is available.
        mapped: The weights are mapped from a file: pages that the plan has read are returned to the system.
    """

    def __init__(self, engine: "Engine", mapped: bool = False) -> None:
        self.engine = engine
        self._mapped = mapped
        self._lock = threading.Lock()
        self._built: tuple[_Snapshot, InferencePlan | None] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return PlanCache, (self.engine,)  # a plan holds addresses of this process; a copy of weights is not mapped

    def find(self, encoder: "Encoder", tokens: Tensor, lengths: SequenceLengths) -> InferencePlan | None:
        """Return the plan if it computes this batch now: without gradients, autocast or training mode."""
        if torch.is_grad_enabled() or encoder.training or torch.is_autocast_enabled(tokens.device.type):
            return None
        built = self._built
        if built is None or not built[0].is_current(encoder):
            built = self._build(encoder)
        snapshot, plan = built
        if plan is None or snapshot.is_training() or not plan.accepts(tokens, lengths):
            return None
        return plan

    def is_evaluating(self, encoder: "Encoder") -> bool:
        """Return whether there is a plan, and all modules are in evaluation mode."""
        built = self._built
        return built is not None and built[0].is_current(encoder) and not built[0].is_training()

    def drop(self) -> None:
        """Free the plan, since the weights move or change; the new ones are not mapped."""
        self._built, self._mapped = None, False

    def _build(self, encoder: "Encoder") -> "tuple[_Snapshot, InferencePlan | None]":
        with self._lock:
            if self._built is None or not self._built[0].is_current(encoder):
                self._built = None  # free the old plan first
                snapshot, plan = _Snapshot(encoder), None
                if snapshot.is_plain:
                    plan = encoder.engine.inference_plan(encoder, encoder.final_norm.weight.dtype)
                if plan is not None and self._mapped:
                    release_pages(chain(encoder.layers.parameters(), encoder.layers.buffers()))
                self._built = snapshot, plan
            return self._built


class _Snapshot:
    """The modules and weights of an encoder, to detect in microseconds whether any has changed."""

    def __init__(self, encoder: "Encoder") -> None:
        self._modules = modules = list(encoder.modules())
        # Parallel lists, so that `is_current` compares them without Python loops.
        self._settings = encoder.engine, encoder.config
        self._tables: list[dict[str, Any]] = []
        self._names: list[str] = []
        self._values: list[Any] = []
        for module in modules:
            for table in (module._modules, module._parameters):
                self._tables += [table] * len(table)
                self._names += table.keys()
                self._values += table.values()
        self._weights = [each for each in self._values if isinstance(each, Tensor)]
        self._hooks = [hooks for each in modules for hooks in (each._forward_hooks, each._forward_pre_hooks)]
        self._attributes = [each.__dict__ for each in modules]
        self._numbers = self._count()
        self._is_versioned = not any(map(torch.is_inference, self._weights))
        self._versions = self._read_versions()
        self.is_plain = len({(each.dtype, each.device) for each in self._weights}) == 1 and all(map(is_plain, modules))

    def is_current(self, encoder: "Encoder") -> bool:
        """Return whether the encoder was plain, and has the same engine, config, modules and weights, and no hooks."""
        engine, config = self._settings
        return (
            self.is_plain
            and encoder.engine is engine
            and encoder.config is config
            and not _has_global_hooks()
            and not any(self._hooks)
            and self._count() == self._numbers
            and all(map(operator.is_, map(dict.get, self._tables, self._names), self._values))
            and self._read_versions() == self._versions
        )

    def is_training(self) -> bool:
        """Return whether any module is in training mode."""
        return any(map(_is_training, self._modules))

    def _count(self) -> int:
        """Return the number of attributes of all modules: a `forward` set on a module is one more."""
        return sum(map(len, self._attributes))

    def _read_versions(self) -> list[int]:
        """Return the address of each weight, and the number of changes in place, which inference tensors do not count.

        Assigning `weight.data` changes the address only.
        """
        versions = list(map(Tensor.data_ptr, self._weights))
        return versions + list(map(_get_version, self._weights)) if self._is_versioned else versions


def is_plain(module: nn.Module) -> bool:
    """Return whether a module computes what its type and weights say: no subclass, no hook, no replaced `forward`."""
    kind = type(module)
    if kind not in _TORCH_TYPES and kind.__module__ not in _OUR_TYPES:
        return False
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return not (any(hooks) or "forward" in module.__dict__ or _has_global_hooks())


def is_plain_norm(norm: nn.LayerNorm) -> bool:
    """Return whether a norm is one that kernels compute: plain, with a scale and no bias."""
    return is_plain(norm) and norm.bias is None and norm.weight is not None


def _has_global_hooks() -> bool:
    return bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)
