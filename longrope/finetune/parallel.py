"""Many processes as one: who holds which sequences, which part of a sequence, and which part of the weights.

    8 processes, sequence_parallel 4                       rank = data_rank * sequence_parallel + sequence_rank

              part 0  part 1  part 2  part 3           sequence_rank: Ulysses, an all-to-all inside each attention
    row 0       0       1       2       3              data_rank: other sequences
    row 1       4       5       6       7              weights: FSDP2 over all eight, whichever row they are in

Every process calls backward on `sum of its tokens' losses / tokens of all processes`, and gradients are *summed* over all
processes: the gradient of the token-weighted mean, however unevenly tokens are spread. (A mean of means would be another
one: packed rows and parts of rows differ in how many tokens they are trained on.)

The engines are torch's: torchrun starts the processes, `fully_shard` (FSDP2) spreads the weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from longrope.errors import InputError, LongRopeError, MissingRequirementError, UnsupportedError
from longrope.finetune.checkpoints import distributed_storage
from longrope.finetune.options import TrainOptions

Result = TypeVar("Result")
# How long processes wait for what the first one does alone, such as a search.
PATIENCE = timedelta(days=30)
# How long a process waits for the others in a step before it gives up.
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Parallel:
    """This process among all; a context manager that leaves the group at its end.

    Args:
        rank: number of this process.
        world_size: number of processes.
        sequence_parallel: processes that share one sequence; neighbours, so that they sit in one machine.
        device: what this process computes on.
        weights_mesh: [copies, parts of a copy] of the weights; None in one process.
        sequence_group: the processes that share this one's sequences; None where sequence_parallel is 1.
        patient_group: all processes again, over gloo, whose collectives wait for days; None in one process.
    """

    rank: int
    world_size: int
    sequence_parallel: int
    device: torch.device
    weights_mesh: DeviceMesh | None = None
    sequence_group: dist.ProcessGroup | None = None
    patient_group: dist.ProcessGroup | None = None

    @classmethod
    def single(cls, device: str | torch.device = "cpu") -> Parallel:
        """One process, no process group."""
        return cls(rank=0, world_size=1, sequence_parallel=1, device=torch.device(device))

    @classmethod
    def from_environment(
        cls, sequence_parallel: int = 1, *, device: str | None = None, fsdp: int | None = None
    ) -> Parallel:
        """Join the processes that torchrun started; `single` where it started none.

        Args:
            sequence_parallel: processes that share one sequence; divides their number.
            device: "cuda" or "cpu"; None takes CUDA where it is. The group talks through nccl or gloo accordingly.
            fsdp: processes that one copy of the weights is spread over; None for all of them, 1 for a whole copy
                in each. Between: HSDP, e.g. the devices of a machine.

        Raises:
            InputError: the sizes do not divide the number of processes.
            MissingRequirementError: this torch is too old for several processes.
        """
        kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        _check_divides("sequence_parallel", sequence_parallel, world_size)
        _check_divides("fsdp", fsdp or world_size, world_size)
        if "RANK" not in os.environ:
            return cls.single(kind)
        require_sharding()
        place = torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device(kind)
        if kind == "cuda":
            torch.cuda.set_device(place)
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=TIMEOUT)
        shards = fsdp or world_size
        weights = init_device_mesh(kind, (world_size // shards, shards), mesh_dim_names=("copies", "parts"))
        rows = init_device_mesh(
            kind, (world_size // sequence_parallel, sequence_parallel), mesh_dim_names=("data", "sequence")
        )
        group = rows.get_group("sequence") if sequence_parallel > 1 else None
        patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        return cls(dist.get_rank(), world_size, sequence_parallel, place, weights, group, patient)

    # -- who this is

    @property
    def data_rank(self) -> int:
        """Which rows of a global batch are this process's: those with `row % data_parallel == data_rank`."""
        return self.rank // self.sequence_parallel

    @property
    def data_parallel(self) -> int:
        return self.world_size // self.sequence_parallel

    @property
    def sequence_rank(self) -> int:
        return self.rank % self.sequence_parallel

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and results."""
        return self.rank == 0

    # -- weights and gradients

    def shard(self, model: nn.Module, *, param_dtype: torch.dtype | None = None) -> nn.Module:
        """Spread a model's weights over the processes, layer by layer, in place; in one process it only moves it.

        Call it before the optimizer is made, on the module whose *forward* does everything, loss included: FSDP2 gathers
        the embedding, the last norm and the head when that forward begins.

        Args:
            model: on the CPU or on this process's device, the same in every process.
            param_dtype: what layers compute in; the optimizer keeps the parameters' own, gradients are summed in float32.

        Returns:
            The same module.
        """
        if self.weights_mesh is None:
            return model.to(self.device)
        copies, _ = self.weights_mesh.shape
        mesh = self.weights_mesh["parts"] if copies == 1 else self.weights_mesh
        policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32)
        options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy}
        for layer in decoder_layers(model):
            fully_shard(layer, reshard_after_forward=True, **options)  # gathered again for backward
        fully_shard(model, reshard_after_forward=False, **options)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # the loss is divided by the tokens of all processes already
                module.set_force_sum_reduction_for_comms(True)  # gloo has no premultiplied sum
        return model

    @torch.no_grad()
    def clip_grad_norm(self, model: nn.Module, max_norm: float) -> Tensor:
        """Scale all gradients so that their norm over all processes is at most `max_norm`.

        Returns:
            The norm before, a scalar on this process's device, the same in every process.
        """
        norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        return _whole(norm)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place; e.g. losses and tokens. Returns it."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def anywhere(self, flag: bool) -> bool:
        """Whether a flag is set in any process; the same answer in all."""
        return bool(self.sum_(torch.tensor(int(flag), device=self.device)).item())

    # -- sequences

    def split_sequence(self, tensor_BT: Tensor) -> Tensor:
        """This process's part of every sequence: [B, T, …] → [B, T / sequence_parallel, …].

        Whatever a position needs to know of its neighbours must be in the tensor before: labels are shifted, position ids and
        the factor set of every token are those of the whole sequence.

        Raises:
            InputError: T is not a multiple of sequence_parallel.
        """
        length = tensor_BT.shape[1]
        if length % self.sequence_parallel:
            raise InputError(
                f"a sequence of {length} tokens cannot be shared by {self.sequence_parallel} processes; "
                f"expected a multiple of {self.sequence_parallel}"
            )
        return tensor_BT.chunk(self.sequence_parallel, dim=1)[self.sequence_rank].contiguous()

    # -- together

    def main_alone(self, work: Callable[[], Result]) -> Result | None:
        """Let the first process do something alone, for as long as it takes; the others wait, without computing.

        Returns:
            What it gave, in the first process; None in the others.

        Raises:
            LongRopeError: it failed; the first process raises its own error.
        """
        if self.patient_group is None:
            return work()
        result, failed = None, torch.ones(1)
        try:
            if self.is_main:
                result = work()
                failed.zero_()
        finally:
            dist.broadcast(failed, 0, group=self.patient_group)
        if failed.item():
            raise LongRopeError("the first process failed; it says why")
        return result

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def __enter__(self) -> Parallel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def processes(options: TrainOptions) -> Iterator[Parallel]:
    """The processes that torchrun started, or this one with the device that was asked for."""
    kind = options.device.split(":")[0]
    with Parallel.from_environment(options.sequence_parallel, device=kind, fsdp=options.fsdp) as parallel:
        yield parallel if parallel.world_size > 1 else Parallel.single(options.device)


def require_sharding() -> None:
    """Raise MissingRequirementError for a torch whose FSDP2 cannot sum gradients over gloo, or write what is sharded."""
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms") or distributed_storage() is None:
        raise MissingRequirementError(
            f"training in several processes needs torch 2.9 or newer, found {torch.__version__}: pip install -U torch"
        )


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that are gathered, and recomputed, one at a time: transformers marks them by their base class.

    Raises:
        UnsupportedError: the model has none.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UnsupportedError(f"{type(model).__name__} has no decoder layers that transformers knows to checkpoint")
    return layers


def full_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and whole CPU tensor of every parameter and buffer, one after the other.

    All processes must iterate together; each tensor is gathered when it is asked for, so that no more than one is whole.
    """
    for name, tensor in model.state_dict().items():
        yield name, _whole(tensor.detach()).cpu()


def _whole(tensor: Tensor) -> Tensor:
    """A tensor that may be spread over processes, gathered."""
    whole = getattr(tensor, "full_tensor", None)
    return tensor if whole is None else whole()


def _check_divides(name: str, size: int, world_size: int) -> None:
    if size < 1 or world_size % size:
        raise InputError(f"{name}: expected a divisor of the number of processes ({world_size}), got {size}")
