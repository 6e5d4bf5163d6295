"""What a run needs from whatever learns: groups' tokens in, weights out. Another backend implements these methods."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from agentrl.learner.batch import Batch
from agentrl.types import Group, Metrics


@dataclass
class Update:
    """What `Learner.update` did with one rollout batch."""

    num_steps: int = 0
    """Gradients applied."""
    num_discarded: int = 0
    """Gradients computed and discarded."""
    gate_closed: bool = False
    """Whether the gate ended reuse before K."""
    steps: list[Metrics] = field(default_factory=list)
    """Monitors of every update, in order."""
    trained_tokens: int = 0
    """Sampled tokens in the forward passes, summed over updates and processes."""
    seconds: tuple[float, float] = (0.0, 0.0)
    """Wall and CPU seconds of the whole update in this process."""


class Learner(Protocol):
    """Holds a policy and improves it. All processes of a run call the same methods together."""

    num_batches: int
    """Rollout batches used so far."""
    num_updates: int
    """Optimizer steps so far: the version of the weights."""

    def update(self, batch: Batch) -> Update:
        """Use a rollout batch, up to K times; `batch` is this process's part of it."""
        ...

    def kl_penalties(self, groups: Sequence[Group]) -> list[NDArray[np.float64]]:
        """What a KL to the reference policy takes from each trajectory's reward, [G] a group."""
        ...

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Named whole tensors for an engine that holds a replica."""
        ...

    def adapter(self) -> dict[str, torch.Tensor]:
        """The factors of a LoRA policy, whole, by name; empty for any other."""
        ...

    def score(self, ids: list[int], temperature: float) -> list[float]:
        """Log-prob of every id but the first given those before it, [L - 1]."""
        ...

    def rest(self) -> None:
        """Leave the device's memory to an engine until the weights are asked for again, where that is wanted."""
        ...

    def measure(self) -> Metrics:
        """Slow monitors of the weights, where one is due after this batch, else nothing."""
        ...

    def state_dict(self, *, spread: bool = False) -> dict[str, Any]:
        """Everything: `weights` and `adapter`, `optimizer` and `monitor` tensors by name, plain `counters` and `gate`.

        Whole tensors, on the first process only; with `spread` each process gets other ones, together all of them,
        those of a block in one process.
        """
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, on any number of processes; its weights were loaded with the module.

        `optimizer` and `monitor` are all tensors, in memory or in files (`agentrl.model.stored.StoredTensor`).
        """
        ...
