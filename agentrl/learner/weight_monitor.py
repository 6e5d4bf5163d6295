"""Follows the weights of a run: relative change per group of layers every Delta rollout batches."""

from typing import Any

import torch

from agentrl.analysis.weight_change import relative_weight_change
from agentrl.learner.policy import parameter_kind
from agentrl.model.anatomy import is_tied
from agentrl.model.processes import ALONE, Processes
from agentrl.model.weights import plain_weights
from agentrl.types import Metrics

Weights = dict[str, torch.Tensor]


class WeightMonitor:
    """Keeps the weights of the last measurement and of the start: two copies of the model on the first process's CPU.

    Adapters count as part of the matrices they change; a tied matrix is both `embedding` and `lm_head`.

    Args:
        module: the policy.
        start: the model before training (W_ref); None takes the module as it is now.
        every: rollout batches between measurements (Delta); 0 never measures and keeps nothing.
        processes: who holds the module; all must measure together.
    """

    def __init__(self, module: Any, *, every: int, start: Any | None = None, processes: Processes = ALONE) -> None:
        self.module, self.every, self.processes = module, every, processes
        self.tied = is_tied(module)
        self.start = self._copy(start if start is not None else module) if every else {}
        self.previous = self._copy(module) if every else {}

    def measure(self, step: int) -> Metrics:
        """`weight_change/GROUP` where a measurement is due after `step` rollout batches, else nothing."""
        if not self.every or step % self.every:
            return {}
        now = self._copy(self.module)
        change = relative_weight_change(*(_by_kind(weights) for weights in (now, self.previous, self.start)))
        self.previous = now
        if self.tied and "embedding" in change:
            change["lm_head"] = change["embedding"]
        return {f"weight_change/{group}": value for group, value in change.items()}

    def tensors(self, step: int) -> Weights:
        """The weights of the last measurement, by name, for a checkpoint; nothing where that was just now."""
        return dict(self.previous) if self.every and step % self.every else {}

    def load_tensors(self, tensors: Weights) -> None:
        """Restore what `tensors` gave."""
        if tensors and self.processes.is_first:
            self.previous = {name: tensors[name] for name in self.previous}

    def _copy(self, module: Any) -> Weights:
        """The plain weights; nothing on other processes than the first, which still help to gather shards."""
        copies = {}
        for name, tensor in plain_weights(module):
            if self.processes.is_first:
                copies[name] = tensor.to("cpu", copy=True)
        return copies


def _by_kind(weights: Weights) -> dict[str, list[torch.Tensor]]:
    groups: dict[str, list[torch.Tensor]] = {}
    for name, tensor in weights.items():
        groups.setdefault(parameter_kind(name), []).append(tensor)
    return groups
