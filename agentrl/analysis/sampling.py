"""Accuracy from n samples per problem: mean@k, pass@k, majority@k, with bootstrap intervals over problems.

A problem's samples are one row: `correct[n]` (booleans) and, for votes, `answers[n]` (the extracted answer in one
spelling, None where there is none). Benchmarks have problems with equally many samples or not; every function takes
one problem or returns one value per problem, and the benchmark's number is the mean over problems.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentrl.common.intervals import wilson_interval


@dataclass(frozen=True)
class Estimate:
    """A mean over problems and its interval.

    Attributes:
        mean: mean of the values, one per problem.
        low: lower end of the interval.
        high: upper end.
        count: number of problems.
    """

    mean: float
    low: float
    high: float
    count: int


def mean_at_k(correct: Sequence[bool]) -> float:
    """Share of correct samples of one problem; k is the number of samples.

    >>> mean_at_k([True, False, False, True])
    0.5
    """
    _require_samples(len(correct))
    return sum(map(bool, correct)) / len(correct)


def pass_at_k(correct: Sequence[bool], *, k: int) -> float:
    """Probability that at least one of k samples drawn without replacement is correct, unbiased.

    1 - C(n - c, k) / C(n, k) for c correct of n samples (Chen et al. 2021, arXiv 2107.03374, equation 1).

    >>> pass_at_k([True, False, False, False], k=2)
    0.5
    """
    n, c = len(correct), sum(map(bool, correct))
    _require_samples(n, k)
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def majority_at_k(
    answers: Sequence[Hashable | None],
    correct: Sequence[bool],
    *,
    k: int | None = None,
    num_draws: int = 1000,
    seed: int = 0,
) -> float:
    """Probability that the most frequent answer of k samples is correct.

    Samples without an answer do not vote; without any vote the result is 0. Answers tied for first place share the
    vote equally. With k below the number of samples it is the mean over `num_draws` seeded draws without replacement,
    else exact. An answer counts as correct when any sample that gave it does.

    >>> majority_at_k(["4", "4", "5", None], [True, True, False, False])
    1.0
    >>> majority_at_k(["4", "5"], [True, False])
    0.5
    """
    n = len(answers)
    if len(correct) != n:
        raise ValueError(f"answers and correct must have the same length, got {n} and {len(correct)}.")
    _require_samples(n, n if k is None else k)
    right = {answer for answer, ok in zip(answers, correct, strict=True) if ok}
    if k is None or k == n:
        return _vote(answers, right)
    random = np.random.default_rng(seed)
    draws = (random.choice(n, size=k, replace=False) for _ in range(num_draws))
    return sum(_vote([answers[i] for i in draw], right) for draw in draws) / num_draws


def _vote(answers: Sequence[Hashable | None], right: set[Hashable | None]) -> float:
    counts: dict[Hashable, int] = {}
    for answer in answers:
        if answer is not None:
            counts[answer] = counts.get(answer, 0) + 1
    most = max(counts.values(), default=0)
    first = [answer for answer, count in counts.items() if count == most]
    return sum(answer in right for answer in first) / len(first) if first else 0.0


def bootstrap_interval(
    values: Sequence[float], *, level: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> Estimate:
    """Mean of one value per problem with a percentile bootstrap interval over problems.

    Problems, not samples, are resampled: the interval says how far another set of such problems could lie.

    >>> bootstrap_interval([1.0, 1.0, 1.0])
    Estimate(mean=1.0, low=1.0, high=1.0, count=3)
    """
    data = np.asarray(values, dtype=np.float64)
    _require_samples(len(data))
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}.")
    means = _resampled_means(data, num_resamples=num_resamples, seed=seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(data.mean()), float(low), float(high), len(data))


def rate_interval(shares: Sequence[float]) -> Estimate:
    """Mean of a share of successes per problem with its 95 % interval over problems.

    A bootstrap, except where every share is 0 or 1: Wilson's interval is as good there, and has a width where all
    problems come out alike.

    >>> [round(value, 3) for value in (rate_interval([1.0] * 128).low, rate_interval([1.0] * 128).high)]
    [0.971, 1.0]
    """
    if not shares or set(shares) - {0.0, 1.0}:
        return bootstrap_interval(shares)
    low, high = wilson_interval(round(sum(shares)), len(shares))
    return Estimate(sum(shares) / len(shares), low, high, len(shares))


@dataclass(frozen=True)
class ProblemSamples:
    """The samples of one problem.

    Attributes:
        correct: whether each is, [n].
        answers: the answer of each in one spelling, None where there is none, [n].
        labels: what the problem is sorted by, e.g. `{"benchmark": "math500", "level": 5, "subject": "Algebra"}`.
    """

    correct: tuple[bool, ...]
    answers: tuple[Hashable | None, ...]
    labels: Mapping[str, object]


@dataclass(frozen=True)
class Accuracy:
    """What a set of problems comes to, from k samples each, with intervals over problems.

    Attributes:
        mean: mean@k.
        passes: pass@1, pass@2, pass@4 ... and pass@k, by their number.
        majority: majority@k; None where no sample gave an answer to vote with.
    """

    mean: Estimate
    passes: dict[int, Estimate]
    majority: Estimate | None


def accuracy_table(problems: Sequence[ProblemSamples]) -> dict[str, Accuracy]:
    """Accuracy per benchmark, and within it per level, subject and whatever else its problems are labelled with.

    Keys are `math500`, `math500, level 5`, `math500, subject Algebra` ..., and `average` of several benchmarks, which
    all weigh the same. A problem with more samples than another is counted by its first ones.
    """
    k = min(len(problem.correct) for problem in problems)
    groups: dict[tuple[str, str, object], list[ProblemSamples]] = {}
    for problem in problems:
        benchmark = str(problem.labels.get("benchmark", "all"))
        for key, value in {"": "", **problem.labels}.items():
            if key != "benchmark":
                groups.setdefault((benchmark, key, value), []).append(problem)
    table = {_name(*group): _accuracy([groups[group]], k) for group in sorted(groups, key=_order)}
    benchmarks = [members for (_, key, _), members in groups.items() if not key]
    if len(benchmarks) > 1:
        table["average"] = _accuracy(benchmarks, k)
    return table


def _name(benchmark: str, key: str, value: object) -> str:
    return f"{benchmark}, {key} {value}" if key else benchmark


def _order(group: tuple[str, str, object]) -> tuple[str, str, float, str]:
    """Benchmarks by name, each before its parts; levels by size."""
    benchmark, key, value = group
    return benchmark, key, float(value) if isinstance(value, int | float) else math.inf, str(value)


def _accuracy(strata: Sequence[Sequence[ProblemSamples]], k: int) -> Accuracy:
    sizes = [2**i for i in range(k.bit_length()) if 2**i < k] + [k]
    votes = any(answer is not None for problems in strata for p in problems for answer in p.answers[:k])
    return Accuracy(
        mean=_estimate([[mean_at_k(p.correct[:k]) for p in problems] for problems in strata]),
        passes={
            n: _estimate([[pass_at_k(p.correct[:k], k=n) for p in problems] for problems in strata]) for n in sizes
        },
        majority=_estimate([[majority_at_k(p.answers[:k], p.correct[:k]) for p in problems] for problems in strata])
        if votes
        else None,
    )


def _estimate(strata: Sequence[Sequence[float]]) -> Estimate:
    """Mean of the strata's means; their problems are resampled apart from each other."""
    if len(strata) == 1:
        return rate_interval(strata[0])
    means = [_resampled_means(np.asarray(values), num_resamples=10_000, seed=i) for i, values in enumerate(strata)]
    low, high = np.quantile(np.mean(means, axis=0), [0.025, 0.975])
    mean = float(np.mean([np.mean(values) for values in strata]))
    return Estimate(mean, float(low), float(high), sum(map(len, strata)))


def _resampled_means(data: NDArray[np.float64], *, num_resamples: int, seed: int) -> NDArray[np.float64]:
    """Means of `num_resamples` resamples with replacement, [num_resamples]; in pieces of bounded memory."""
    random = np.random.default_rng(seed)
    piece = max(1, 1_000_000 // len(data))
    sizes = [min(piece, num_resamples - done) for done in range(0, num_resamples, piece)]
    return np.concatenate([data[random.integers(len(data), size=(m, len(data)))].mean(axis=1) for m in sizes])


def _require_samples(n: int, k: int = 1) -> None:
    if n < 1 or not 1 <= k <= n:
        raise ValueError(f"k must be 1 to the number of samples, got k = {k} and {n} samples.")
