"""The processes of a run: who am I, and the few things that all of them do together.

Every process executes the same loop on its share of the tasks. `accelerate launch` (or torchrun) starts them; alone, a
process is a group of one and nothing is communicated. Sums are bit-identical on all processes, so decisions made from
them are the same everywhere.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch.distributed.tensor import DTensor, Shard

from agentrl.errors import RunError

T = TypeVar("T")

PATIENCE = timedelta(hours=6)
"""Longest wait for a slower process. A dead one is noticed at once: its connections close."""
GPU_PATIENCE = timedelta(minutes=20)
"""Longest wait in a meeting of GPUs, where no episode is waited for."""
_BUCKET = 1 << 24
"""Numbers summed over processes in one message."""


class Processes:
    """All processes of a run, seen from one of them.

    Args:
        rank: number of this process, 0 .. count - 1.
        count: number of processes.
        device: where this process computes.
    """

    def __init__(self, rank: int = 0, count: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.count = rank, count
        self.device = device or torch.device("cpu")

    @classmethod
    def join(cls) -> "Processes":
        """Meet the others that the launcher started; alone, a group of one."""
        on_cpu = not torch.cuda.is_available()
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls(device=PartialState(cpu=on_cpu).device)
        # Both kinds of tensors are exchanged: gradients on the accelerator, objects on the CPU.
        backend = "gloo" if on_cpu else "cpu:gloo,cuda:nccl"
        state = PartialState(cpu=on_cpu, backend=backend, timeout=PATIENCE)
        if not on_cpu:  # the first meeting after a rollout is of objects, on the CPU: nobody waits for episodes here
            dist.distributed_c10d._get_default_group()._get_backend(state.device)._set_default_timeout(GPU_PATIENCE)
        return cls(state.process_index, state.num_processes, state.device)

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @property
    def is_first_here(self) -> bool:
        """Whether this process is the first of its machine."""
        return int(os.environ.get("LOCAL_RANK", self.rank)) == 0

    def ask_first(self, call: Callable[..., T] | None) -> Callable[..., T | None]:
        """A function that the first process alone calls, and whose answer all get; None answers nothing."""
        if call is None:
            return lambda *_: None
        return lambda *arguments: self.from_first(call(*arguments) if self.is_first else None)

    def leave(self) -> None:
        """Take leave of the others at the end of a run."""
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def share(self, items: Sequence[T]) -> list[T]:
        """Every count-th item, from this process's number on: the shares of all processes are disjoint and whole."""
        return list(items[self.rank :: self.count])

    def sum_(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace every tensor by its sum over all processes; the same tensors, in the same order, everywhere."""
        if self.count == 1:
            return
        with _speaking():
            for bucket in _buckets(tensors):
                flat = torch.cat([tensor.reshape(-1) for tensor in bucket]) if len(bucket) > 1 else bucket[0]
                dist.all_reduce(flat)
                if len(bucket) > 1:
                    pieces = flat.split([tensor.numel() for tensor in bucket])
                    for tensor, piece in zip(bucket, pieces, strict=True):
                        tensor.copy_(piece.view_as(tensor))

    def max_(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by its elementwise maximum over all processes."""
        if self.count > 1:
            with _speaking():
                dist.all_reduce(tensor, op=dist.ReduceOp.MAX)

    def from_first(self, value: T) -> T:
        """The first process's value, on all processes."""
        if self.count == 1:
            return value
        values = [value]
        with _speaking():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in their order, on all processes."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with _speaking():
            dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Go on when all processes are here."""
        self.gather(None)


ALONE = Processes()
"""A group of one."""


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or of a shard the whole (all processes must ask together)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or of a shard this process's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def rows_of(model: torch.Tensor) -> slice | None:
    """Rows of a shard that this process holds; None where it holds the whole."""
    if not isinstance(model, DTensor):
        return None
    assert model.placements == (Shard(0),), "FSDP2 cuts rows, over one dimension of processes"
    count, rows = model.device_mesh.size(), model.shape[0]
    start = min(model.device_mesh.get_local_rank() * -(-rows // count), rows)  # as torch.chunk cuts
    return slice(start, start + model.to_local().shape[0])


def cut_like(part: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """A tensor that is cut as `model` is, from this process's part of it."""
    if not isinstance(model, DTensor):
        return part
    return DTensor.from_local(
        part.to(model.device), model.device_mesh, model.placements,
        run_check=False, shape=model.shape, stride=model.stride(),
    )  # fmt: skip


def _buckets(tensors: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Neighbours of one type, up to a message's size."""
    bucket: list[torch.Tensor] = []
    for tensor in tensors:
        assert tensor.is_contiguous(), "sums are written in place"
        full = bucket and sum(t.numel() for t in bucket) + tensor.numel() > _BUCKET
        if bucket and (full or tensor.dtype != bucket[0].dtype or tensor.device != bucket[0].device):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


@contextmanager
def _speaking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            f"lost contact with another process of this run ({str(error).splitlines()[0]}); what it printed last says "
            "why. Start the same number of processes or another one with --resume RUN to go on."
        ) from None
