"""Gates that set the learning rate of the next step beside (or instead of) discarding gradients.

A gate hands its factor on with every verdict (`Verdict.rate_factor`); the learner multiplies the scheduled rate by it.
"""

import math
from typing import Any, Literal

from pydantic import Field

from agentrl.learner.gates.verdict import Gate, GateConfig, Stateless, StepSignal, Verdict


class KlRateConfig(GateConfig):
    """Reuse stops at a KL, and the learning rate finds the size at which a batch just reaches it."""

    kind: Literal["kl_rate"] = "kl_rate"
    target: float = Field(0.01, gt=0)
    """Mean k3 KL per token that the last gradient of a batch should not exceed."""
    threshold: float | None = None
    """KL above which a gradient is discarded; None takes the target; 0 uses every batch once and spends the second
    gradient on the measurement."""
    most: float = Field(1.0, gt=0)
    """Largest factor on the scheduled rate; 1 never exceeds the given rate."""

    def make(self, *, seed: int) -> Gate:
        """The controller at factor 1."""
        return KlRateGate(self)


class EssRateConfig(GateConfig):
    """The learning rate shrinks with the effective sample size of the sequences' weights."""

    kind: Literal["ess_rate"] = "ess_rate"

    def make(self, *, seed: int) -> Gate:
        """The rule of VCPO."""
        return EssRateGate()


class KlRateGate:
    """Stops reuse at a KL and lets the rate find the size at which a batch just reaches it.

    At k > 1 a gradient whose mean k3 KL (first pass over the batch to now) is above `stop` is discarded and ends the
    batch. After each batch the KL of its last gradient, discarded or not, moves the factor: above the target it is
    divided by 1.3, below a quarter of it multiplied by 1.1, and it never exceeds `most`. No further forward pass. The
    change takes effect with the first gradient of the next batch, which is when a batch is known to be over.

    The rule is this repository's own (benchmarks/results); its two parts are older: stopping at a KL is Spinning Up's
    PPO, a rate that follows the KL is PPO's adaptive penalty (arXiv 1707.06347, section 4) applied to the step size.

    Args:
        config: target, stop and ceiling.
    """

    DOWN, UP = 1.3, 1.1

    def __init__(self, config: KlRateConfig) -> None:
        self.config = config
        self.stop = config.target if config.threshold is None else config.threshold
        self.factor = self.next_factor = 1.0

    def judge(self, signal: StepSignal) -> Verdict:
        """Settle the rate where a new batch begins, then compare the KL with the limit."""
        if signal.reuse_index == 1:
            self.factor = self.next_factor
        self.next_factor = self._after(signal.kl)
        # What is not a number, as of ratios that overflow, is within no limit.
        fired = signal.reuse_index > 1 and not signal.kl <= self.stop
        return Verdict(
            apply=not fired, stop=fired, reason="kl" if fired else "", statistics={"kl": signal.kl},
            rate_factor=self.factor,
        )  # fmt: skip

    def discarded(self) -> None:
        """The guard kept a gradient away that is not finite: as far beyond the target as can be."""
        self.next_factor = self._after(math.inf)

    def state_dict(self) -> dict[str, Any]:
        """Factor on the rate of this batch, and of the next as its last gradient has it so far."""
        return {"factor": self.factor, "next_factor": self.next_factor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both."""
        self.factor, self.next_factor = state["factor"], state["next_factor"]

    def _after(self, kl: float) -> float:
        """Factor that a batch calls for whose last gradient is at this KL."""
        if not kl <= self.config.target:
            return self.factor / self.DOWN
        if kl < self.config.target / 4:
            return min(self.config.most, self.factor * self.UP)
        return self.factor


class EssRateGate(Stateless):
    """Applies everything at a rate that shrinks with the effective sample size of the sequences' weights.

    The scheduled rate is multiplied by sqrt(min(1, ESS / B)), ESS / B = (sum w)^2 / (B sum w^2), with w the product of
    a sequence's ratios; the root is the rule for AdamW. Source: VCPO (arXiv 2602.17616), step-size scaling, with the
    authors' defaults (root, base ratio 1). Its second half, the optimal baseline, is not part of this. The paper's
    weights are against the sampling policy, ours against the first pass over the batch: at k = 1 the factor is 1.
    """

    def judge(self, signal: StepSignal) -> Verdict:
        """Never stops."""
        ess = signal.sequence_ess
        factor = math.sqrt(min(1.0, ess)) if ess > 0 else 0.0  # also where it is not a number
        return Verdict(apply=True, stop=False, statistics={"sequence_ess": ess}, rate_factor=factor)
