"""Data parallelism under `torchrun`: the processes of a run, DDP and FSDP2, and access to sharded tensors."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from modernbert.batch import Batch
from modernbert.devices import choose_device, limit_threads
from modernbert.errors import InputError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

__all__ = [
    "SINGLE_PROCESS",
    "Objective",
    "World",
    "first_process_prints",
    "first_row",
    "join",
    "local_shard",
    "reshard",
    "sharded_like",
    "gradient_sync",
    "full_tensor",
]

Result = TypeVar("Result")
Loss = Callable[[nn.Module, Batch], tuple[Tensor, Any]]


class Objective(nn.Module):
    """A model and its loss as one module, because DDP and FSDP2 act when `forward` of a module is called."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Batch, loss: Loss | None = None) -> tuple[Tensor, Any]:
        """Return the result of the loss, or of another function of model and batch."""
        return (loss or self.loss)(self.model, batch)


@dataclass(frozen=True)
class World:
    """The processes of a run: the rank of this one, their number, and how tensors are sharded over them.

    `mesh` is None if every process holds the whole model. `writers` is a separate group for the thread that writes
    checkpoints: its collectives on the CPU must not mix with the collectives of training.
    """

    rank: int = 0
    size: int = 1
    mesh: "DeviceMesh | None" = None
    writers: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def sum_shards(self, values: Tensor) -> Tensor:
        """Sum a tensor over the processes that share one copy of the model, in place."""
        if self.mesh is not None:
            dist.all_reduce(values, group=self.mesh.get_group(self.mesh.ndim - 1))
        return values

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Collective error check: an InputError in one process is raised in every process.

        Code inside must not wait for another process after the error.

        Raises: InputError of the first process that raised one.
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
        for message in failures:
            if message is not None:
                raise InputError(message)

    def from_main(self, compute: Callable[[], Result]) -> Result:
        """Call a function in the main process only, and return its result in every process.

        Raises: InputError that it raised, in every process.
        """
        with self.together():
            box = [compute() if self.is_main else None]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0, group=self.writers)
        return cast(Result, box[0])

    def parallelize(self, objective: Objective, blocks: Sequence[nn.Module], dtype: torch.dtype) -> nn.Module:
        """Wrap a model and its loss in DDP or FSDP2, which average gradients in each backward pass that syncs.

        With FSDP2, each block is gathered as a unit. In half precision its matrices are gathered in `dtype`, the dtype
        of their products, and their gradients are reduced in float32.
        """
        if self.mesh is not None:
            from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

            policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
            for block in blocks:
                if dtype != torch.float32:
                    matrices: list[nn.Module] = [each for each in block.modules() if isinstance(each, nn.Linear)]
                    fully_shard(matrices, mesh=self.mesh, mp_policy=policy)
                fully_shard(block, mesh=self.mesh)
            fully_shard(objective, mesh=self.mesh)
            return objective
        # Models of other families have parameters that a loss may not use, such as BERT's pooler.
        return DistributedDataParallel(objective, find_unused_parameters=not blocks) if self.size > 1 else objective

    def holds_first_copy(self) -> bool:
        """Whether this process writes its shards into checkpoints; with HSDP, one copy of the model does."""
        return self.mesh is None or self.mesh.ndim == 1 or self.mesh.get_local_rank(0) == 0


SINGLE_PROCESS = World()


@contextmanager
def join(device: str, sharding: str) -> Iterator[tuple[World, torch.device]]:
    """Join the processes that `torchrun` started; yield the world and the device of this process.

    `sharding` is `none` (DDP), `full` (FSDP2), or `hybrid` (HSDP: sharded within a machine, copied across machines).
    Without `torchrun` there is one process.

    Raises: InputError for an unknown device.
    """
    limit_threads()
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        if sharding != "none":
            print(f"distributed.sharding: {sharding} has no effect in one process; torchrun starts several")
        yield SINGLE_PROCESS, choose_device(device)
        return
    # Imported here: one process alone does not need them.
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.rendezvous import rendezvous

    local_rank, num_local = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    place = choose_device(_own_device(device, local_rank))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    store, rank, _ = next(rendezvous("env://"))
    # torchrun gives the same store to restarted processes; they must not read the keys of the earlier attempt.
    attempt = PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", store=attempt, rank=rank, world_size=size)
    try:
        mesh = None
        if sharding == "full":
            mesh = init_device_mesh(place.type, (size,))
        elif sharding == "hybrid":
            mesh = init_device_mesh(place.type, (size // num_local, num_local), mesh_dim_names=("copies", "shards"))
        # Others wait on it while the main process scores a model.
        writers = dist.new_group(backend="gloo", timeout=timedelta(days=1))
        yield World(dist.get_rank(), size, mesh, writers), place
    finally:
        dist.destroy_process_group()


@contextmanager
def first_process_prints() -> Iterator[None]:
    """Discard what the processes print that `torchrun` started, except for the first one."""
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nothing, redirect_stdout(nothing):
        yield


def _own_device(name: str, local_rank: int) -> str:
    """Return the CUDA device of a process: one for each process of a machine."""
    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        return f"cuda:{local_rank}"
    return name


def gradient_sync(objective: nn.Module, is_last: bool) -> Any:
    """Return a context for one backward pass; gradients are exchanged after the last one of a step only."""
    if isinstance(objective, DistributedDataParallel):
        return nullcontext() if is_last else objective.no_sync()
    if _holds_part(objective):
        objective.set_requires_gradient_sync(is_last)
    return nullcontext()


def reshard(objective: nn.Module) -> None:
    """Free the gathered parameters that a forward pass without a backward pass leaves behind."""
    if _holds_part(objective):
        objective.reshard()


def _holds_part(objective: nn.Module) -> "TypeGuard[FSDPModule]":
    sharded = sys.modules.get("torch.distributed.fsdp")
    return sharded is not None and isinstance(objective, sharded.FSDPModule)


def _is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    # Without the module there are no such tensors, and importing it takes half a second.
    sharded = sys.modules.get("torch.distributed.tensor")
    return sharded is not None and isinstance(tensor, sharded.DTensor)


def local_shard(tensor: Tensor) -> Tensor:
    """Return the shard of a tensor that this process holds; the tensor itself, if it is not sharded."""
    return tensor.to_local() if _is_sharded(tensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the whole tensor; a collective call, if it is sharded."""
    return tensor.full_tensor() if _is_sharded(tensor) else tensor


def sharded_like(part: Tensor, parameter: Tensor) -> Tensor:
    """Return the sharded tensor of which `part` is the local shard, sharded as a parameter is."""
    if not _is_sharded(parameter):
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )


def first_row(tensor: Tensor) -> int:
    """Return the index in the whole tensor of the first row of the local shard."""
    if not _is_sharded(tensor):
        return 0
    from torch.distributed.tensor import Shard

    shards, rank = tensor.device_mesh.size(-1), tensor.device_mesh.get_local_rank(tensor.device_mesh.ndim - 1)
    assert tensor.placements[-1] == Shard(0)
    return min(rank * -(-tensor.shape[0] // shards), tensor.shape[0])
