"""Dynamic Gradient Gating: Algorithm 1 and appendix G.2 of the paper, and its ablation on the whole gradient."""

import math
from collections import deque
from statistics import fmean
from typing import Any, Literal

import numpy as np
from pydantic import Field

from agentrl.errors import UserError
from agentrl.learner.gates.verdict import Gate, GateConfig, StepSignal, Verdict


class ZScoreConfig(GateConfig):
    """What a Z-test on increments of an energy needs."""

    tau: float = 0.1
    """Z-score above which a step is discarded."""
    window: int = Field(20, ge=2)
    """Number W of past increments in the statistics."""
    epsilon: float = Field(1e-8, ge=0)
    """Added to the standard deviation."""
    ddof: Literal[0, 1] = 1
    """1 sample, 0 population standard deviation."""
    predecessor: Literal["observed", "accepted"] = "observed"
    """Which energy precedes an increment after a discard: the last computed one or the last applied one."""
    window_scope: Literal["all", "reuse", "per_k"] = "all"
    """What enters the window: all increments, none at k = 1, or those of the same k only (a window for every k)."""
    until_full: Literal["reuse", "single"] = "reuse"
    """Before the window is full: reuse freely (the paper) or use every batch once."""
    action: Literal["discard_stop", "apply_stop", "discard_continue"] = "discard_stop"
    """What a surge triggers; the latter two are ablations."""

    def energy_of(self, signal: StepSignal) -> float:
        """The energy that is tested."""
        raise NotImplementedError

    def make(self, *, seed: int) -> Gate:
        """The gate with an empty window."""
        return ZScoreGate(self)


class DggConfig(ZScoreConfig):
    """Dynamic Gradient Gating."""

    kind: Literal["dgg"] = "dgg"
    energy: Literal["head", "tied"] = "head"
    """With tied embeddings: energy of the head's own gradient or of the whole tied gradient."""

    def energy_of(self, signal: StepSignal) -> float:
        """Of the lm_head's gradient."""
        tied = signal.tied_energy if self.energy == "tied" else None
        return signal.head_energy if tied is None else tied


class TotalNormConfig(ZScoreConfig):
    """The same test on the squared norm of the whole gradient: the ablation of the head."""

    kind: Literal["total_norm_z"] = "total_norm_z"

    def energy_of(self, signal: StepSignal) -> float:
        """Of the whole gradient."""
        return signal.grad_norm**2


class ZScoreGate:
    """Dynamic Gradient Gating: a Z-test on the increments of a gradient energy.

    g_t is the energy, dg_t = g_t - g_{t-1}, z_t = (dg_t - mean) / (std + epsilon) over the last W accepted increments,
    the current one excluded. Where the window is full and k > 1, z_t > tau discards the gradient and ends reuse of the
    batch. Where the paper is silent, keys of the config decide.

    Args:
        config: threshold, window, and what the paper leaves open; names the energy.
    """

    def __init__(self, config: ZScoreConfig) -> None:
        if config.until_full == "single" and config.window_scope != "all":
            raise UserError(
                'gate.until_full = "single" never fills a window that only increments of reuse enter '
                f'(gate.window_scope = "{config.window_scope}"), so nothing would ever be reused. Use '
                'gate.until_full = "reuse", or gate.window_scope = "all".'
            )
        self.config = config
        self.window: deque[float] = deque(maxlen=config.window)
        self.windows: dict[int, deque[float]] = {}
        """By k, where each has its own."""
        self.previous: float | None = None

    def judge(self, signal: StepSignal) -> Verdict:
        """Algorithm 1, lines 5 to 11."""
        energy = self.config.energy_of(signal)
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

    def _window_statistics(self, window: deque[float]) -> tuple[float, float]:
        values = np.array(window, dtype=np.float64)
        return fmean(window), float(values.std(ddof=self.config.ddof))

    def _verdict(self, surge: bool, statistics: dict[str, float]) -> Verdict:
        if not surge:
            single = self.config.until_full == "single" and len(self.window) < self.config.window
            reason = "filling" if single else ""
            return Verdict(True, single, reason=reason, statistics=statistics, is_judgement=not single)
        return Verdict(
            apply=self.config.action == "apply_stop",
            stop=self.config.action != "discard_continue",
            reason="surge",
            statistics=statistics,
        )
