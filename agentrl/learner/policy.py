"""A causal LM as the learner sees it: log-probs of trained tokens in, one gradient over all processes out.

Whole, low-rank adapted (LoRA) or sharded (FSDP2) modules behave alike: after `reduce` every process knows the same head
energy and the same norms, whatever part of the gradient it holds.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from agentrl.errors import UserError
from agentrl.learner.batch import MicroBatch
from agentrl.model.anatomy import backbone, head, head_bias, head_form, hidden_states, is_tied
from agentrl.model.compiled import CompiledBlocks, Compiler
from agentrl.model.head import HeadGradient, token_logprobs
from agentrl.model.processes import ALONE, Processes, local, whole
from agentrl.model.upper import FrozenBlocks
from agentrl.model.weights import compute_dtype, computing, effective_weight, is_sharded


class Policy:
    """Forward passes, the gradient and its norms.

    Args:
        module: Hugging Face causal LM.
        temperature: log-probs are at this temperature.
        processes: who shares the gradient.
        with_factors: whether the head keeps what Theorem 2 needs (`HeadGradient.largest_factor`).
        keeps_frozen: whether micro-batches come back, so that they keep the output of frozen blocks.
        compiler: who compiles the blocks for passes inside `working`; None: they run as they are.

    Raises:
        UserError: log-probs of this architecture are not a plain matrix product of the hidden states.
    """

    def __init__(
        self,
        module: Any,
        *,
        temperature: float,
        processes: Processes = ALONE,
        with_factors: bool = False,
        keeps_frozen: bool = False,
        compiler: Compiler | None = None,
    ) -> None:
        self.module, self.temperature, self.processes = module, temperature, processes
        _check_head(module)
        self._form = head_form(module)
        self.head = HeadGradient(with_factors=with_factors, with_entropy=True)
        self.sharded = is_sharded(module)
        trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in trained]
        """Names of the trained parameters, in the optimizer's order."""
        self.parameters = [parameter for _, parameter in trained]
        self.groups = parameter_groups(module)
        self._frozen = FrozenBlocks(module) if keeps_frozen and not self.sharded else None
        self.compiled = CompiledBlocks(module, compiler) if compiler else None
        self._head_weight: torch.Tensor | None = None
        self._head_factor: torch.Tensor | None = None
        self._checkpointed = [
            m for m in module.modules() if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing
        ]

    @property
    def is_tied(self) -> bool:
        """Whether head and embedding are one matrix."""
        return is_tied(self.module)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Hold what all forward passes between two optimizer steps share: the head's whole weight.

        Layers that recompute their activations do so only in training mode, which no layer below them shares: there is
        no dropout in RL, where old and new log-probs must differ by the weights alone.
        """
        weight = effective_weight(head(self.module))
        self._head_weight = weight
        self._head_factor = whole(weight.detach()).to(compute_dtype(self.module))
        before = [layer.training for layer in self._checkpointed]  # a LoRA policy is its own reference in between
        for layer in self._checkpointed:
            layer.training = True
        try:
            with self.compiled.at_work() if self.compiled else nullcontext():
                yield
        finally:
            self._head_weight = self._head_factor = None
            for layer, was in zip(self._checkpointed, before, strict=True):
                layer.training = was

    def logprobs(self, part: MicroBatch) -> torch.Tensor:
        """Log-probs [N] of the trained tokens at the sampling temperature."""
        assert self._head_factor is not None, "forward passes happen inside `working`"
        return token_logprobs(
            self._hidden(part).to(self._head_factor.dtype),
            self._head_factor,
            part.targets,
            temperature=self.temperature,
            form=self._form,
            bias=head_bias(head(self.module)),
            sink=self.head if torch.is_grad_enabled() else None,
        )[0]

    def reduce(self) -> tuple[float, dict[str, float]]:
        """Sum the gradient over all processes; its head energy and its norm per group of parameters, before clipping.

        Afterwards every trained parameter holds the gradient of the whole batch, or this process's shard of it.
        """
        weight = self._head_weight
        assert weight is not None, "gradients are reduced inside `working`"
        if isinstance(weight, DTensor):
            self.head.scatter(weight)
        elif self.processes.count > 1:
            self._sum_gradients()
            self.processes.sum_([self.head.ensure(weight)])
        head_energy = self.head.energy()
        self.head.merge(weight)
        squares = torch.stack([head_energy.cpu(), *(_squared_norm(group) for group in self.groups.values())])
        if self.sharded:
            self.processes.sum_([squares])
        energy, *norms = squares.tolist()
        return energy, {name: _root(square) for name, square in zip(self.groups, norms, strict=True)}

    def scale_gradient(self, factor: float) -> None:
        """Multiply the gradient."""
        torch._foreach_mul_([local(p.grad) for p in self.parameters if p.grad is not None], factor)

    def clear(self) -> None:
        """Forget the gradient."""
        for parameter in self.parameters:
            parameter.grad = None
        self.head.clear()

    def _hidden(self, part: MicroBatch) -> torch.Tensor:
        """Hidden states of the positions that predict the trained tokens, [N, D]."""
        with computing(self.module):
            if self._frozen is None:
                states = hidden_states(self.module, part.ids)
            else:
                states, part.kept = self._frozen.hidden_states(part.ids, part.kept)
        return states.flatten(0, 1)[part.predecessors]

    def _sum_gradients(self) -> None:
        """Add up what the processes have; a parameter without a gradient anywhere stays without one."""
        has = torch.tensor([float(p.grad is not None) for p in self.parameters])
        self.processes.max_(has)
        used = [p for p, anywhere in zip(self.parameters, has.tolist(), strict=True) if anywhere]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.processes.sum_([p.grad for p in used if p.grad is not None])


def parameter_groups(module: Any) -> dict[str, list[torch.nn.Parameter]]:
    """Parameters by kind: lm_head, embedding, attention, mlp, other (norms); a tied head counts as embedding."""
    groups: dict[str, list[torch.nn.Parameter]] = {kind: [] for kind in (*_KINDS, "other")}
    for name, parameter in module.named_parameters():
        groups[parameter_kind(name)].append(parameter)
    return groups


def parameter_kind(name: str) -> str:
    """The group of a parameter, by its name."""
    return next((kind for kind, marks in _KINDS.items() if any(mark in name for mark in marks)), "other")


_KINDS = {
    "lm_head": ("lm_head", "embed_out"),
    "embedding": ("embed", "wte", "wpe"),
    "attention": ("attn", "attention."),
    "mlp": ("mlp", "feed_forward", "fc1", "fc2"),
}


def _check_head(module: Any) -> None:
    layer = head(module)
    if layer is None or not hasattr(layer, "weight"):
        backbone(module)  # says what is missing
        raise UserError(f"model.path: {type(module).__name__} has no linear head. Take another model.")
    if is_sharded(module) and hasattr(layer, "lora_A"):
        raise UserError("model.lora_targets: an adapter on lm_head cannot be combined with learner.shard.")
    if is_sharded(module) and head_bias(layer) is not None:
        raise UserError("learner.shard: a head with a bias cannot be sharded. Set learner.shard = false.")


def _squared_norm(parameters: list[torch.nn.Parameter]) -> torch.Tensor:
    """Squared norm of the gradients (of this process's parts), a float64 scalar on the CPU."""
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros((), dtype=torch.float64)
    return torch.stack(torch._foreach_norm(gradients)).double().square().sum().cpu()


def _root(square: float) -> float:
    return math.sqrt(square) if square >= 0 else math.nan
