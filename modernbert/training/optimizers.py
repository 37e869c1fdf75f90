"""Optimizers by name, one kind or several for one model, and their state by parameter name, as checkpoints store it."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from modernbert.batch import to_device_async
from modernbert.engines.engine import OptimizerKernels
from modernbert.errors import InputError
from modernbert.training.distributed import first_row, local_shard, sharded_like

if TYPE_CHECKING:
    from modernbert.training.run_options import OptimizerConfig

__all__ = [
    "OPTIMIZERS",
    "Optimizer",
    "OptimizerContext",
    "OptimizerSet",
    "StableAdamW",
    "build_optimizer",
    "grad_norm",
    "load_named_state",
    "named_state",
    "parameter_groups",
    "register_optimizer",
]


@dataclass(frozen=True)
class OptimizerContext:
    """Options and environment of an optimizer."""

    options: "OptimizerConfig"
    sum_shards: Callable[[Tensor], Tensor] | None = None
    """Sums values over the processes that each hold a shard of a tensor; None if tensors are not sharded."""
    kernels: OptimizerKernels | None = None
    """Kernels of an engine."""


OptimizerFactory = Callable[[list[dict[str, Any]], float, OptimizerContext], torch.optim.Optimizer]
OPTIMIZERS: dict[str, OptimizerFactory] = {}
_Factory = TypeVar("_Factory", bound=OptimizerFactory)


def register_optimizer(kind: str) -> Callable[[_Factory], _Factory]:
    """Return a decorator that registers an optimizer as `kind`.

    The class or function is called with parameter groups, the peak learning rate and an `OptimizerContext`. In each
    step it reads the learning rate from `group["lr"]`. Tensors in its `state` are saved in checkpoints and restored.
    """

    def add(factory: _Factory) -> _Factory:
        OPTIMIZERS[kind] = factory
        return factory

    return add


class OptimizerSet:
    """Several optimizers as one: each has the parameter groups of its kind."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers
        self.param_groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self._owner = {
            parameter: optimizer
            for optimizer in optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }

    @property
    def state(self) -> Mapping[Tensor, dict[str, Any]]:
        """The state of each parameter."""
        return {parameter: optimizer.state[parameter] for parameter, optimizer in self._owner.items()}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none)

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for optimizer in self._optimizers:
            optimizer.step()


Optimizer = torch.optim.Optimizer | OptimizerSet


def build_optimizer(
    model: nn.Module, groups: Sequence[Mapping[str, Any]], lr: float, context: OptimizerContext
) -> Optimizer:
    """Return the optimizer of some parameter groups of a model, each divided by the kind that the options name.

    Args:
        model: The model, whose parameter names the patterns of the options match.
        groups: Groups as `parameter_groups` returns them.
        lr: The peak learning rate.
        context: Options and environment.
    """
    kinds = {parameter: context.options.kind_of(name) for name, parameter in model.named_parameters()}
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        for kind in dict.fromkeys(kinds[parameter] for parameter in group["params"]):
            own = [parameter for parameter in group["params"] if kinds[parameter] == kind]
            by_kind.setdefault(kind, []).append({**group, "params": own})
    optimizers = [OPTIMIZERS[kind](own, lr, context) for kind, own in by_kind.items()]
    return optimizers[0] if len(optimizers) == 1 else OptimizerSet(optimizers)


class StableAdamW(torch.optim.Optimizer):
    """AdamW with a smaller step for a tensor whose gradient is large compared to its second moment.

    The betas are debiased. With RMS = sqrt(mean(g^2 / max(v, eps^2))) of a tensor, its step size is lr / max(1, RMS).
    Weights decay by 1 - weight_decay * (lr / max_lr) / max(1, RMS): at the peak learning rate, `weight_decay` is the
    share of a weight that a step removes. Equal to `optimi.StableAdamW(decouple_lr=True)`, but gradients are not
    modified.

    Source: section 2.2.1 of the paper, Wortsman et al. 2023 (StableAdamW), Loshchilov & Hutter 2019 (AdamW).

    Args:
        params: Parameters or parameter groups; `lr_scale` of a group is its share of the planned learning rate.
        lr: The peak learning rate.
        betas: Decay rates of the moments.
        eps: Term added to the denominator.
        weight_decay: Share of each weight that a step at the peak learning rate removes.
        sum_shards: Sums values over the processes that hold shards of a tensor: the RMS is of the whole tensor.
        kernels: Kernels of an engine for float32 tensors: two passes over memory instead of ten.
    """

    # Without torch's wrapper, which imports torch.compile: a second of every start.
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 1e-5,
        sum_shards: Callable[[Tensor], Tensor] | None = None,
        kernels: OptimizerKernels | None = None,
    ):
        if lr <= 0:
            raise InputError(f"lr: found {lr}, expected a peak learning rate above 0")
        defaults = {"lr": lr, "max_lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "step": 0,
                    "lr_scale": 1.0}  # fmt: skip
        super().__init__(params, defaults)
        self._sum_shards = sum_shards
        self._kernels = kernels

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            group["step"] += 1
            if parameters:
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "exp_avg": torch.zeros_like(local_shard(parameter), memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(local_shard(parameter), memory_format=torch.preserve_format),
                }
        gradients = [local_shard(parameter.grad) for parameter in parameters if parameter.grad is not None]
        exp_avgs = [self.state[parameter]["exp_avg"] for parameter in parameters]
        exp_avg_sqs = [self.state[parameter]["exp_avg_sq"] for parameter in parameters]
        sizes_of_whole = [parameter.numel() for parameter in parameters]
        parameters = [local_shard(parameter) for parameter in parameters]
        beta1, beta2 = (_debiased(beta, group["step"]) for beta in group["betas"])
        if self._kernels is not None:
            gradients = [gradient.contiguous() for gradient in gradients]
            squares = self._kernels.update_moments_(gradients, exp_avgs, exp_avg_sqs, (beta1, beta2), group["eps"])
            steps = self._steps(squares.sqrt(), sizes_of_whole, group)
            self._kernels.apply_moments_(parameters, exp_avgs, exp_avg_sqs, *steps, group["eps"])
            torch.autograd.graph.increment_version(parameters)  # kernels write by address, which torch does not see
            return
        torch._foreach_lerp_(exp_avgs, gradients, 1 - beta1)
        torch._foreach_mul_(exp_avg_sqs, beta2)
        torch._foreach_addcmul_(exp_avg_sqs, gradients, gradients, 1 - beta2)

        roots = torch._foreach_sqrt(exp_avg_sqs)
        ratios = torch._foreach_div(gradients, torch._foreach_clamp_min(roots, group["eps"]))
        rates, kept = self._steps(torch.stack([_norm(ratio) for ratio in ratios]), sizes_of_whole, group)
        del ratios

        if group["weight_decay"]:
            torch._foreach_mul_(parameters, list(kept.unbind()))
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(exp_avgs, roots)
        torch._foreach_mul_(updates, list((-rates).unbind()))
        torch._foreach_add_(parameters, list(updates))

    def _steps(self, norms: Tensor, sizes_of_whole: list[int], group: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the learning rate of each tensor and its factor 1 - decay, on the device of the norms."""
        sizes = to_device_async(torch.tensor(sizes_of_whole, dtype=norms.dtype), norms.device)
        shortening = 1 / (_over_shards(norms, self._sum_shards) / sizes.sqrt()).clamp(min=1)
        return group["lr"] * shortening, 1 - group["weight_decay"] * (group["lr"] / group["max_lr"]) * shortening


@register_optimizer("stable_adamw")
def _stable_adamw(groups: list[dict[str, Any]], lr: float, context: OptimizerContext) -> StableAdamW:
    options = context.options
    return StableAdamW(
        groups, lr, betas=(options.beta1, options.beta2), eps=options.eps, sum_shards=context.sum_shards,
        kernels=context.kernels,
    )  # fmt: skip


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Group parameters into matrices and embeddings, with weight decay, and norm scales and biases, without.

    A tied parameter is in one group.
    """
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim <= 1 or name.endswith("bias")
            (undecayed if plain else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def grad_norm(
    parameters: Iterable[nn.Parameter], sum_shards: Callable[[Tensor], Tensor] | None = None
) -> Float[Tensor, ""]:
    """Return the 2-norm of all gradients together, on their device; 0 if there are none."""
    gradients = [local_shard(parameter.grad) for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    # One launch on a GPU.
    norms = [_norm(each) for each in gradients] if gradients[0].device.type == "cpu" else torch._foreach_norm(gradients)
    return torch.linalg.vector_norm(_over_shards(torch.stack(list(norms)), sum_shards))


def named_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the state of an optimizer as flat tensors: `step`, and `exp_avg.NAME` for each state of a parameter.

    They are sharded as the model is.
    """
    named = {"step": torch.tensor(max(group.get("step", 0) for group in optimizer.param_groups), dtype=torch.int64)}
    states = optimizer.state
    for name, parameter in model.named_parameters():
        # Sorted, so that a loaded state has the same order: it decides which process writes which tensor.
        for key, value in sorted(states.get(parameter, {}).items()):
            if isinstance(value, Tensor):
                named[f"{key}.{name}"] = sharded_like(value, parameter) if value.ndim else value
    return named


def load_named_state(model: nn.Module, optimizer: Optimizer, named: Mapping[str, Tensor]) -> None:
    """Load what `named_state` returned, as whole tensors; they are copied to the device of their parameter.

    Raises: InputError for a name or a shape that the model does not have.
    """
    parameters, states = dict(model.named_parameters()), optimizer.state
    for key, value in named.items():
        if key == "step":
            continue
        moment, _, name = key.partition(".")
        if name not in parameters:
            raise InputError(f"optimizer state: {key} belongs to no parameter of the model")
        if value.ndim and value.shape != parameters[name].shape:
            found, expected = tuple(value.shape), tuple(parameters[name].shape)
            raise InputError(f"optimizer state: {key} has shape {found}, expected {expected}")
        mine = local_shard(parameters[name])
        start = first_row(parameters[name])
        part = value[start : start + mine.shape[0]] if value.ndim else value
        of_entries = value.ndim == mine.ndim  # otherwise one number for the whole parameter, such as a step count
        states[parameters[name]][moment] = torch.empty_like(mine).copy_(part).detach() if of_entries else value
    for group in optimizer.param_groups:
        group["step"] = int(named["step"])


def _debiased(beta: float, step: int) -> float:
    """Fold Adam's bias correction into beta: 0 at step 1, beta in the limit."""
    return (beta**step - beta) / (beta**step - 1)


def _over_shards(norms: Tensor, sum_shards: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Return the norms of whole tensors from the norms of their shards in this process."""
    return norms if sum_shards is None else sum_shards(norms.square()).sqrt()


def _norm(tensor: Tensor) -> Tensor:
    # By rows first: on CPU, one float32 sum over tens of millions of entries has an error of tenths of a percent.
    return torch.linalg.vector_norm(torch.linalg.vector_norm(tensor, dim=-1))
