"""Rivals of DGG behind the same door: fixed and random reuse, thresholds, clipped and skipped spikes.

Each gate stands with its table of the config.
"""

import math
from typing import Any, Literal

import numpy as np
from pydantic import Field

from agentrl.learner.gates.verdict import Gate, GateConfig, Stateless, StepSignal, Verdict


class FixedGate(Stateless):
    """Applies everything and stops after `k` uses; 1 is single use, None never stops (naive reuse)."""

    def __init__(self, k: int | None) -> None:
        self.k = k

    def judge(self, signal: StepSignal) -> Verdict:
        """Stop at the k-th use."""
        stop = self.k is not None and signal.reuse_index >= self.k
        return Verdict(apply=True, stop=stop, is_judgement=not stop)


class RandomGate:
    """Discards and stops with a given probability at every reuse step: what any gate must beat."""

    def __init__(self, stop_prob: float, *, seed: int) -> None:
        self.stop_prob, self.seed, self.count = stop_prob, seed, 0

    def judge(self, signal: StepSignal) -> Verdict:
        """One draw per reuse step, keyed by (seed, number of draws so far)."""
        if signal.reuse_index == 1:
            return Verdict(apply=True, stop=False)
        draw = float(np.random.default_rng((self.seed, self.count)).random())
        self.count += 1
        fired = draw < self.stop_prob
        return Verdict(apply=not fired, stop=fired, reason="random" if fired else "", statistics={"draw": draw})

    def state_dict(self) -> dict[str, Any]:
        """Number of draws."""
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the number of draws."""
        self.count = int(state["count"])


class ThresholdGate(Stateless):
    """Discards and stops at k > 1 once one number of the signal crosses a limit.

    kl: approximate KL above 1.5 * target (Spinning Up's PPO; decided before the step, not after). ess: ratio effective
    sample size below the limit. clip_fraction: share of clipped tokens above it. m2: mean squared log-ratio above it
    (M2PO's quantity, arXiv 2510.01161, as a stop rule).
    """

    def __init__(self, quantity: str, threshold: float) -> None:
        self.quantity, self.threshold = quantity, threshold

    def judge(self, signal: StepSignal) -> Verdict:
        """Compare one field of the signal."""
        value = float(getattr(signal, self.quantity))
        # What is not a number, as of ratios that overflow, is within no limit.
        within = value >= self.threshold if self.quantity == "ess" else value <= self.threshold
        fired = not within and signal.reuse_index > 1
        return Verdict(
            apply=not fired, stop=fired, reason=self.quantity if fired else "", statistics={self.quantity: value}
        )


class ZClipGate:
    """Scales spikes of the total gradient norm down instead of discarding them.

    Exponential mean and variance of the norm; z > threshold clips the norm to mean + std * threshold^2 / z and feeds
    the clipped value back. Source: ZClip (arXiv 2504.02507), section 3, with its defaults (0.97, 2.5, 25 steps).
    """

    def __init__(self, threshold: float, *, decay: float = 0.97, warmup: int = 25) -> None:
        self.threshold, self.decay, self.warmup = threshold, decay, warmup
        self.seen: list[float] = []
        self.mean = self.variance = 0.0

    def judge(self, signal: StepSignal) -> Verdict:
        """Apply always, scaled where the norm is an outlier."""
        norm = signal.grad_norm
        if len(self.seen) < self.warmup:
            self.seen.append(norm)
            self.mean, self.variance = float(np.mean(self.seen)), float(np.var(self.seen))
            return Verdict(apply=True, stop=False)
        std = math.sqrt(self.variance) + 1e-6
        z_score = (norm - self.mean) / std
        target = self.mean + std * self.threshold**2 / z_score if z_score > self.threshold else norm
        self.mean = self.decay * self.mean + (1 - self.decay) * target
        self.variance = self.decay * self.variance + (1 - self.decay) * (target - self.mean) ** 2
        scale = target / norm if z_score > self.threshold else 1.0
        return Verdict(True, False, scale, "scaled" if scale < 1 else "", {"z_score": z_score})

    def state_dict(self) -> dict[str, Any]:
        """Running moments."""
        return {"seen": self.seen, "mean": self.mean, "variance": self.variance}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the running moments."""
        self.seen, self.mean, self.variance = list(state["seen"]), state["mean"], state["variance"]


class NormSkipGate(Stateless):
    """Skips every gradient whose total norm is above a fixed limit, at any k.

    The batch ends with it: the same weights on the same batch would give the same gradient again. The plain rule that
    stands beside clipping in training frameworks (`grad_ignore_norm_` of PPO x Family, `skip_grad` of 4M), without
    statistics of any kind.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def judge(self, signal: StepSignal) -> Verdict:
        """Compare the norm before clipping."""
        fired = signal.grad_norm > self.threshold
        return Verdict(not fired, fired, reason="norm" if fired else "", statistics={"norm": signal.grad_norm})


class UngatedConfig(GateConfig):
    """Naive reuse: every gradient is applied, every batch used `learner.max_reuse` times."""

    kind: Literal["none"] = "none"

    def make(self, *, seed: int) -> Gate:
        """A gate that never stops."""
        return FixedGate(None)


class FixedConfig(GateConfig):
    """A fixed number of uses; 1 is single use."""

    kind: Literal["fixed"] = "fixed"
    k: int = Field(1, ge=1)
    """Uses of each batch."""

    def make(self, *, seed: int) -> Gate:
        """A gate that stops after `k`."""
        return FixedGate(self.k)

    def most_uses(self, max_reuse: int) -> int:
        """At most `k`."""
        return min(max_reuse, self.k)


class RandomConfig(GateConfig):
    """The control: closes at random."""

    kind: Literal["random"] = "random"
    stop_prob: float = Field(0.2, ge=0, le=1)
    """Probability of stopping at each reuse step."""

    def make(self, *, seed: int) -> Gate:
        """A gate with its own stream of random numbers."""
        return RandomGate(self.stop_prob, seed=seed)


class KlStopConfig(GateConfig):
    """Stops where the KL to the first pass is too large."""

    kind: Literal["kl"] = "kl"
    threshold: float = 0.015
    """Mean KL per token above which a gradient is discarded; 1.5 times the target of Spinning Up's PPO."""

    def make(self, *, seed: int) -> Gate:
        """A threshold on the KL."""
        return ThresholdGate("kl", self.threshold)


class EssStopConfig(GateConfig):
    """Stops where the effective sample size of the ratios is too small."""

    kind: Literal["ess"] = "ess"
    threshold: float = 0.9
    """Effective share of the tokens below which a gradient is discarded."""

    def make(self, *, seed: int) -> Gate:
        """A threshold on the effective sample size."""
        return ThresholdGate("ess", self.threshold)


class ClipFractionConfig(GateConfig):
    """Stops where too many tokens are clipped."""

    kind: Literal["clip_fraction"] = "clip_fraction"
    threshold: float = 0.2
    """Share of clipped tokens above which a gradient is discarded."""

    def make(self, *, seed: int) -> Gate:
        """A threshold on the clip fraction."""
        return ThresholdGate("clip_fraction", self.threshold)


class M2StopConfig(GateConfig):
    """Stops where the mean squared log-ratio is too large."""

    kind: Literal["m2"] = "m2"
    threshold: float = 0.04
    """Mean squared log-ratio above which a gradient is discarded; M2PO's limit."""

    def make(self, *, seed: int) -> Gate:
        """A threshold on M2PO's quantity."""
        return ThresholdGate("m2", self.threshold)


class ZClipConfig(GateConfig):
    """Scales outliers of the gradient norm down."""

    kind: Literal["zclip"] = "zclip"
    threshold: float = 2.5
    """Z-score above which a norm is an outlier."""

    def make(self, *, seed: int) -> Gate:
        """ZClip with the paper's decay and warm-up."""
        return ZClipGate(self.threshold)


class NormSkipConfig(GateConfig):
    """Skips gradients of large norm."""

    kind: Literal["norm_skip"] = "norm_skip"
    threshold: float
    """Gradient norm above which a step is skipped. No default: what is large depends on model and loss; see
    learner/grad_norm of an earlier run."""

    def make(self, *, seed: int) -> Gate:
        """A fixed limit on the norm."""
        return NormSkipGate(self.threshold)
