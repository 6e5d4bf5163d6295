"""Follows the weights of a run: relative change per group of layers every Delta rollout batches."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from agentrl.analysis.weight_change import relative_weight_change
from agentrl.learner.policy import parameter_kind
from agentrl.model.anatomy import is_tied
from agentrl.model.processes import ALONE, Processes, cut_like, whole
from agentrl.model.stored import StoredTensor, own_part
from agentrl.model.weights import Keep, is_sharded, plain_names, plain_parts
from agentrl.types import Metrics

Weights = dict[str, torch.Tensor]


class WeightMonitor:
    """Keeps the weights of the last measurement on the CPU: one copy of the model, of shards each process its own part.

    Adapters count as part of the matrices they change; a tied matrix is both `embedding` and `lm_head`.

    Args:
        module: the policy.
        start: the model before training (W_ref), whole; None takes the module as it is now.
        every: rollout batches between measurements (Delta); 0 never measures and keeps nothing.
        processes: who holds the module; all must measure together.
    """

    def __init__(self, module: Any, *, every: int, start: Any | None = None, processes: Processes = ALONE) -> None:
        self.module, self.every, self.processes = module, every, processes
        self.tied = is_tied(module)
        self.keeps = bool(every) and (processes.is_first or is_sharded(module))
        self.previous: Weights = dict(self._parts(module))
        reference = module if start is None else start
        self.start = self._squares(self._parts(reference), is_cut=is_sharded(reference))
        """Squared norm of W_ref by group."""

    def measure(self, step: int) -> Metrics:
        """`weight_change/GROUP` where a measurement is due after `step` rollout batches, else nothing."""
        if not self.every or step % self.every:
            return {}
        moved = self._squares(self._moves(), is_cut=is_sharded(self.module))
        change = relative_weight_change(moved, self.start)
        if self.tied and "embedding" in change:
            change["lm_head"] = change["embedding"]
        return {f"weight_change/{group}": value for group, value in change.items()}

    def tensors(self, step: int, keep: Keep) -> Weights:
        """The weights of the last measurement, by name, for a checkpoint; nothing where that was just now.

        Whole tensors, of which a process gets those of which its `keep` says so; all must ask together.
        """
        if not self.every or step % self.every == 0:
            return {}
        parameters = plain_names(self.module)
        joined = ((name, whole(cut_like(part, parameters[name])).cpu()) for name, part in self.previous.items())
        return {name: tensor for name, tensor in joined if keep(name)}

    def load_tensors(self, tensors: Mapping[str, torch.Tensor | StoredTensor]) -> None:
        """Restore what `tensors` gave to all processes together."""
        if tensors and self.keeps:
            parameters = plain_names(self.module)
            for name in self.previous:
                self.previous[name] = own_part(tensors[name], parameters[name]).cpu()

    def _parts(self, module: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Copies of the plain weights, of a sharded module this process's part; nothing where nothing is kept."""
        if self.keeps:
            for name, tensor in plain_parts(module):
                yield name, tensor.to("cpu", copy=True)

    def _moves(self) -> Iterator[tuple[str, torch.Tensor]]:
        """W_t - W_{t - Delta}, one tensor after the other; what is kept is W_t afterwards."""
        for name, now in self._parts(self.module):
            yield name, now - self.previous[name]
            self.previous[name] = now

    def _squares(self, tensors: Iterator[tuple[str, torch.Tensor]], *, is_cut: bool) -> dict[str, float]:
        """Squared norm by group of layers, of the parts of all processes where tensors are cut."""
        sums: dict[str, float] = {}
        for name, tensor in tensors:
            square = float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2
            sums[parameter_kind(name)] = sums.get(parameter_kind(name), 0.0) + square
        if is_cut:
            total = torch.tensor(list(sums.values()), dtype=torch.float64)
            self.processes.sum_([total])
            sums = dict(zip(sums, total.tolist(), strict=True))
        return sums
