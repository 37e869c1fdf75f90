"""Several processes, one run.

In: what `torchrun` put into the environment. Out: a `World`, which says which process this is, adds numbers up over all
of them, and spreads a module over them. A file of its own because nothing else of the package knows that there may be
more than one process: the loop shares micro-batches out by their number, and sums come back.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from modernbert.batch import Batch
from modernbert.devices import choose_device
from modernbert.errors import InputError
from modernbert.training.run_options import Sharding

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

__all__ = [
    "ALONE",
    "Objective",
    "World",
    "first_row",
    "join",
    "local",
    "settle",
    "sharded_like",
    "syncing",
    "whole",
]

Loss = Callable[[nn.Module, Batch], tuple[Tensor, Any]]


class Objective(nn.Module):
    """A model and its loss as one module: what is computed between two exchanges of gradients.

    Both ways of spreading a module over processes act when its `forward` is called, so the loss is inside it.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Batch, loss: Loss | None = None) -> tuple[Tensor, Any]:
        """Return what the loss, or another function of model and batch, returns."""
        return (loss or self.loss)(self.model, batch)


@dataclass(frozen=True)
class World:
    """Know the processes of a run: this one's number, how many there are, and how tensors are spread over them.

    `mesh` is None where every process holds the whole model. `writers` is a group for what is exchanged on the CPU by
    the thread that writes checkpoints, so that it never meets the exchanges of training.
    """

    rank: int = 0
    size: int = 1
    mesh: "DeviceMesh | None" = None
    writers: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and speaks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Add a tensor up over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def sum_shards(self, values: Tensor) -> Tensor:
        """Add a tensor up over the processes that share one copy of the model, in place."""
        if self.mesh is not None:
            dist.all_reduce(values, group=self.mesh.get_group(self.mesh.ndim - 1))
        return values

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Do what one process may refuse and another not: all wait for all, and refuse what one of them does.

        Nothing inside may wait for another process after what is refused.

        Raises: InputError in every process, that of the first which raised one.
        """
        if self.size == 1:
            yield
            return
        failure = None
        try:
            yield
        except InputError as error:
            failure = str(error)
        failures: list[str | None] = [None] * self.size
        dist.all_gather_object(failures, failure, group=self.writers)
        for told in failures:
            if told is not None:
                raise InputError(told)

    def spread(self, objective: Objective, blocks: nn.ModuleList) -> nn.Module:
        """Make the processes train one model: gradients are averaged over them in every backward pass that syncs."""
        if self.mesh is not None:
            from torch.distributed.fsdp import fully_shard

            for block in blocks:
                fully_shard(block, mesh=self.mesh)
            fully_shard(objective, mesh=self.mesh)
            return objective
        return DistributedDataParallel(objective) if self.size > 1 else objective

    def holds_first_copy(self) -> bool:
        """Whether the shards this process holds are those to be written down."""
        return self.mesh is None or self.mesh.ndim == 1 or self.mesh.get_local_rank(0) == 0


ALONE = World()


@contextmanager
def join(device: str, sharding: Sharding) -> Iterator[tuple[World, torch.device]]:
    """Take this process's place among those that `torchrun` started; yield the world and the device to compute on.

    `sharding` is `none` (every process holds the model: DDP), `full` (each holds a part: FSDP2), or `hybrid` (a part
    within a machine, copies across machines: HSDP). Without `torchrun` the process is alone.

    Raises: InputError for an unknown device.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE, choose_device(device)
        return
    # A process that is alone does not wait for what only several need.
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.rendezvous import rendezvous

    local_rank, num_local = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    place = choose_device(_own_device(device, local_rank))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    store, rank, _ = next(rendezvous("env://"))
    # torchrun hands the same store to those it starts again; what the dead left in it must not be found.
    attempt = PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", store=attempt, rank=rank, world_size=size)
    try:
        mesh = None
        if sharding == "full":
            mesh = init_device_mesh(place.type, (size,))
        elif sharding == "hybrid":
            mesh = init_device_mesh(place.type, (size // num_local, num_local), mesh_dim_names=("copies", "shards"))
        yield World(dist.get_rank(), size, mesh, dist.new_group(backend="gloo")), place
    finally:
        dist.destroy_process_group()


def _own_device(name: str, local_rank: int) -> str:
    """Give each process of a machine a CUDA device of its own."""
    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        return f"cuda:{local_rank}"
    return name


def syncing(objective: nn.Module, is_last: bool) -> Any:
    """Return a context for one backward pass; gradients go around after the last of a step only."""
    if isinstance(objective, DistributedDataParallel):
        return _nothing() if is_last else objective.no_sync()
    if _holds_part(objective):
        objective.set_requires_gradient_sync(is_last)
    return _nothing()


def settle(objective: nn.Module) -> None:
    """Let go of what a forward pass without a backward pass left behind: sharded parameters that are whole for now."""
    if _holds_part(objective):
        objective.reshard()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _holds_part(objective: nn.Module) -> "TypeGuard[FSDPModule]":
    sharded = sys.modules.get("torch.distributed.fsdp")
    return sharded is not None and isinstance(objective, sharded.FSDPModule)


def _is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    # Whoever has not imported the module has none of its tensors, and importing it takes half a second.
    sharded = sys.modules.get("torch.distributed.tensor")
    return sharded is not None and isinstance(tensor, sharded.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds: all of it, unless it is sharded."""
    return tensor.to_local() if _is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor; where it is sharded, every process has to ask."""
    return tensor.full_tensor() if _is_sharded(tensor) else tensor


def sharded_like(part: Tensor, parameter: Tensor) -> Tensor:
    """Return the tensor that `part` is this process's part of, spread as a parameter is."""
    if not _is_sharded(parameter):
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )


def first_row(tensor: Tensor) -> int:
    """Return the row of the whole tensor that the local part begins with."""
    if not _is_sharded(tensor):
        return 0
    from torch.distributed.tensor import Shard

    shards, rank = tensor.device_mesh.size(-1), tensor.device_mesh.get_local_rank(tensor.device_mesh.ndim - 1)
    assert tensor.placements[-1] == Shard(0)
    return min(rank * -(-tensor.shape[0] // shards), tensor.shape[0])
