"""What reuse is worth: cost to reach the single-use level, with intervals over seeds; onset of degradation.

Pure functions on curves. E evaluations of a run, S seeds: `scores[S][E]` are success rates 0..1 and `costs[S][E]` the
cumulative cost (rollouts, seconds ...) at each evaluation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Curves = Sequence[Sequence[float]]
"""One curve a seed, [S][E]."""

LAST = 5
"""Evaluations at the end of a run whose mean is its converged performance (paper, caption of Table 1)."""
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Student's t, two-sided 95 %, 1 to 30 degrees of freedom."""


@dataclass(frozen=True)
class Speedup:
    """How many times cheaper an arm reaches the reference; None stands for "not reached"."""

    value: float | None
    """Cost of the reference arm over cost of this arm, both at the reference level; None: one of them does not reach
    it, or the reference begins there, so that there is nothing to reach."""
    low: float | None
    """Lower end of the bootstrap interval; None: resamples that never reach the level lie below it."""
    high: float | None
    """Upper end."""
    reached: float
    """Share of bootstrap resamples in which the arm reaches the reference, 0..1."""


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences with its 95 % interval (Student's t)."""

    mean: float
    low: float
    high: float
    count: int


def converged(scores: Sequence[float], *, last: int = LAST) -> float:
    """Mean of the last five evaluations.

    >>> converged([0.0, 0.5, 0.6, 0.6, 0.6, 0.7])
    0.6
    """
    return float(np.mean(np.asarray(scores, dtype=np.float64)[-last:]))


def cost_to_reach(costs: Sequence[float], scores: Sequence[float], level: float) -> float | None:
    """Cost at which a curve first reaches a level, on straight lines between evaluations; None where it never does.

    >>> cost_to_reach([0, 100, 200], [0.2, 0.4, 0.8], 0.6)
    150.0
    """
    for i, score in enumerate(scores):
        if score >= level:
            if i == 0:
                return float(costs[0])
            share = (level - scores[i - 1]) / (score - scores[i - 1])
            return float(costs[i - 1] + share * (costs[i] - costs[i - 1]))
    return None


def speedup(
    reference: tuple[Curves, Curves],
    arm: tuple[Curves, Curves],
    *,
    target: float | None = None,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Speedup:
    """Table 1: cost of the reference arm over cost of an arm to reach the reference arm's converged performance.

    Curves are averaged over seeds before the level is looked for. The interval resamples seeds, the same for both arms
    (runs are paired by seed), and takes the reference level anew in each resample.

    Args:
        reference: (costs, scores) of the single-use arm, [S][E] each.
        arm: (costs, scores) of the arm, the same seeds in the same order.
        target: what is to be reached instead.
        level: of the interval.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    pairs = [tuple(np.asarray(x, dtype=np.float64) for x in curves) for curves in (reference, arm)]
    num_seeds = len(pairs[0][1])
    if len(pairs[1][1]) != num_seeds:
        raise ValueError(f"both arms need the same seeds, got {num_seeds} and {len(pairs[1][1])} runs.")
    value = _ratio(pairs, np.arange(num_seeds), target)
    chosen = np.random.default_rng(seed).integers(num_seeds, size=(num_resamples, num_seeds))
    # The order in which seeds were drawn does not matter, so five seeds have only 126 resamples.
    different, drawn = np.unique(np.sort(chosen, axis=1), axis=0, return_inverse=True)
    ratios = [_ratio(pairs, seeds, target) for seeds in different]
    draws = [ratios[place] for place in drawn.ravel()]
    sped = np.sort([draw or 0.0 for draw in draws])  # a resample that never arrives is infinitely slow
    low, high = np.quantile(sped, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    reached = float(np.mean([draw is not None for draw in draws]))
    return Speedup(value, float(low) or None, float(high) or None, reached)


def _ratio(
    pairs: list[tuple[NDArray[np.float64], ...]], chosen: NDArray[np.int64], target: float | None
) -> float | None:
    (reference_costs, reference_scores), (costs, scores) = ([x[chosen].mean(axis=0) for x in pair] for pair in pairs)
    if target is None:
        target = converged(reference_scores.tolist())
    base = cost_to_reach(reference_costs.tolist(), reference_scores.tolist(), target)
    own = cost_to_reach(costs.tolist(), scores.tolist(), target)
    return None if own is None or not base else base / max(own, 1e-12)


def step_time(batches: float, gradients: float, *, rollout_share: float = 0.8) -> float:
    """Training time in units of one single-use step, where rollouts take a given share of such a step.

    A single-use step is one rollout batch (`rollout_share` of it) and one gradient (the rest), so B batches with U
    gradients, discarded ones included, take `rollout_share * B + (1 - rollout_share) * U`. The paper's setting is a
    share of over 80 % (section 1).

    >>> step_time(10, 40, rollout_share=0.75)
    17.5
    """
    return rollout_share * batches + (1 - rollout_share) * gradients


def degradation_onset(scores: Sequence[float], *, drop: float = 0.10, window: int = 5, lasting: int = 3) -> int | None:
    """Index of the evaluation at which performance breaks down, or None.

    The first evaluation at least `drop` below the best mean of `window` consecutive earlier evaluations, where it and
    the following ones, `lasting` in all, stay that low.

    >>> degradation_onset([0.5] * 5 + [0.45, 0.38, 0.3, 0.2])
    6
    >>> degradation_onset([0.5] * 5 + [0.3, 0.5, 0.3])
    """
    best = -np.inf
    for i in range(window, len(scores) - lasting + 1):
        best = max(best, float(np.mean(scores[i - window : i])))
        if all(score <= best - drop for score in scores[i : i + lasting]):
            return i
    return None


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> Difference:
    """Mean of `values - reference` over seeds with a 95 % t interval.

    >>> paired_difference([0.6, 0.7], [0.5, 0.5]).mean
    0.15
    """
    difference = np.asarray(values, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    count, mean = len(difference), float(difference.mean())
    if count < 2:
        return Difference(mean, -np.inf, np.inf, count)
    quantile = _T95[count - 2] if count - 2 < len(_T95) else 1.96
    half = quantile * float(difference.std(ddof=1)) / count**0.5
    return Difference(round(mean, 12), mean - half, mean + half, count)


def format_speedup(value: Speedup) -> str:
    """`2.10x [1.80, 2.45]`, or plainly that it was not reached."""
    if value.value is None:
        return "not reached" if not value.reached else f"not reached ({value.reached:.0%} of resamples do)"
    low = f"{value.low:.2f}" if value.low else "not reached"
    high = f"{value.high:.2f}" if value.high else "not reached"
    return f"{value.value:.2f}x [{low}, {high}]"


def format_difference(value: Difference) -> str:
    """`+1.2 [-0.4, 2.8]` points."""
    if not np.isfinite(value.low):
        return f"{100 * value.mean:+.1f} (one seed)"
    return f"{100 * value.mean:+.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"
