"""mean@k, pass@k and majority@k by hand and by counting, bootstrap intervals over problems."""

import io
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from agentrl.analysis.sampling import (
    ProblemSamples,
    accuracy_table,
    bootstrap_interval,
    majority_at_k,
    mean_at_k,
    pass_at_k,
)
from agentrl.evaluation.samples import accuracy_view

samples = st.lists(st.booleans(), min_size=1, max_size=7)


def test_mean_at_k_when_five_of_sixteen_are_correct_then_is_their_share():
    assert mean_at_k([True] * 5 + [False] * 11) == 5 / 16


def test_pass_at_k_when_worked_by_hand_then_matches():
    # 3 of 10 correct, k = 2: 1 - (7 * 6) / (10 * 9)
    assert pass_at_k([True] * 3 + [False] * 7, k=2) == pytest.approx(1 - 42 / 90)
    assert pass_at_k([True] * 3 + [False] * 7, k=1) == pytest.approx(0.3)
    assert pass_at_k([True] + [False] * 9, k=10) == 1.0
    assert pass_at_k([False] * 10, k=10) == 0.0


@given(samples, st.integers(1, 7))
def test_pass_at_k_when_all_draws_are_listed_then_is_their_mean(correct: list[bool], k: int):
    k = min(k, len(correct))
    draws = list(itertools.combinations(correct, k))
    assert pass_at_k(correct, k=k) == pytest.approx(sum(map(any, draws)) / len(draws))


@given(samples)
def test_pass_at_k_when_k_is_one_then_is_the_mean(correct: list[bool]):
    assert pass_at_k(correct, k=1) == pytest.approx(mean_at_k(correct))


def test_majority_at_k_when_votes_are_counted_then_matches_by_hand():
    assert majority_at_k(["a", "a", "b"], [True, True, False]) == 1.0
    assert majority_at_k(["a", "b", "b"], [True, False, False]) == 0.0
    assert majority_at_k(["a", "b"], [True, False]) == 0.5
    assert majority_at_k([None, None, "a"], [False, False, True]) == 1.0
    assert majority_at_k([None, None], [False, False]) == 0.0
    # The same answer in two spellings, of which one was judged right, is one answer to the vote only by its spelling.
    assert majority_at_k(["1/2", "0.5", "3"], [True, True, False]) == pytest.approx(2 / 3)


def test_majority_at_k_when_fewer_are_drawn_then_is_the_mean_over_draws_and_repeats_with_the_seed():
    answers, correct = ["a"] * 3 + ["b"] * 2, [True] * 3 + [False] * 2
    draws = list(itertools.combinations(answers, 3))
    exact = sum(draw.count("a") >= 2 for draw in draws) / len(draws)  # 0.7
    estimate = majority_at_k(answers, correct, k=3, num_draws=4000)
    assert estimate == pytest.approx(exact, abs=0.03)
    assert estimate == majority_at_k(answers, correct, k=3, num_draws=4000)
    assert majority_at_k(answers, correct, k=1, num_draws=4000) == pytest.approx(0.6, abs=0.03)


@given(st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.booleans()), min_size=1, max_size=9), st.randoms())
def test_majority_at_k_when_samples_are_shuffled_then_does_not_change(
    votes: list[tuple[str | None, bool]], random: object
):
    before = majority_at_k(*zip(*votes, strict=True))
    random.shuffle(votes)  # type: ignore[attr-defined]
    assert majority_at_k(*zip(*votes, strict=True)) == before


def test_bootstrap_when_problems_are_many_then_agrees_with_the_normal_interval():
    values = np.random.default_rng(0).random(400)
    estimate = bootstrap_interval(list(values))
    half = 1.96 * values.std() / 20
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.003)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.003)
    assert estimate.count == 400
    assert estimate == bootstrap_interval(list(values))


def test_bootstrap_when_there_is_one_problem_or_many_resamples_then_works():
    assert bootstrap_interval([0.25]).low == 0.25
    assert bootstrap_interval([0.0, 1.0] * 1000, num_resamples=2000).high < 0.56
    narrow, wide = (bootstrap_interval([0.0, 1.0] * 20, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def problem(correct: str, benchmark: str = "math500", **labels: object) -> ProblemSamples:
    """`rrw.` is right, right, wrong, no answer."""
    answers = tuple({"r": "1", "w": "2", ".": None}[c] for c in correct)
    return ProblemSamples(tuple(c == "r" for c in correct), answers, {"benchmark": benchmark, **labels})


def test_accuracy_table_when_worked_by_hand_then_matches_per_benchmark_level_and_subject():
    problems = [
        problem("rrww", level=5, subject="Algebra"),
        problem("rrrr", level=1, subject="Algebra"),
        problem("w...", level=10, subject="Geometry"),
    ]
    table = accuracy_table(problems)
    assert list(table) == [
        "math500", "math500, level 1", "math500, level 5", "math500, level 10", "math500, subject Algebra",
        "math500, subject Geometry",
    ]  # fmt: skip
    whole = table["math500"]
    assert whole.mean.mean == pytest.approx(0.5)
    assert whole.mean.count == 3
    assert whole.passes[1].mean == pytest.approx(0.5)
    assert whole.passes[2].mean == pytest.approx((5 / 6 + 1 + 0) / 3)
    assert whole.passes[4].mean == pytest.approx(2 / 3)
    assert whole.majority is not None
    assert whole.majority.mean == pytest.approx((0.5 + 1 + 0) / 3)
    assert table["math500, level 5"].mean.mean == 0.5
    assert table["math500, subject Algebra"].mean.mean == 0.75


def test_accuracy_table_when_benchmarks_differ_in_size_then_they_weigh_the_same_in_the_average():
    table = accuracy_table([problem("rr", "aime25"), *[problem("ww", "math500")] * 3])
    assert table["average"].mean.mean == 0.5
    assert (table["average"].mean.low, table["average"].mean.high) == (0.5, 0.5)
    mixed = accuracy_table([problem("rw", "a"), problem("rr", "a"), problem("ww", "b"), problem("rr", "b")])
    assert mixed["average"].mean.mean == 0.625
    assert mixed["average"].mean.low < 0.5 < 0.7 < mixed["average"].mean.high


def test_accuracy_view_when_the_terminal_has_eighty_columns_then_no_number_is_cut():
    problems = [problem("rrrr", level=5, subject="Counting & Probability")] * 500 + [problem("rwww", level=5)]
    console = Console(width=80, file=io.StringIO())
    console.print(accuracy_view(accuracy_table(problems), samples=4, title="math"))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in printed
    assert "Counting & Probability 500 100 [99.2, 100] 100 [99.2, 100] 100 [99.2, 100]" in " ".join(printed.split())
    assert "99.9 [99.6, 100]" in printed


def test_accuracy_table_when_nobody_answers_then_has_no_majority():
    table = accuracy_table([ProblemSamples((False, True, False), (None, None, None), {})])
    assert table["all"].majority is None
    assert list(table["all"].passes) == [1, 2, 3]


@pytest.mark.parametrize(
    "call",
    [
        lambda: mean_at_k([]),
        lambda: pass_at_k([True], k=2),
        lambda: pass_at_k([True], k=0),
        lambda: majority_at_k(["a"], [True], k=2),
        lambda: majority_at_k(["a"], []),
        lambda: bootstrap_interval([]),
        lambda: bootstrap_interval([1.0], level=95),
    ],
)
def test_sampling_when_the_numbers_do_not_fit_then_raises(call):
    with pytest.raises(ValueError, match=r"must|k "):
        call()
