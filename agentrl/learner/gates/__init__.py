"""Gates decide, after backward and before the optimizer, what becomes of a gradient and of its batch."""

from typing import Any

from pydantic import Field

from agentrl.common.plugins import call_own
from agentrl.errors import UserError
from agentrl.learner.gates.dgg import DggConfig
from agentrl.learner.gates.rate import KlRateConfig
from agentrl.learner.gates.rivals import FixedConfig
from agentrl.learner.gates.verdict import FiniteGuard, Gate, GateConfig, StepSignal, Verdict

__all__ = [
    "DggConfig", "FixedConfig", "Gate", "GateConfig", "KlRateConfig", "OwnGateConfig", "StepSignal", "Verdict",
    "make_gate",
]  # fmt: skip


class OwnGateConfig(GateConfig):
    """A gate of one's own."""

    kind: str
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of a gate of one's own."""

    def make(self, *, seed: int) -> Gate:
        """A gate of the user's, with everything that the protocol asks for."""
        gate: Gate = call_own(self.kind, "gate.kind", **self.options)
        for name in ("judge", "state_dict", "load_state_dict"):
            if not callable(getattr(gate, name, None)):
                raise UserError(
                    f"gate.kind: {self.kind} makes a {type(gate).__name__} without {name}; see agentrl.Gate."
                )
        return gate


def make_gate(config: GateConfig, *, seed: int = 0) -> Gate:
    """The gate that a config names, behind the guard against non-finite gradients."""
    return FiniteGuard(config.make(seed=seed))
