"""Gates decide, after backward and before the optimizer, what becomes of a gradient and of its batch.

`judge(signal) -> Verdict`. A gate sees numbers only: it is pure, has a state to save, and every process that feeds it
the same signals takes the same branch. DGG is Algorithm 1 and appendix G.2 of the paper; its rivals stand behind the
same door.
"""

import math
from collections import deque
from statistics import fmean
from typing import Any, Protocol

import numpy as np

from agentrl.common.plugins import call_own
from agentrl.config.schema import GateConfig
from agentrl.errors import RunError, UserError
from agentrl.learner.rate_gates import EssRateGate, KlRateGate
from agentrl.types import StepSignal, Verdict

MAX_NON_FINITE = 3
"""Discarded non-finite energies in a row that stop the run."""


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


class ZScoreGate:
    """Dynamic Gradient Gating: a Z-test on the increments of a gradient energy.

    g_t is the energy, dg_t = g_t - g_{t-1}, z_t = (dg_t - mean) / (std + epsilon) over the last W accepted increments,
    the current one excluded. Where the window is full and k > 1, z_t > tau discards the gradient and ends reuse of the
    batch. Where the paper is silent, options decide (see `GateConfig`). With `signal_name = "grad_norm"` the same test
    runs on the squared total gradient norm: the ablation of the head.
    """

    def __init__(self, config: GateConfig, *, signal_name: str = "head_energy") -> None:
        if config.until_full == "single" and config.window_scope != "all":
            raise UserError(
                'gate.until_full = "single" never fills a window that only increments of reuse enter '
                f'(gate.window_scope = "{config.window_scope}"), so nothing would ever be reused. Use '
                'gate.until_full = "reuse", or gate.window_scope = "all".'
            )
        self.config, self.signal_name = config, signal_name
        self.window: deque[float] = deque(maxlen=config.window)
        self.windows: dict[int, deque[float]] = {}
        """By k, where each has its own."""
        self.previous: float | None = None

    def judge(self, signal: StepSignal) -> Verdict:
        """Algorithm 1, lines 5 to 11."""
        energy = self._energy(signal)
        increment = None if self.previous is None else energy - self.previous
        statistics = {"energy": energy}
        surge = False
        if increment is not None:
            statistics["increment"] = increment
            window = self._window(signal.reuse_index)
            if len(window) == window.maxlen:
                mean, std = self._window_statistics(window)
                z_score = (increment - mean) / (std + self.config.epsilon) if std + self.config.epsilon else math.inf
                statistics |= {"z_score": z_score, "window_mean": mean, "window_std": std}
                surge = signal.reuse_index > 1 and z_score > self.config.tau
        verdict = self._verdict(surge, statistics)
        if verdict.apply or self.config.predecessor == "observed":
            self.previous = energy
        if verdict.apply and increment is not None and (self.config.window_scope == "all" or signal.reuse_index > 1):
            self._window(signal.reuse_index).append(increment)
        return verdict

    def state_dict(self) -> dict[str, Any]:
        """Window (or windows by k) and last energy."""
        state: dict[str, Any] = {"window": list(self.window), "previous": self.previous}
        if self.config.window_scope == "per_k":
            state["windows"] = {str(k): list(window) for k, window in self.windows.items()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore window and last energy."""
        self.window = deque(state["window"], maxlen=self.config.window)
        self.windows = {int(k): deque(w, maxlen=self.config.window) for k, w in state.get("windows", {}).items()}
        self.previous = state["previous"]

    def _window(self, reuse_index: int) -> deque[float]:
        """The increments with which one at this k is compared."""
        if self.config.window_scope != "per_k":
            return self.window
        return self.windows.setdefault(reuse_index, deque(maxlen=self.config.window))

    def _energy(self, signal: StepSignal) -> float:
        return signal.head_energy if self.signal_name == "head_energy" else signal.grad_norm**2

    def _window_statistics(self, window: deque[float]) -> tuple[float, float]:
        values = np.array(window, dtype=np.float64)
        return fmean(window), float(values.std(ddof=self.config.ddof))

    def _verdict(self, surge: bool, statistics: dict[str, float]) -> Verdict:
        if not surge:
            single = self.config.until_full == "single" and len(self.window) < self.config.window
            return Verdict(apply=True, stop=single, reason="filling" if single else "", statistics=statistics)
        return Verdict(
            apply=self.config.action == "apply_stop",
            stop=self.config.action != "discard_continue",
            reason="surge",
            statistics=statistics,
        )


class FixedGate:
    """Applies everything and stops after `k` uses; 1 is single use, None never stops (naive reuse)."""

    def __init__(self, k: int | None) -> None:
        self.k = k

    def judge(self, signal: StepSignal) -> Verdict:
        """Stop at the k-th use."""
        return Verdict(apply=True, stop=self.k is not None and signal.reuse_index >= self.k)

    def state_dict(self) -> dict[str, Any]:
        """Nothing to save."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


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


class ThresholdGate:
    """Discards and stops at k > 1 once one number of the signal crosses a limit.

    kl: approximate KL above 1.5 * target (Spinning Up's PPO; decided before the step, not after). ess: ratio effective
    sample size below the limit. clip_fraction: share of clipped tokens above it. m2: mean squared log-ratio above it
    (M2PO's quantity, arXiv 2510.01161, as a stop rule).
    """

    LIMITS = {"kl": 0.015, "ess": 0.9, "clip_fraction": 0.2, "m2": 0.04}  # noqa: RUF012

    def __init__(self, quantity: str, threshold: float | None) -> None:
        self.quantity = quantity
        self.threshold = self.LIMITS[quantity] if threshold is None else threshold

    def judge(self, signal: StepSignal) -> Verdict:
        """Compare one field of the signal."""
        value = float(getattr(signal, self.quantity))
        # What is not a number, as of ratios that overflow, is within no limit.
        within = value >= self.threshold if self.quantity == "ess" else value <= self.threshold
        fired = not within and signal.reuse_index > 1
        return Verdict(
            apply=not fired, stop=fired, reason=self.quantity if fired else "", statistics={self.quantity: value}
        )

    def state_dict(self) -> dict[str, Any]:
        """Nothing to save."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class ZClipGate:
    """Scales spikes of the total gradient norm down instead of discarding them.

    Exponential mean and variance of the norm; z > threshold clips the norm to mean + std * threshold^2 / z and feeds
    the clipped value back. Source: ZClip (arXiv 2504.02507), section 3, with its defaults (0.97, 2.5, 25 steps).
    """

    def __init__(self, threshold: float | None, *, decay: float = 0.97, warmup: int = 25) -> None:
        self.threshold = 2.5 if threshold is None else threshold
        self.decay, self.warmup = decay, warmup
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


class NormSkipGate:
    """Skips every gradient whose total norm is above a fixed limit, at any k.

    The batch ends with it: the same weights on the same batch would give the same gradient again. The plain rule that
    stands beside clipping in training frameworks (`grad_ignore_norm_` of PPO x Family, `skip_grad` of 4M), without
    statistics of any kind.

    Raises:
        UserError: no limit; what is a large norm depends on model and loss, so there is no value of its own.
    """

    def __init__(self, threshold: float | None) -> None:
        if threshold is None:
            raise UserError(
                'gate.kind = "norm_skip" needs gate.threshold, the gradient norm above which a step is skipped; it has '
                "no default. Look at learner/grad_norm of an earlier run."
            )
        self.threshold = threshold

    def judge(self, signal: StepSignal) -> Verdict:
        """Compare the norm before clipping."""
        fired = signal.grad_norm > self.threshold
        return Verdict(not fired, fired, reason="norm" if fired else "", statistics={"norm": signal.grad_norm})

    def state_dict(self) -> dict[str, Any]:
        """Nothing to save."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


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
        if isinstance(self.gate, KlRateGate):
            self.gate.discarded()
        if self.in_a_row >= MAX_NON_FINITE:
            raise RunError(
                f"{MAX_NON_FINITE} gradients in a row were not finite (loss {signal.loss}, head energy "
                f"{signal.head_energy}). The last checkpoint is good; resume from it with a lower learner.lr."
            )
        return Verdict(apply=False, stop=True, reason="non_finite", statistics={"energy": signal.head_energy})

    def state_dict(self) -> dict[str, Any]:
        """State of the gate inside, and the count."""
        return {"in_a_row": self.in_a_row, "gate": self.gate.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both."""
        self.in_a_row = int(state["in_a_row"])
        self.gate.load_state_dict(state["gate"])


def make_gate(config: GateConfig, *, seed: int = 0) -> Gate:
    """The gate that a config names, behind the guard against non-finite gradients."""
    kind = config.kind
    gate: Gate
    if ":" in kind:
        gate = _own_gate(kind, config.options)
    elif kind == "dgg":
        gate = ZScoreGate(config)
    elif kind == "total_norm_z":
        gate = ZScoreGate(config, signal_name="grad_norm")
    elif kind == "random":
        gate = RandomGate(config.stop_prob, seed=seed)
    elif kind == "zclip":
        gate = ZClipGate(config.threshold)
    elif kind == "kl_rate":
        gate = KlRateGate(config.kl_rate, stop=config.threshold)
    elif kind == "ess_rate":
        gate = EssRateGate()
    elif kind == "norm_skip":
        gate = NormSkipGate(config.threshold)
    elif kind in ThresholdGate.LIMITS:
        gate = ThresholdGate(kind, config.threshold)
    else:
        gate = FixedGate(config.k if kind == "fixed" else None)
    return FiniteGuard(gate)


def _own_gate(path: str, options: dict[str, Any]) -> Gate:
    """A gate of the user's, with everything that the protocol asks for."""
    gate: Gate = call_own(path, "gate.kind", **options)
    missing = [name for name in ("judge", "state_dict", "load_state_dict") if not callable(getattr(gate, name, None))]
    if missing:
        raise UserError(f"gate.kind: {path} makes a {type(gate).__name__} without {missing[0]}; see agentrl.Gate.")
    return gate
