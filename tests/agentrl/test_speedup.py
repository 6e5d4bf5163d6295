"""Speedups, onsets and intervals on curves whose answers are known by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.analysis.speedup import (
    converged,
    cost_to_reach,
    degradation_onset,
    paired_difference,
    speedup,
    step_time,
)

COSTS = [0.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0, 800.0, 900.0]


def rising(reach: int, *, start: float = 0.2, end: float = 0.8) -> list[float]:
    """A straight rise to `end` at evaluation `reach`, flat from there."""
    return [start + (end - start) * min(1.0, i / reach) for i in range(10)]


def test_cost_to_reach_when_between_evaluations_then_it_lies_on_the_straight_line() -> None:
    assert cost_to_reach([0, 100, 200], [0.2, 0.4, 0.8], 0.6) == 150
    assert cost_to_reach([0, 100], [0.7, 0.8], 0.6) == 0
    assert cost_to_reach([0, 100], [0.1, 0.2], 0.6) is None


def test_speedup_when_an_arm_is_twice_as_fast_then_two_with_a_narrow_interval() -> None:
    reference, arm = [rising(4)] * 3, [rising(2)] * 3
    result = speedup(([COSTS] * 3, reference), ([COSTS] * 3, arm))
    assert result.value == pytest.approx(2.0)
    assert (result.low, result.high, result.reached) == (pytest.approx(2.0), pytest.approx(2.0), 1.0)


def test_speedup_when_never_reached_then_it_says_so() -> None:
    result = speedup(([COSTS] * 2, [rising(4)] * 2), ([COSTS] * 2, [rising(4, end=0.7)] * 2))
    assert result.value is None
    assert (result.low, result.high, result.reached) == (None, None, 0.0)


def test_speedup_when_one_seed_of_three_fails_then_the_interval_reaches_down_to_not_reached() -> None:
    arm = [rising(2, end=0.85), rising(2, end=0.85), rising(2, end=0.75)]
    result = speedup(([COSTS] * 3, [rising(4)] * 3), ([COSTS] * 3, arm))
    assert result.value is not None
    assert result.low is None
    assert 0 < result.reached < 1


def test_speedup_when_the_reference_ends_no_higher_than_it_starts_then_there_is_nothing_to_reach() -> None:
    costs, flat = [[0.0, 10.0, 20.0]], [[0.4, 0.3, 0.3]]
    assert speedup((costs, flat), (costs, [[0.4, 0.6, 0.6]])).value is None


def test_speedup_when_arm_is_the_reference_then_one() -> None:
    curves = [[0.1, 0.5, 0.6, 0.62, 0.58, 0.61, 0.6, 0.63, 0.59, 0.6], rising(5)]
    result = speedup(([COSTS] * 2, curves), ([COSTS] * 2, curves))
    assert (result.value, result.low, result.high) == (1.0, 1.0, 1.0)


def test_speedup_when_seeds_differ_in_number_then_it_refuses() -> None:
    with pytest.raises(ValueError, match="same seeds"):
        speedup(([COSTS], [rising(2)]), ([COSTS] * 2, [rising(2)] * 2))


@given(st.lists(st.floats(0, 1), min_size=5, max_size=30))
def test_any_curve_reaches_the_mean_of_its_own_end(scores: list[float]) -> None:
    cost = cost_to_reach(list(range(len(scores))), scores, min(converged(scores), max(scores[-5:])))
    assert cost is not None
    assert 0 <= cost <= len(scores) - 1


@given(st.lists(st.floats(0, 1), min_size=5, max_size=30))
def test_a_curve_that_never_falls_never_breaks_down(scores: list[float]) -> None:
    assert degradation_onset(sorted(scores)) is None


@pytest.mark.parametrize(
    ("scores", "onset"),
    [
        ([0.5] * 5 + [0.4, 0.4, 0.4], 5),
        ([0.5] * 5 + [0.4, 0.4], None),  # two evaluations are not three
        ([0.5] * 5 + [0.41, 0.41, 0.41], None),  # nine points are not ten
        ([0.5] * 5 + [0.3, 0.5, 0.3, 0.3, 0.3], 7),  # one that recovers is none
        ([0.5] * 5 + [0.9, 0.49, 0.49, 0.49], None),  # a single peak is no 5-evaluation mean
        ([0.2] * 3, None),
    ],
)
def test_degradation_onset_when_written_out_then_as_defined(scores: list[float], onset: int | None) -> None:
    assert degradation_onset(scores) == onset


def test_step_time_when_single_use_then_batches_and_discarded_gradients_count() -> None:
    assert step_time(48, 48) == pytest.approx(48)
    assert step_time(10, 40 + 2, rollout_share=0.8) == pytest.approx(8 + 8.4)


def test_paired_difference_when_three_seeds_then_students_t() -> None:
    result = paired_difference([0.5, 0.6, 0.7], [0.4, 0.4, 0.4])
    half = 4.303 * 0.1 / np.sqrt(3)
    assert (result.mean, result.low, result.high) == pytest.approx((0.2, 0.2 - half, 0.2 + half))
    assert paired_difference([0.5], [0.4]).low == -np.inf
