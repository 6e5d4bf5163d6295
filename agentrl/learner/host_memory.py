"""What waits on the host while nobody needs it (`learner.shard = "offload"`): moments, reference, resting weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

_HOST = torch.device("cpu")


def step_tensor_by_tensor(optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter]) -> None:
    """One optimizer step, for which the moments of one tensor at a time leave the host; gradients are gone behind it.

    The same numbers as `optimizer.step()` on all of them: AdamW has nothing that two tensors share.
    """
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    for number, parameter in enumerate(parameters):
        parameter.grad, gradients[number] = gradients[number], None
        if parameter.grad is None:
            continue
        if parameter in optimizer.state:
            move_state(optimizer.state[parameter], parameter.device)
        optimizer.step()
        move_state(optimizer.state[parameter], _HOST)
        parameter.grad = None


def move_state(state: dict[str, Any], device: torch.device) -> None:
    """Bring what an optimizer keeps of a tensor to a device, in place."""
    for kind, value in state.items():
        if isinstance(value, torch.Tensor):
            state[kind] = value.to(device)


@contextmanager
def lent_to(module: Any, device: torch.device) -> Iterator[None]:
    """Inside, a module that waits on the host is on the device."""
    module.to(device)
    try:
        yield
    finally:
        module.to(_HOST)
