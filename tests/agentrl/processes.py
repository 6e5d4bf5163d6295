"""Runs a function in several processes that know each other (gloo), and hands back what each returned."""

import os
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import torch
from accelerate import PartialState
from torch.distributed.tensor import DTensor, distribute_tensor

from agentrl.model.processes import Processes


def together(count: int, work: Callable[..., Any], *values: Any, patience_s: int = 120) -> list[Any]:
    """`work(processes, *values)` in `count` processes; results in their order.

    Children are forked, so values need no pickling and nothing is imported again; with a GPU in the parent that is
    impossible, but then nothing here is run either.
    """
    assert not torch.cuda.is_initialized()
    context = get_context("fork")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    children = [
        context.Process(target=_child, args=(rank, count, port, sender, work, values), daemon=True)
        for rank, (_, sender) in enumerate(pipes)
    ]
    for child in children:
        child.start()
    results = []
    for receiver, _ in pipes:
        assert receiver.poll(patience_s), f"a process did not answer within {patience_s} seconds"
        failure, result = pickle.loads(receiver.recv_bytes())
        assert failure is None, failure
        results.append(result)
    for child in children:
        child.join()
    return results


def _child(rank: int, count: int, port: int, pipe: Any, work: Callable[..., Any], values: tuple[Any, ...]) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true",
    )  # fmt: skip
    PartialState._reset_state()
    try:
        processes = Processes.join()
        assert (processes.rank, processes.count) == (rank, count)
        pipe.send_bytes(pickle.dumps((None, work(processes, *values))))
        processes.leave()
    except BaseException:
        pipe.send_bytes(pickle.dumps((traceback.format_exc(), None)))
        raise


def sharded_like(tensor: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """A whole tensor, cut as `model` is cut; scalars stay whole."""
    if not isinstance(model, DTensor) or tensor.shape != model.shape:
        return tensor
    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements)
