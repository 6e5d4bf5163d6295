"""What announces that success falls soon? Moments of runs, what a monitor said there, and how well it tells. Pure.

A moment is an evaluation. It is followed by a fall where one of the evaluations of the next batches lies a given number
of points below it; where there is hardly anything to lose, it says nothing. AUC is the probability that a monitor is
higher at a moment before a fall than at one before none, ties counted half: 0.5 says nothing, below 0.5 a low value
announces.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DROP = 0.05
"""Fall of held-out success that counts, 0..1."""
WITHIN = 10
"""Rollout batches in which it is to happen."""


@dataclass(frozen=True)
class Auc:
    """An AUC with its 95 % interval, a bootstrap over runs; nan where no pair of moments can be compared."""

    value: float
    low: float
    high: float


def falls(
    steps: Sequence[float], scores: Sequence[float], *, drop: float = DROP, within: float = WITHIN
) -> list[bool | None]:
    """Whether each evaluation is followed by a fall; None where no later one is near, or success below twice the fall.

    >>> falls([0, 4, 8, 10, 20], [0.5, 0.6, 0.54, 0.09, 0.0])
    [True, True, True, None, None]

    Args:
        steps: rollout batches at each evaluation, [E].
        scores: success, 0..1, [E].
        drop: what counts as a fall.
        within: batches in which it is to happen.
    """
    found: list[bool | None] = []
    for i, (step, score) in enumerate(zip(steps, scores, strict=True)):
        later = [scores[j] for j in range(i + 1, len(steps)) if steps[j] <= step + within]
        is_known = later and score >= 2 * drop
        found.append(min(later) <= score - drop + 1e-9 if is_known else None)
    return found


def auc(runs: Sequence[tuple[Sequence[bool], Sequence[float]]], *, same_run: bool, num_resamples: int = 2000) -> Auc:
    """How well a monitor tells moments before a fall from others.

    Args:
        runs: of each run, whether a fall follows and the monitor's value, [M] moments each.
        same_run: compare only moments of the same run (does it tell *when*?), not also those of different ones (which
            tells *where* too: runs that fall often may differ in it throughout).
        num_resamples: of the bootstrap; runs, not moments, are drawn.
    """
    before = [np.array([v for fell, v in zip(*run, strict=True) if fell], dtype=np.float64) for run in runs]
    others = [np.array([v for fell, v in zip(*run, strict=True) if not fell], dtype=np.float64) for run in runs]
    wins, pairs = np.zeros((len(runs), len(runs))), np.zeros((len(runs), len(runs)))
    for i, high in enumerate(before):
        for j, low in enumerate(others):
            if i == j or not same_run:
                gap = high[:, None] - low[None, :]
                wins[i, j], pairs[i, j] = (gap > 0).sum() + 0.5 * (gap == 0).sum(), gap.size
    if not pairs.any():
        return Auc(np.nan, np.nan, np.nan)
    drawn = np.random.default_rng(0).multinomial(len(runs), np.full(len(runs), 1 / len(runs)), size=num_resamples)
    low, high = np.nanquantile(_ratio(wins, pairs, drawn.astype(np.float64), same_run), [0.025, 0.975])
    return Auc(float(_ratio(wins, pairs, np.ones((1, len(runs))), same_run)[0]), float(low), float(high))


def _ratio(
    wins: NDArray[np.float64], pairs: NDArray[np.float64], weights: NDArray[np.float64], same_run: bool
) -> NDArray[np.float64]:
    """Share of pairs won for every weighting of runs, [R]; nan without a pair."""
    if same_run:  # a run that was drawn twice counts twice
        won, count = (weights @ np.diagonal(matrix) for matrix in (wins, pairs))
    else:
        won, count = (((weights @ matrix) * weights).sum(axis=1) for matrix in (wins, pairs))
    return np.divide(won, count, out=np.full(len(weights), np.nan), where=count > 0)
