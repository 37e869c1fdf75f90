"""The optimizer of the recipe, and its state by name.

In: a model and its gradients. Out: updated weights, and the two moments of every parameter under that parameter's name,
as a checkpoint stores them. One step costs no wait for the device.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from modernbert.batch import to_device_async
from modernbert.engines.engine import OptimizerKernels
from modernbert.errors import InputError
from modernbert.training.distributed import first_row, local, sharded_like

__all__ = ["StableAdamW", "grad_norm", "load_named_state", "named_state", "parameter_groups"]


class StableAdamW(torch.optim.Optimizer):
    """AdamW whose step is shortened, per tensor, where the gradient outgrew its second moment.

    The moments' betas are debiased. With RMS = sqrt(mean(g^2 / max(v, eps^2))) of a tensor, its step size is
    lr / max(1, RMS). Weights decay by 1 - weight_decay * (lr / max_lr) / max(1, RMS): at the peak of the schedule
    `weight_decay` is the fraction lost a step, whatever the learning rate. `lr` at construction is the peak, `max_lr`.

    Source: section 2.2.1 of the paper, Wortsman et al. 2023 (StableAdamW), Loshchilov & Hutter 2019 (AdamW). Equal to
    `optimi.StableAdamW(decouple_lr=True)`, except that gradients stay as they were. A group's `lr_scale` is its share
    of the rate that the loop plans.

    A process that holds a part of each tensor updates that part; `sum_shards` adds numbers up over the processes that
    share a tensor, for the RMS is that of the whole. `kernels`, of an engine, compute the step of float32 tensors in
    two passes over memory instead of ten.
    """

    # What torch puts around these keeps its compiler out of them, and imports it to that end: a second of every start.
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
                    "exp_avg": torch.zeros_like(local(parameter), memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(local(parameter), memory_format=torch.preserve_format),
                }
        gradients = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        exp_avgs = [self.state[parameter]["exp_avg"] for parameter in parameters]
        exp_avg_sqs = [self.state[parameter]["exp_avg_sq"] for parameter in parameters]
        sizes_of_whole = [parameter.numel() for parameter in parameters]
        parameters = [local(parameter) for parameter in parameters]
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
        """Return of each tensor its rate and what it keeps, where its norm is: reading it would stop the host."""
        sizes = to_device_async(torch.tensor(sizes_of_whole, dtype=norms.dtype), norms.device)
        shortening = 1 / (_over_shards(norms, self._sum_shards) / sizes.sqrt()).clamp(min=1)
        return group["lr"] * shortening, 1 - group["weight_decay"] * (group["lr"] / group["max_lr"]) * shortening


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into those that decay (matrices, embeddings) and those that don't (norm scales, biases).

    A tied parameter is taken once.
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
    """Return the 2-norm over all gradients, on their device; 0 if there are none."""
    gradients = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    # All in one launch on a GPU.
    norms = [_norm(each) for each in gradients] if gradients[0].device.type == "cpu" else torch._foreach_norm(gradients)
    return torch.linalg.vector_norm(_over_shards(torch.stack(list(norms)), sum_shards))


def named_state(model: nn.Module, optimizer: StableAdamW) -> dict[str, Tensor]:
    """Return the optimizer's state as flat tensors: `step`, `exp_avg.NAME` and `exp_avg_sq.NAME`.

    Where the model is sharded, so are they.
    """
    named = {"step": torch.tensor(optimizer.param_groups[0]["step"], dtype=torch.int64)}
    for name, parameter in model.named_parameters():
        # In one order, loaded or not: it decides which process writes what.
        for key, value in sorted(optimizer.state.get(parameter, {}).items()):
            named[f"{key}.{name}"] = sharded_like(value, parameter)
    return named


def load_named_state(model: nn.Module, optimizer: StableAdamW, named: Mapping[str, Tensor]) -> None:
    """Put back what `named_state` returned, of whole tensors; they are copied to their parameter's device.

    Raises: InputError for a name or a shape that the model does not have.
    """
    parameters = dict(model.named_parameters())
    for key, value in named.items():
        if key == "step":
            continue
        moment, _, name = key.partition(".")
        if name not in parameters:
            raise InputError(f"optimizer state: {key} belongs to no parameter of the model")
        if value.shape != parameters[name].shape:
            found, expected = tuple(value.shape), tuple(parameters[name].shape)
            raise InputError(f"optimizer state: {key} has shape {found}, expected {expected}")
        mine = local(parameters[name])
        start = first_row(parameters[name])
        part = value[start : start + mine.shape[0]] if mine.ndim else value
        optimizer.state[parameters[name]][moment] = torch.empty_like(mine).copy_(part).detach()
    for group in optimizer.param_groups:
        group["step"] = int(named["step"])


def _debiased(beta: float, step: int) -> float:
    """Fold Adam's bias correction into beta: 0 at step 1, beta in the long run."""
    return (beta**step - beta) / (beta**step - 1)


def _over_shards(norms: Tensor, sum_shards: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Return the norms of whole tensors, given those of the parts here."""
    return norms if sum_shards is None else sum_shards(norms.square()).sqrt()


def _norm(tensor: Tensor) -> Tensor:
    # Rows first: on the CPU one float32 accumulation over tens of millions of entries is off by tenths of a per cent.
    return torch.linalg.vector_norm(torch.linalg.vector_norm(tensor, dim=-1))
