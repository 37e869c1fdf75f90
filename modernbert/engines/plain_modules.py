"""Checks that modules compute what their type and weights say: no hooks, no subclasses, no adapters.

Faster ways to run an encoder (packed weights, all layers in one call, CUDA graphs) read weights and skip the modules'
own calls. They are taken only where nothing else would be skipped with them.
"""

from torch import nn
from torch.nn.modules import module as torch_module

__all__ = ["ModuleSnapshot", "is_plain", "is_plain_tree"]

_TORCH_TYPES = (nn.Dropout, nn.Embedding, nn.Identity, nn.LayerNorm, nn.Linear, nn.ModuleList)
_OUR_TYPES = "modernbert.model.encoder"


def is_plain(module: nn.Module) -> bool:
    """Return whether a module is of a known type itself, not a subclass, with no hooks and no forward of its own."""
    kind = type(module)
    if kind not in _TORCH_TYPES and kind.__module__ != _OUR_TYPES:
        return False
    return not (_has_hooks(module) or "forward" in module.__dict__ or _has_global_hooks())


def is_plain_tree(module: nn.Module) -> bool:
    """Return whether a module and all modules below it are plain."""
    return all(map(is_plain, module.modules()))


class ModuleSnapshot:
    """The modules of a plain tree, to find out in microseconds whether any was hooked or replaced since."""

    def __init__(self, root: nn.Module) -> None:
        self._was_plain = is_plain_tree(root)
        modules = list(root.modules())
        self._children = [
            (parent._modules, name, child) for parent in modules for name, child in parent.named_children()
        ]
        self._state = [(module.__dict__, module._forward_hooks, module._forward_pre_hooks) for module in modules]

    def is_current(self) -> bool:
        """Return whether the tree was plain, is made of the same modules, and has no forward hooks now."""
        return (
            self._was_plain
            and not _has_global_hooks()
            and not any(after or before or "forward" in own for own, after, before in self._state)
            and all(children.get(name) is child for children, name, child in self._children)
        )


def _has_hooks(module: nn.Module) -> bool:
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def _has_global_hooks() -> bool:
    return bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)
