"""What announces a fall of held-out success, and what reuse does at which k: numbers that can be checked by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.analysis.early_warning import auc, falls
from agentrl.command.guard import main_guard
from agentrl.errors import UserError
from agentrl.study.__main__ import main
from agentrl.study.alarms import alarms_table, find_alarms
from agentrl.study.results import Results
from agentrl.study.run_monitors import monitors, reuse_by_k
from agentrl.study.tables import by_k_table
from tests.agentrl.test_study import make_run, results_of


@pytest.mark.parametrize(
    ("within", "expected"),
    [
        (10, [False, True, True, False, None]),
        (4, [False, False, True, None, None]),
        (3, [None, None, None, None, None]),
    ],
)
def test_a_fall_counts_where_it_comes_within_the_next_batches(within: int, expected: list[bool | None]) -> None:
    assert falls([0, 4, 8, 12, 20], [0.50, 0.60, 0.58, 0.53, 0.50], within=within) == expected


def test_a_fall_of_exactly_the_limit_counts() -> None:
    assert falls([0, 1], [0.60, 0.55]) == [True, None]
    assert falls([0, 1], [0.60, 0.56]) == [False, None]


def test_nothing_falls_from_the_floor() -> None:
    assert falls([0, 1, 2, 3], [0.10, 0.09, 0.0, 0.0]) == [True, None, None, None]


def test_auc_by_hand_counts_pairs_won_and_ties_by_half() -> None:
    # before falls 3 and 1, else 1 and 0: 3 wins twice, 1 ties and wins: 3.5 of 4
    assert auc([([True, True, False, False], [3, 1, 1, 0])], same_run=True).value == 3.5 / 4


def test_auc_within_runs_is_blind_to_what_differs_between_them() -> None:
    often = ([True, True, False], [10.0, 11.0, 12.0])  # within it, the highest value is where nothing follows
    never = ([False, False, False], [1.0, 2.0, 3.0])
    assert auc([often, never], same_run=True).value == 0.0
    assert auc([often, never], same_run=False).value == 6 / 8
    whole = auc([often, never] * 6, same_run=False)
    assert whole.low < whole.value < whole.high


def test_auc_without_a_pair_is_unknown() -> None:
    for runs in ([], [([True], [1.0])], [([], [])], [([True], [1.0]), ([False], [0.0])]):
        assert math.isnan(auc(runs, same_run=True).value)


@given(st.lists(st.tuples(st.booleans(), st.integers(-5, 5)), min_size=2, max_size=12))
def test_a_monitor_turned_around_has_the_complement(moments: list[tuple[bool, int]]) -> None:
    labels, values = [fell for fell, _ in moments], [float(value) for _, value in moments]
    found, turned = (auc([(labels, [sign * v for v in values])], same_run=True).value for sign in (1, -1))
    assert math.isnan(found) == math.isnan(turned) == (len(set(labels)) < 2)
    assert math.isnan(found) or found == pytest.approx(1 - turned)


def update(k: int, energy: float, **values: float) -> dict[str, Any]:
    return {"k": k, "head_energy": energy, **values}


def test_monitors_of_a_run_are_means_since_the_evaluation_before() -> None:
    records = [
        {"kind": "eval"},
        {"kind": "train", "rollout/success": 0.5, "updates": [update(1, 4.0, kl=0.0), update(2, 2.0, kl=0.2)]},
        {"kind": "train", "rollout/success": 1.0, "updates": [update(1, 6.0, kl=0.0), update(2, 8.0, kl=0.4)]},
        {"kind": "eval"},
        {"kind": "train", "rollout/success": 0.0, "updates": []},
        {"kind": "eval"},
    ]
    assert monitors(records) == {
        "rollout/success": [None, 0.75, 0.0],
        "head_energy": [None, 5.0, None],
        "kl": [None, 0.15, None],
        "rises": [None, 0.5, None],  # 4 -> 2 and 6 -> 8
    }


def test_gradients_that_are_no_numbers_are_left_out_and_the_gate_does_not_see_them() -> None:
    nan, inf = float("nan"), float("inf")
    steps = [update(1, 4.0, kl=0.0), update(2, nan, kl=nan), update(3, inf, kl=inf), update(4, 5.0, kl=0.2)]
    found = monitors([{"kind": "train", "rollout/success": nan, "updates": steps}, {"kind": "eval"}])
    assert found == {"head_energy": [4.5], "kl": [0.1], "rises": [1.0]}
    by_k = reuse_by_k([{**step, "applied": math.isfinite(step["kl"])} for step in steps])
    assert by_k["2"] == {"gradients": 1, "rises": 0, "discarded": 1, "kl": inf}
    assert by_k["4"]["kl"] == 0.2


def test_the_z_score_of_a_run_is_what_dgg_would_have_seen() -> None:
    energies = np.random.default_rng(0).random(24)
    batches = [{"kind": "train", "updates": [update(1, a), update(2, b)]} for a, b in energies.reshape(12, 2).tolist()]
    (found,) = monitors([*batches, {"kind": "eval"}])["z_score"]
    jumps = np.diff(energies)
    scores = [(jumps[i] - jumps[i - 20 : i].mean()) / (jumps[i - 20 : i].std(ddof=1) + 1e-8) for i in (20, 22)]
    assert found == pytest.approx(max(scores), rel=1e-3)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Two runs that fall at the end, the KL being highest just before; one that never falls."""
    falling, steady = [0.2, 0.5, 0.6, 0.7, 0.4], [0.2, 0.5, 0.6, 0.7, 0.8]
    runs = [make_run("naive", seed, falling) for seed in (0, 1)] + [make_run("single", 0, steady)]
    for run in runs:
        run["monitors"] = {"kl": [None, 0.1, 0.2, 0.9, 0.3], "entropy": [None, 0.5, 0.4, 0.3, 0.2]}
    return results_of(tmp_path, runs)


def test_the_table_has_the_monitors_that_were_measured(results: Results) -> None:
    text = alarms_table(find_alarms([results], ["naive"], within=1), within=1)
    assert "| KL to the first pass | 1.00 [1.00, 1.00] | 1.00 [1.00, 1.00] |" in text
    assert "| entropy | 0.00 [0.00, 0.00] | 0.00 [0.00, 0.00] |" in text
    assert "gradient norm" not in text
    assert "toy: 2 falls in 6 moments of 2 runs." in text
    other = alarms_table(find_alarms([results], ["naive"], drop=0.4, within=1), drop=0.4)
    assert "by 40 points" in other
    assert "0 falls" in other


def test_the_command_prints_it_and_refuses_unknown_arms(
    results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    results.write(path, command="")
    assert main([str(path), "--alarms", "naive", "single", "--within", "1", "--drop", "20"]) == 0
    assert "2 falls in 9 moments of 3 runs" in capsys.readouterr().out
    assert main([str(path), "--alarms", "naive", "--within", "1", "--figures", str(tmp_path / "figures")]) == 0
    (picture,) = (tmp_path / "figures").iterdir()
    assert picture.name == "alarms.svg"
    text = picture.read_text()
    assert all(f">{words}<" in text for words in ("toy", "entropy", "KL to the first pass", "AUC; 0.5 says nothing"))
    assert "gradient norm" not in text
    assert main_guard(lambda: main([str(path), "--alarms", "nobody"])) == 2
    assert "no arm nobody" in capsys.readouterr().err
    for limit in (["--drop", "0"], ["--drop", "100"], ["--within", "0"], ["--within", "nan"]):
        assert main_guard(lambda limit=limit: main([str(path), "--alarms", "naive", *limit])) == 2
        assert "--within above 0" in capsys.readouterr().err
    assert main_guard(lambda: main([str(path), "--alarms", "naive", "--stage", "tune"])) == 2
    assert "hold no monitors of naive in tune" in capsys.readouterr().err


def test_reuse_by_k_counts_rises_discards_and_the_median_kl() -> None:
    steps = [(1, 4.0, 0.0, True), (2, 5.0, 0.1, True), (3, 4.5, 0.3, False), (1, 9.0, 0.0, True), (2, 3.0, 0.2, True)]
    updates = [update(k, energy, kl=kl, applied=applied) for k, energy, kl, applied in steps]
    assert reuse_by_k(updates) == {
        "2": {"gradients": 2, "rises": 1, "discarded": 0, "kl": 0.15},
        "3": {"gradients": 1, "rises": 0, "discarded": 1, "kl": 0.3},
    }


def test_the_table_by_k_adds_up_over_seeds(results: Results) -> None:
    with pytest.raises(UserError, match="older than that, or no batch was used twice"):
        by_k_table([results], ["naive"])
    for run, rises in zip(results.runs, (1, 2, 0), strict=True):
        run["by_k"] = {"2": {"gradients": 4, "rises": rises, "discarded": 1, "kl": 0.01 * rises}}
    text = by_k_table([results], ["naive"], stages=["main"])
    assert "| toy, main: naive (lr 0.001) | 38 % / 25 % / 0.015 |" in text  # 3 of 8, 2 of 8
    assert "single use" not in text
