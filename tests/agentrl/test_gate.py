import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.errors import RunError, UserError
from agentrl.learner.gates import Gate, StepSignal, Verdict, make_gate
from agentrl.learner.gates.dgg import ZScoreGate
from agentrl.learner.gates.rivals import FixedGate, RandomGate, ThresholdGate, ZClipGate
from agentrl.learner.gates.verdict import FiniteGuard
from tests.agentrl.helpers import gate_config


def feed(gate: Gate, energies: list[float], reuse: list[int]) -> list[Verdict]:
    return [gate.judge(StepSignal(k, g)) for k, g in zip(reuse, energies, strict=True)]


def small(**changes: object) -> ZScoreGate:
    return ZScoreGate(gate_config(window=2, tau=0.5, **changes))  # type: ignore[arg-type]


def test_dgg_on_written_out_energies_follows_algorithm_1() -> None:
    gate = small()
    # energies 1 3 4: increments 2 1 fill the window (mean 1.5, sample deviation sqrt(1/2))
    first = feed(gate, [1.0, 3.0, 4.0], [1, 2, 3])
    assert all(verdict.apply and not verdict.stop for verdict in first)
    # 6: increment 2, z = 0.5 / 0.70711 = 0.70711 > 0.5: discarded, reuse ends
    surge = gate.judge(StepSignal(4, 6.0))
    assert (surge.apply, surge.stop, surge.reason) == (False, True, "surge")
    assert surge.statistics["z_score"] == pytest.approx(math.sqrt(0.5))
    # the discarded increment did not enter the window, its energy precedes the next increment: 5 - 6 = -1
    after = gate.judge(StepSignal(1, 5.0))
    assert after.apply
    assert after.statistics["increment"] == -1.0
    assert list(gate.window) == [1.0, -1.0]


def test_dgg_with_the_accepted_predecessor_measures_from_the_last_applied_step() -> None:
    gate = small(predecessor="accepted")
    feed(gate, [1.0, 3.0, 4.0, 6.0], [1, 2, 3, 4])
    assert gate.judge(StepSignal(1, 5.0)).statistics["increment"] == 1.0


def test_dgg_at_k_1_never_discards_however_large_the_surge() -> None:
    gate = small()
    feed(gate, [1.0, 2.0, 2.5], [1, 2, 3])
    verdict = gate.judge(StepSignal(1, 1000.0))
    assert verdict.apply
    assert verdict.statistics["z_score"] > 100


def test_dgg_before_the_window_is_full_does_not_test() -> None:
    gate = ZScoreGate(gate_config(window=20))
    verdicts = feed(gate, [float(2**i) for i in range(20)], [2] * 20)
    assert all(verdict.apply for verdict in verdicts)  # 20 energies are 19 increments
    assert "z_score" not in verdicts[-1].statistics


def test_dgg_of_the_very_first_step_has_no_increment() -> None:
    gate = small()
    assert "increment" not in gate.judge(StepSignal(1, 7.0)).statistics
    assert not gate.window


def test_dgg_with_the_reuse_window_leaves_out_increments_at_k_1() -> None:
    gate = small(window_scope="reuse")
    feed(gate, [1.0, 2.0, 9.0, 10.0], [1, 2, 1, 2])
    assert list(gate.window) == [1.0, 1.0]


def test_dgg_with_a_window_for_every_k_compares_increments_of_the_same_k() -> None:
    gate = small(window_scope="per_k")
    # energies 5 6 9 | 4 6 10 | 3: increments at k = 2 are 1 2 (mean 1.5, sample deviation sqrt(1/2)), at k = 3 they are
    # 3 4 (mean 3.5), so both windows of two are full
    calm = feed(gate, [5.0, 6.0, 9.0, 4.0, 6.0, 10.0, 3.0], [1, 2, 3, 1, 2, 3, 1])
    assert all(verdict.apply for verdict in calm)
    assert {k: list(window) for k, window in gate.windows.items() if window} == {2: [1.0, 2.0], 3: [3.0, 4.0]}
    # 4.5: an increment of 1.5 at k = 2 is just the mean; 8: one of 3.5 at k = 3 too, far above what is usual at k = 2
    at_two, at_three = gate.judge(StepSignal(2, 4.5)), gate.judge(StepSignal(3, 8.0))
    assert [at_two.statistics[key] for key in ("window_mean", "z_score")] == [1.5, 0.0]
    assert [at_three.statistics[key] for key in ("window_mean", "z_score")] == [3.5, 0.0]
    # next batch: 2, then 5: an increment of 3 at k = 2, where 2 and 1.5 are in the window: z = 1.25 / 0.35355
    assert gate.judge(StepSignal(1, 2.0)).apply
    surge = gate.judge(StepSignal(2, 5.0))
    assert (surge.apply, surge.stop, surge.reason) == (False, True, "surge")
    assert surge.statistics["z_score"] == pytest.approx(1.25 / math.sqrt(0.125))


def test_dgg_with_a_window_for_every_k_waits_for_each_of_them() -> None:
    gate = small(window_scope="per_k")
    feed(gate, [1.0, 2.0, 1.0, 2.0], [1, 2, 1, 2])
    assert "z_score" not in gate.judge(StepSignal(3, 99.0)).statistics


@pytest.mark.parametrize("scope", ["reuse", "per_k"])
def test_dgg_that_could_never_fill_its_window_is_refused(scope: str) -> None:
    with pytest.raises(UserError, match="nothing would ever be reused"):
        make_gate(gate_config(until_full="single", window_scope=scope))  # type: ignore[arg-type]


def test_norm_skip_discards_strictly_above_its_limit_at_any_k() -> None:
    gate = make_gate(gate_config(kind="norm_skip", threshold=2.0))
    verdicts = [gate.judge(StepSignal(k, 1.0, grad_norm=norm)) for k, norm in ((1, 2.0), (2, 2.1), (1, 9.0))]
    assert [(v.apply, v.stop, v.reason) for v in verdicts] == [
        (True, False, ""),
        (False, True, "norm"),
        (False, True, "norm"),
    ]
    with pytest.raises(UserError, match=r"needs gate\.threshold"):
        make_gate(gate_config(kind="norm_skip"))


def test_dgg_with_single_use_until_full_stops_after_one_use_at_first() -> None:
    gate = small(until_full="single")
    assert [v.stop for v in feed(gate, [1.0, 2.0, 3.0, 4.0], [1, 1, 1, 1])] == [True, True, True, False]


@pytest.mark.parametrize(("action", "apply", "stop"), [("apply_stop", True, True), ("discard_continue", False, False)])
def test_dgg_ablations_change_what_a_surge_does(action: str, apply: bool, stop: bool) -> None:
    gate = small(action=action)
    verdict = feed(gate, [1.0, 3.0, 4.0, 9.0], [1, 2, 3, 4])[-1]
    assert (verdict.apply, verdict.stop, verdict.reason) == (apply, stop, "surge")


def test_dgg_with_population_deviation_divides_by_n() -> None:
    gate = small(ddof=0)
    verdict = feed(gate, [1.0, 3.0, 4.0, 6.0], [1, 2, 3, 4])[-1]
    assert verdict.statistics["window_std"] == pytest.approx(0.5)
    assert verdict.statistics["z_score"] == pytest.approx(1.0)


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 4)), max_size=80))
def test_dgg_agrees_with_a_direct_reading_of_the_paper(steps: list[tuple[float, int]]) -> None:
    config = gate_config(window=5, tau=0.1)
    gate = ZScoreGate(config)
    previous, window = None, []
    for energy, k in steps:
        increment = None if previous is None else energy - previous
        discard = False
        if increment is not None and len(window) >= 5 and k > 1:
            past = window[-5:]
            mean = sum(past) / 5
            std = math.sqrt(sum((x - mean) ** 2 for x in past) / 4)
            discard = (increment - mean) / (std + 1e-8) > 0.1 + 1e-9
            if abs((increment - mean) / (std + 1e-8) - 0.1) < 1e-6:
                return  # too close to the threshold for two roundings to agree
        assert gate.judge(StepSignal(k, energy)).apply is not discard
        if increment is not None and not discard:
            window.append(increment)
        previous = energy


@given(st.lists(st.tuples(st.floats(0.5, 10), st.integers(1, 4)), min_size=1, max_size=60), st.integers(0, 59))
def test_every_gate_restored_from_its_state_goes_on_as_before(steps: list[tuple[float, int]], cut: int) -> None:
    kinds = [
        "dgg",
        "none",
        "fixed",
        "random",
        "kl",
        "ess",
        "clip_fraction",
        "m2",
        "total_norm_z",
        "zclip",
        "kl_rate",
        "ess_rate",
        "norm_skip",
    ]
    for kind, scope in [*((kind, "all") for kind in kinds), ("dgg", "reuse"), ("dgg", "per_k")]:
        own = {
            "dgg": {"window": 4, "window_scope": scope},
            "total_norm_z": {"window": 4},
            "norm_skip": {"threshold": 5.0},
        }
        config = gate_config(kind=kind, **own.get(kind, {}))
        signals = [
            StepSignal(
                k, g, grad_norm=g, kl=g / 100, ess=1 - g / 50, clip_fraction=g / 20, m2=g / 90, sequence_ess=1 / g
            )
            for g, k in steps
        ]
        whole, first = make_gate(config), make_gate(config)
        expected = [whole.judge(signal) for signal in signals]
        for signal in signals[:cut]:
            first.judge(signal)
        second = make_gate(config)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert [second.judge(signal) for signal in signals[cut:]] == expected[cut:]


def test_fixed_gate_stops_at_k_and_none_never_does() -> None:
    assert [v.stop for v in feed(make_gate(gate_config(kind="fixed", k=2)), [1.0, 1.0], [1, 2])] == [False, True]
    assert not any(v.stop for v in feed(FixedGate(None), [1.0] * 9, list(range(1, 10))))


def test_random_gate_stops_at_its_rate_and_never_at_k_1() -> None:
    gate = make_gate(gate_config(kind="random", stop_prob=0.2), seed=3)
    fired = [not v.apply for v in feed(gate, [1.0] * 4000, [1, 2] * 2000)]
    assert not any(fired[::2])
    assert np.mean(fired[1::2]) == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize(
    ("kind", "quantity", "calm", "wild"),
    [
        ("kl", "kl", 0.01, 0.02),
        ("ess", "ess", 0.95, 0.5),
        ("clip_fraction", "clip_fraction", 0.1, 0.3),
        ("m2", "m2", 0.03, 0.05),
    ],
)
def test_threshold_gates_discard_and_stop_beyond_their_limit(
    kind: str, quantity: str, calm: float, wild: float
) -> None:
    gate = make_gate(gate_config(kind=kind))  # type: ignore[arg-type]
    assert gate.judge(StepSignal(2, 1.0, **{quantity: calm})).apply
    crossed = gate.judge(StepSignal(2, 1.0, **{quantity: wild}))
    assert (crossed.apply, crossed.stop, crossed.reason) == (False, True, kind)
    assert gate.judge(StepSignal(1, 1.0, **{quantity: wild})).apply


def test_total_norm_gate_looks_at_the_total_norm_only() -> None:
    gate = make_gate(gate_config(kind="total_norm_z", window=2, tau=0.5))
    norms = [1.0, math.sqrt(3.0), 2.0, math.sqrt(6.0)]  # squares 1 3 4 6, as in the head's example
    verdicts = [gate.judge(StepSignal(k, 1.0, grad_norm=norm)) for k, norm in enumerate(norms, 1)]
    assert [v.apply for v in verdicts] == [True, True, True, False]


def test_zclip_scales_an_outlier_and_leaves_normal_norms_alone() -> None:
    gate = ZClipGate(2.5)
    for i in range(25):
        assert gate.judge(StepSignal(1, 1.0, grad_norm=1.0 + 0.1 * (i % 2))).scale == 1.0
    mean, std = 1.048, math.sqrt(np.var([1.0 + 0.1 * (i % 2) for i in range(25)])) + 1e-6
    verdict = gate.judge(StepSignal(1, 1.0, grad_norm=10.0))
    z = (10.0 - mean) / std
    assert verdict.scale == pytest.approx((mean + std * 2.5**2 / z) / 10.0, rel=1e-6)
    assert gate.judge(StepSignal(1, 1.0, grad_norm=1.05)).scale == 1.0


def test_a_non_finite_energy_is_discarded_at_any_k_and_enters_nothing() -> None:
    gate = make_gate(gate_config(window=2))
    for k, energy in ((1, 1.0), (2, 2.0)):
        gate.judge(StepSignal(k, energy))
    before = json.dumps(gate.state_dict())
    for bad in (StepSignal(1, math.nan), StepSignal(2, math.inf)):
        verdict = gate.judge(bad)
        assert (verdict.apply, verdict.stop, verdict.reason) == (False, True, "non_finite")
    after = gate.state_dict()
    assert json.dumps({**after, "in_a_row": 0}) == before


def test_three_non_finite_energies_in_a_row_stop_the_run() -> None:
    gate = make_gate(gate_config())
    gate.judge(StepSignal(1, math.nan))
    gate.judge(StepSignal(1, 1.0))
    gate.judge(StepSignal(1, math.nan))
    gate.judge(StepSignal(1, 1.0, grad_norm=math.inf))
    with pytest.raises(RunError, match="3 gradients in a row were not finite"):
        gate.judge(StepSignal(1, math.nan))


def test_make_gate_gives_every_name_its_gate_behind_the_guard() -> None:
    def inside(kind: str) -> Gate:
        guard = make_gate(gate_config(kind=kind))  # type: ignore[arg-type]
        assert isinstance(guard, FiniteGuard)
        return guard.gate

    signal = StepSignal(1, 3.0, grad_norm=4.0, tied_energy=5.0)
    energies = {kind: inside(kind).config.energy_of(signal) for kind in ("dgg", "total_norm_z")}  # type: ignore[attr-defined]
    assert energies == {"dgg": 3.0, "total_norm_z": 16.0}
    assert gate_config(energy="tied").energy_of(signal) == 5.0
    assert gate_config(energy="tied").energy_of(StepSignal(1, 3.0)) == 3.0
    assert isinstance(inside("random"), RandomGate)
    assert isinstance(inside("zclip"), ZClipGate)
    assert [inside(kind).k for kind in ("fixed", "none")] == [1, None]  # type: ignore[attr-defined]
    limits = {kind: inside(kind).threshold for kind in ("kl", "ess", "clip_fraction", "m2")}  # type: ignore[attr-defined]
    assert limits == {"kl": 0.015, "ess": 0.9, "clip_fraction": 0.2, "m2": 0.04}


def test_gates_without_a_state_save_an_empty_one() -> None:
    assert FixedGate(3).state_dict() == ThresholdGate("kl", 0.1).state_dict() == {}


def test_random_gate_draws_by_seed_and_count_and_stops_strictly_below_its_probability() -> None:
    draws = [float(np.random.default_rng((0, i)).random()) for i in range(3)]
    gate = make_gate(gate_config(kind="random"))
    verdicts = [gate.judge(StepSignal(2, 1.0)) for _ in draws]
    assert [verdict.statistics["draw"] for verdict in verdicts] == draws
    assert gate.state_dict() == {"in_a_row": 0, "gate": {"count": 3}}
    assert not RandomGate(draws[0], seed=0).judge(StepSignal(2, 1.0)).stop
    assert RandomGate(draws[0] + 1e-9, seed=0).judge(StepSignal(2, 1.0)).reason == "random"


@pytest.mark.parametrize("limit", [2.5, 1.0])
def test_zclip_on_written_out_norms_follows_the_paper(limit: float) -> None:
    gate, norms = ZClipGate(limit), [1.0, 2.0, 4.0] * 8 + [1.5]
    for norm in norms:
        assert gate.judge(StepSignal(1, 1.0, grad_norm=norm)) == Verdict(True, False)
    mean, variance = float(np.mean(norms)), float(np.var(norms))
    for norm in (20.0, 2.0, mean - 30.0):
        std = math.sqrt(variance) + 1e-6
        z_score = (norm - mean) / std
        clipped = mean + std * limit**2 / z_score if z_score > limit else norm
        verdict = gate.judge(StepSignal(1, 1.0, grad_norm=norm))
        assert verdict.apply
        assert not verdict.stop
        assert verdict.scale == pytest.approx(clipped / norm)
        assert verdict.reason == ("scaled" if norm == 20.0 else "")
        assert verdict.statistics == {"z_score": pytest.approx(z_score)}
        mean = 0.97 * mean + 0.03 * clipped
        variance = 0.97 * variance + 0.03 * (clipped - mean) ** 2
        assert (gate.mean, gate.variance) == (pytest.approx(mean), pytest.approx(variance))
    assert len(gate.seen) == 25


@pytest.mark.parametrize("quantity", ["kl", "ess", "clip_fraction", "m2"])
def test_a_threshold_gate_at_its_limit_does_not_fire(quantity: str) -> None:
    gate = ThresholdGate(quantity, 0.5)
    at, beyond = StepSignal(2, 1.0, **{quantity: 0.5}), 0.4 if quantity == "ess" else 0.6
    verdict = gate.judge(at)
    assert (verdict.apply, verdict.stop, verdict.reason) == (True, False, "")
    assert verdict.statistics == {quantity: 0.5}
    for value in (beyond, math.nan):
        fired = gate.judge(StepSignal(2, 1.0, **{quantity: value}))
        assert (fired.apply, fired.stop, fired.reason) == (False, True, quantity)


def test_fresh_gates_save_that_they_have_seen_nothing() -> None:
    assert ZClipGate(2.5).state_dict() == {"seen": [], "mean": 0.0, "variance": 0.0}
    assert small().state_dict() == {"window": [], "previous": None}
    assert make_gate(gate_config()).state_dict() == {"in_a_row": 0, "gate": {"window": [], "previous": None}}


def test_verdicts_carry_the_numbers_behind_them_under_fixed_names() -> None:
    gate = small()
    feed(gate, [1.0, 3.0, 4.0], [1, 2, 3])
    verdict = gate.judge(StepSignal(4, 6.0))
    assert verdict.statistics == {
        "energy": 6.0, "increment": 2.0, "z_score": pytest.approx(math.sqrt(0.5)),
        "window_mean": 1.5, "window_std": pytest.approx(math.sqrt(0.5)),
    }  # fmt: skip
    assert small().judge(StepSignal(1, 6.0)).statistics == {"energy": 6.0}
    assert small(until_full="single").judge(StepSignal(1, 1.0)).reason == "filling"
    guarded = make_gate(gate_config()).judge(StepSignal(1, math.inf))
    assert (guarded.reason, guarded.apply, guarded.stop) == ("non_finite", False, True)
    assert guarded.statistics == {"energy": math.inf}


def test_a_window_without_spread_and_without_epsilon_takes_any_increment_for_a_surge() -> None:
    gate = ZScoreGate(gate_config(window=2, tau=0.5, epsilon=0.0))
    feed(gate, [1.0, 2.0, 3.0], [1, 2, 3])
    verdict = gate.judge(StepSignal(4, 4.0))
    assert verdict.statistics["z_score"] == math.inf
    assert verdict.reason == "surge"


def test_a_z_score_at_the_threshold_is_no_surge() -> None:
    gate = ZScoreGate(gate_config(window=2, tau=1.0, ddof=0, epsilon=0.0))
    feed(gate, [0.0, 1.0, 4.0], [1, 2, 3])  # increments 1 and 3: mean 2, deviation 1
    verdict = gate.judge(StepSignal(4, 7.0))  # increment 3: z = 1
    assert verdict.statistics["z_score"] == 1.0
    assert verdict.apply


def test_verdicts_of_calm_steps_are_plain() -> None:
    assert FixedGate(2).judge(StepSignal(1, 1.0)) == Verdict(True, False)
    assert FixedGate(1).judge(StepSignal(1, 1.0)) == Verdict(True, True, is_judgement=False)
    assert RandomGate(1.0, seed=0).judge(StepSignal(1, 1.0)) == Verdict(True, False)
    assert RandomGate(0.0, seed=0).judge(StepSignal(2, 1.0)).reason == ""
    assert small().judge(StepSignal(1, 1.0)).reason == ""


def test_total_norm_gate_squares_the_norm() -> None:
    assert make_gate(gate_config(kind="total_norm_z")).judge(StepSignal(1, 9.0, 3.0)).statistics["energy"] == 9.0


def test_epsilon_is_added_to_the_deviation() -> None:
    gate = ZScoreGate(gate_config(window=2, tau=9.0, ddof=0, epsilon=1.0))
    feed(gate, [0.0, 1.0, 4.0], [1, 2, 3])  # increments 1 and 3: mean 2, deviation 1
    assert gate.judge(StepSignal(4, 8.0)).statistics["z_score"] == 1.0  # (4 - 2) / (1 + 1)


def test_zclip_of_a_vanished_gradient_scales_nothing() -> None:
    gate = ZClipGate(2.5)
    for _ in range(26):
        verdict = gate.judge(StepSignal(1, 0.0, grad_norm=0.0))
    assert verdict.scale == 1.0
