"""Differences between two policies on the same tasks. Pure.

A task's value is its share of successful samples; the difference is B minus A, so positive means that B is better.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from agentrl.analysis.sampling import bootstrap_interval
from agentrl.common.intervals import wilson_interval


@dataclass(frozen=True)
class PairedDifference:
    """B minus A over the same tasks."""

    first: float
    """Mean of A, 0..1."""
    second: float
    """Mean of B, 0..1."""
    low: float
    """Lower end of the 95 % interval of the difference."""
    high: float
    """Upper end."""
    better: int
    """Tasks in which B does better than A."""
    worse: int
    """Tasks in which it does worse."""
    count: int
    """Tasks."""

    @property
    def difference(self) -> float:
        """B minus A."""
        return self.second - self.first

    @property
    def p_value(self) -> float:
        """Of the exact sign test over tasks that differ (McNemar's test where tasks are played once)."""
        return sign_test(self.better, self.worse)


def paired_difference(first: Sequence[float], second: Sequence[float]) -> PairedDifference:
    """The difference of two policies.

    Where all values are 0 or 1 (one sample a task) the interval is Newcombe's for paired proportions, else a bootstrap
    over tasks.

    Args:
        first: values of A, one a task.
        second: values of B, of the same tasks in the same order.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"both need the same tasks, at least one; got {len(first)} and {len(second)}.")
    pairs = list(zip(first, second, strict=True))
    if all(value in (0.0, 1.0) for pair in pairs for value in pair):
        table = [sum(pair == cell for pair in pairs) for cell in ((1, 1), (0, 1), (1, 0), (0, 0))]
        low, high = newcombe_interval(*table)
    else:
        estimate = bootstrap_interval([b - a for a, b in pairs])
        low, high = estimate.low, estimate.high
    count = len(pairs)
    return PairedDifference(
        sum(first) / count, sum(second) / count, low, high,
        sum(b > a for a, b in pairs), sum(b < a for a, b in pairs), count,
    )  # fmt: skip


def newcombe_interval(both: int, only_second: int, only_first: int, neither: int) -> tuple[float, float]:
    """95 % interval of the difference (second minus first) of two proportions on the same subjects.

    Method 10 of R. G. Newcombe, Statistics in Medicine 17 (1998) 2635-2650: Wilson's intervals of both, combined by
    their correlation. Unlike a bootstrap it has a width where no subject differs.

    Args:
        both: subjects in which both succeed.
        only_second: in which only the second does.
        only_first: in which only the first does.
        neither: in which none does.
    """
    count = both + only_second + only_first + neither
    second, first = both + only_second, both + only_first
    p2, p1 = second / count, first / count
    (low2, high2), (low1, high1) = wilson_interval(second, count), wilson_interval(first, count)
    product = second * (count - second) * first * (count - first)
    cross = float(both * neither - only_second * only_first)
    cross = max(cross - count / 2, 0.0) if cross > 0 else cross
    phi = cross / math.sqrt(product) if product else 0.0
    below = (p2 - low2) ** 2 - 2 * phi * (p2 - low2) * (high1 - p1) + (high1 - p1) ** 2
    above = (high2 - p2) ** 2 - 2 * phi * (high2 - p2) * (p1 - low1) + (p1 - low1) ** 2
    difference = p2 - p1
    return difference - math.sqrt(max(below, 0.0)), difference + math.sqrt(max(above, 0.0))


def sign_test(better: int, worse: int) -> float:
    """Two-sided exact p-value that `better` and `worse` come from a fair coin.

    >>> sign_test(7, 1)
    0.0703125
    """
    trials, extreme = better + worse, min(better, worse)
    if trials == 0:
        return 1.0
    return float(min(1.0, 2 * sum(math.comb(trials, k) for k in range(extreme + 1)) / 2**trials))
