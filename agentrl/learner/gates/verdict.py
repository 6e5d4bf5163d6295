"""The door of all gates: what a gate sees, what it answers, and the guard that keeps non-finite gradients away.

`judge(signal) -> Verdict`. A gate sees numbers only: it is pure, has a state to save, and every process that feeds it
the same signals takes the same branch.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

from agentrl.config.section import Section
from agentrl.errors import RunError

MAX_NON_FINITE = 3
"""Discarded non-finite energies in a row that stop the run."""


@dataclass(frozen=True)
class StepSignal:
    """What a gate may look at after backward and before the optimizer: one value each for the whole batch."""

    reuse_index: int
    """k, 1 for the first update on a batch."""
    head_energy: float
    """Squared Frobenius norm of the lm_head gradient, before clipping."""
    grad_norm: float = 0.0
    """Euclidean norm of the whole gradient, before clipping."""
    loss: float = 0.0
    """Value of the objective."""
    kl: float = 0.0
    """Mean k3 estimate of KL(policy at the first pass over the batch || current) over trained tokens; 0 at k = 1."""
    clip_fraction: float = 0.0
    """Share of trained tokens whose ratio is outside the clip range on the active side."""
    ess: float = 1.0
    """Effective sample size of the ratios over the number of trained tokens, 0..1."""
    m2: float = 0.0
    """Mean squared log-ratio."""
    sequence_ess: float = 1.0
    """Effective sample size of the rows' weights (product of a row's ratios) over the number of rows, 0..1."""
    tied_energy: float | None = None
    """With tied embeddings: squared norm of the whole gradient of that matrix; None where head and embedding differ."""


@dataclass(frozen=True)
class Verdict:
    """A gate's answer for one update."""

    apply: bool
    """Whether the gradient may reach the optimizer."""
    stop: bool
    """Whether reuse of this batch ends here."""
    scale: float = 1.0
    """Factor on the gradient where it is applied."""
    reason: str = ""
    """One word for logs: `surge`, `kl`, `non_finite` ..."""
    statistics: dict[str, float] = field(default_factory=dict)
    """Numbers behind the decision (z-score, mean, std ...)."""
    rate_factor: float = 1.0
    """Factor on the learning rate of this step, beside the schedule's."""
    is_judgement: bool = True
    """False for a stop that was fixed beforehand or says nothing about the batch: the gate then did not close."""

    def metrics(self) -> dict[str, Any]:
        """For the record of an update."""
        decision = {"applied": self.apply, "stopped": self.stop, "reason": self.reason}
        rate = {"rate_factor": self.rate_factor} if self.apply else {}
        return {**decision, **rate, **self.statistics}


class Gate(Protocol):
    """What the learner asks after every backward pass."""

    def judge(self, signal: StepSignal) -> Verdict:
        """Whether to apply this gradient and whether to go on with the batch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        ...


class Stateless:
    """For gates that look at nothing but the present signal."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to save."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class GateConfig(Section):
    """The table `[gate]`: decides after each backward whether the gradient is applied and the batch used again.

    A gate is a subclass with a `kind`, its own keys, and `make`.
    """

    kind: str
    """Which gate, or `module:Class` of one's own."""

    def make(self, *, seed: int) -> Gate:
        """The gate, before its first signal."""
        raise NotImplementedError

    def most_uses(self, max_reuse: int) -> int:
        """Gradients that a batch may see, at most."""
        return max_reuse


class FiniteGuard:
    """Wraps every gate: a non-finite energy or norm is discarded at any k and never reaches the gate inside.

    Raises:
        RunError: three non-finite gradients in a row.
    """

    def __init__(self, gate: Gate) -> None:
        self.gate, self.in_a_row = gate, 0

    def judge(self, signal: StepSignal) -> Verdict:
        """Discard what is not finite, else ask the gate."""
        if all(math.isfinite(x) for x in (signal.head_energy, signal.grad_norm, signal.loss)):
            self.in_a_row = 0
            return self.gate.judge(signal)
        self.in_a_row += 1
        if hasattr(self.gate, "discarded"):
            self.gate.discarded()
        if self.in_a_row >= MAX_NON_FINITE:
            raise RunError(
                f"{MAX_NON_FINITE} gradients in a row were not finite (loss {signal.loss}, head energy "
                f"{signal.head_energy}). The last checkpoint is good; resume from it with a lower learner.lr."
            )
        return Verdict(
            apply=False, stop=True, reason="non_finite", statistics={"energy": signal.head_energy}, is_judgement=False
        )

    def state_dict(self) -> dict[str, Any]:
        """State of the gate inside, and the count."""
        return {"in_a_row": self.in_a_row, "gate": self.gate.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both."""
        self.in_a_row = int(state["in_a_row"])
        self.gate.load_state_dict(state["gate"])
