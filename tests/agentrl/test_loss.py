import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.learner.losses.kinds import cispo_loss, clip_loss, decoupled_loss, dual_clip_loss, gspo_loss, m2po_mask
from agentrl.learner.losses.token_loss import kl_estimate, mismatch_weights
from agentrl.learner.monitors import RatioStatistics
from tests.agentrl.helpers import loss_config

T = torch.tensor


def logs(*ratios: float) -> torch.Tensor:
    """Log-probs whose ratio to zeros is as given."""
    return T([math.log(r) for r in ratios], dtype=torch.float64).requires_grad_()


ZEROS = torch.zeros(4, dtype=torch.float64)
RATIOS = (1.5, 0.5, 1.5, 0.5)
ADVANTAGES = T([2.0, 2.0, -2.0, -2.0], dtype=torch.float64)


def test_clip_loss_of_four_corners_matches_the_hand_computed_values() -> None:
    new = logs(*RATIOS)
    loss = clip_loss(new, ZEROS, ADVANTAGES, low=0.2, high=0.2)
    torch.testing.assert_close(loss, T([-2.4, -1.0, 3.0, 1.6], dtype=torch.float64))
    loss.sum().backward()
    # clipped corners have no gradient, the others have -ratio * A
    torch.testing.assert_close(new.grad, T([0.0, -1.0, 3.0, 0.0], dtype=torch.float64))


def test_clip_higher_lets_a_good_token_rise_further() -> None:
    loss = clip_loss(logs(1.25), ZEROS[:1], ADVANTAGES[:1], low=0.2, high=0.28)
    torch.testing.assert_close(loss, T([-2.5], dtype=torch.float64))


def test_dual_clip_bounds_the_loss_of_a_bad_inflated_token() -> None:
    loss = dual_clip_loss(logs(5.0, 2.0), ZEROS[:2], T([-1.0, -1.0]).double(), low=0.2, high=0.2, bound=3.0)
    torch.testing.assert_close(loss, T([3.0, 2.0], dtype=torch.float64))


def test_gspo_uses_the_geometric_mean_ratio_of_each_row() -> None:
    new = logs(4.0, 1.0, 0.5)
    loss = gspo_loss(new, ZEROS[:3], T([1.0, 1.0, -1.0]).double(), row_index=T([0, 0, 1]), low=0.9, high=9.0)
    torch.testing.assert_close(loss, T([-2.0, -2.0, 0.5], dtype=torch.float64))
    loss.sum().backward()
    torch.testing.assert_close(new.grad, T([-2.0, -2.0, 0.5], dtype=torch.float64))


def test_cispo_clips_the_weight_and_keeps_the_gradient() -> None:
    new = logs(10.0, 0.5)
    loss = cispo_loss(new, ZEROS[:2], T([1.0, 1.0]).double(), high=4.0)
    loss.sum().backward()
    torch.testing.assert_close(new.grad, T([-5.0, -0.5], dtype=torch.float64))


def test_decoupled_loss_weighs_by_proximal_over_behaviour() -> None:
    loss = decoupled_loss(logs(1.1), ZEROS[:1], T([math.log(0.5)]).double(), T([1.0]).double(), low=0.2, high=0.2)
    torch.testing.assert_close(loss, T([-2.2], dtype=torch.float64))


def test_m2po_drops_the_largest_outward_ratios_until_the_mean_is_small_enough() -> None:
    log_ratio = T([0.5, 0.1, -0.5, 0.3])
    advantages = T([1.0, 1.0, 1.0, 1.0])  # the third moves inward and is never dropped
    # outward squares .25 .09 .01: mean .1167, without .25 it is .05, without .09 too it is .01
    assert m2po_mask(log_ratio, advantages, threshold=0.06).tolist() == [False, True, True, True]
    assert m2po_mask(log_ratio, advantages, threshold=0.04).tolist() == [False, True, True, False]
    assert m2po_mask(log_ratio, advantages, threshold=1.0).all()
    assert m2po_mask(log_ratio, -advantages, threshold=0.04).tolist() == [True, True, False, True]


def test_m2po_keeps_what_has_no_advantage_and_what_is_just_at_the_threshold() -> None:
    assert m2po_mask(T([0.5, -0.5]), torch.zeros(2), threshold=0.04).tolist() == [True, True]
    assert m2po_mask(T([0.5]), torch.ones(1), threshold=0.25).tolist() == [True]
    assert m2po_mask(T([0.5]), -torch.ones(1), threshold=0.04).tolist() == [True]


def test_m2po_drops_the_first_of_equal_ratios_first() -> None:
    # 64 squares of .25 and 64 of nearly 0: without 43 of the first the mean is 21 * .25 / 85 = .0618, without 44 .0595
    keep = m2po_mask(T([0.5] * 64 + [1e-6] * 64), torch.ones(128), threshold=0.06)
    assert keep.tolist() == [False] * 44 + [True] * 84


def test_kl_estimates_of_one_token_by_hand() -> None:
    new, reference = T([math.log(0.5)]), T([math.log(0.25)])
    d = math.log(2)
    assert kl_estimate(new, reference, "k1").item() == pytest.approx(d)
    assert kl_estimate(new, reference, "k2").item() == pytest.approx(d * d / 2)
    assert kl_estimate(new, reference, "k3").item() == pytest.approx(0.5 - 1 + d)


def test_mismatch_weights_are_capped_above_only() -> None:
    weights = mismatch_weights(T([0.0, 0.0]), T([math.log(0.1), math.log(4.0)]), cap=2.0)
    torch.testing.assert_close(weights, T([2.0, 0.25]))


def test_masked_importance_weights_leave_out_what_lies_beyond_either_cap() -> None:
    behaviour = T([math.log(0.1), math.log(4.0), math.log(0.8)])  # ratios 10, 0.25, 1.25
    torch.testing.assert_close(mismatch_weights(torch.zeros(3), behaviour, cap=2.0, kind="mask"), T([0.0, 0.0, 1.25]))
    inside = T([math.log(1.6)])  # 0.625, above 1 / 2
    torch.testing.assert_close(mismatch_weights(torch.zeros(1), inside, cap=2.0, kind="mask"), T([0.625]))
    assert mismatch_weights(torch.zeros(1), torch.zeros(1), cap=1.0, kind="mask").tolist() == [1.0]  # at both caps


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("clip", [4.0, -1.0]),
        ("m2po", [4.0, -1.0]),  # its mask is applied elsewhere
        ("dual_clip", [3.0, -1.0]),  # at most 3 * 1
        ("gspo", [2.0, -1.2]),  # both ratios are 2 = sqrt(4 * 1)
        ("cispo", [1.2 * math.log(4), 0.0]),
        ("decoupled", [8.0, -2.0]),  # twice clip's, as behaviour is half of old
    ],
)
def test_policy_loss_of_one_row_is_that_of_the_named_kind(kind: str, expected: list[float]) -> None:
    behaviour, advantages = T([math.log(0.5)] * 2).double(), T([-1.0, 1.0]).double()
    loss = loss_config(kind=kind).policy_loss()
    value = loss(logs(4.0, 1.0), ZEROS[:2], behaviour, advantages, T([0, 0]))
    torch.testing.assert_close(value.detach(), T(expected, dtype=torch.float64))


def test_m2po_loss_is_not_clipped() -> None:
    new = logs(*RATIOS)
    loss = loss_config(kind="m2po").policy_loss()(new, ZEROS, ZEROS, ADVANTAGES, T([0, 0, 0, 0]))
    torch.testing.assert_close(loss, T([-3.0, -1.0, 3.0, 1.0], dtype=torch.float64))
    loss.sum().backward()
    torch.testing.assert_close(new.grad, T([-3.0, -1.0, 3.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize(("cap", "weight"), [(0.0, 4.0), (2.0, 1.0)])
def test_decoupled_loss_leaves_its_weight_to_a_capped_correction_of_the_mismatch(cap: float, weight: float) -> None:
    behaviour, advantages = T([math.log(0.25)]).double(), T([1.0]).double()
    loss = loss_config(kind="decoupled", tis_cap=cap).policy_loss()(logs(1.1), ZEROS[:1], behaviour, advantages, T([0]))
    torch.testing.assert_close(loss, T([-1.1 * weight], dtype=torch.float64))


def test_no_tokens_have_no_loss_and_sums_of_zero() -> None:
    none = torch.zeros(0, dtype=torch.float64)
    assert gspo_loss(none, none, none, row_index=none.long(), low=0.2, high=0.2).shape == (0,)
    assert statistics(none, none, none) == RatioStatistics()


@settings(deadline=None)
@given(st.sampled_from(["clip", "dual_clip", "gspo", "cispo", "decoupled", "m2po", "dppo"]), st.integers(1, 20))
def test_every_loss_on_policy_has_the_policy_gradient(kind: str, n: int) -> None:
    g = torch.Generator().manual_seed(n)
    old = torch.randn(n, generator=g, dtype=torch.float64)
    advantages = torch.randn(n, generator=g, dtype=torch.float64)
    new = old.clone().requires_grad_()
    rows = torch.arange(n) // 3
    loss_config(kind=kind).policy_loss()(new, old, old, advantages, rows).sum().backward()
    torch.testing.assert_close(new.grad, -advantages)


def statistics(
    new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, clip: float = 0.2, kept: torch.Tensor | None = None
) -> RatioStatistics:
    """Those of tokens that are rows of their own."""
    return RatioStatistics.of(new, old, advantages, torch.arange(len(new)), clip_range=(clip, clip), kept=kept)


def test_ratio_metrics_of_two_parts_equal_those_of_the_whole() -> None:
    g = torch.Generator().manual_seed(0)
    new, old, adv = (torch.randn(50, generator=g, dtype=torch.float64) for _ in range(3))
    whole = statistics(new, old, adv).metrics()
    a, b = (statistics(new[s], old[s], adv[s]) for s in (slice(20), slice(20, 50)))
    assert (a + b).metrics() == pytest.approx(whole)
    assert (RatioStatistics() + a + b).metrics() == (a + b).metrics()
    ratio = (new - old).exp()
    assert whole["chi_square"] == pytest.approx(float((ratio**2 - 1).mean()))
    assert whole["ess"] == pytest.approx(float(ratio.sum() ** 2 / (50 * (ratio**2).sum())))
    assert whole["max_ratio"] == pytest.approx(float(ratio.max()))


def test_ratio_statistics_and_metrics_of_two_tokens_by_hand() -> None:
    new, old = logs(0.5, 0.25).detach(), logs(0.25, 0.25).detach()  # ratios 2 and 1
    sums = statistics(new, old, T([1.0, 1.0]).double(), kept=T([True, False]))
    d = math.log(2)
    assert asdict(sums) == pytest.approx(
        {
            "tokens": 2, "ratio": 3, "ratio_squared": 5, "kl": 1 - d, "clipped": 1, "log_ratio_squared": d * d,
            "surprise": 3 * d, "rows": 2, "row_weight": 3, "row_weight_squared": 5, "masked": 1, "largest_ratio": 2,
            "tail": 0, "weight": 3, "tail_weight": 0,
        }
    )  # fmt: skip
    expected = {"kl": (1 - d) / 2, "chi_square": 1.5, "ess": 0.9, "clip_fraction": 0.5, "m2": d * d / 2}
    expected |= {"surprise": 1.5 * d, "max_ratio": 2.0, "sequence_ess": 0.9, "tail_share": 0.0, "tail_weight": 0.0}
    assert sums.metrics() == pytest.approx(expected)


def test_tail_tokens_are_those_that_were_improbable_at_the_first_pass_whatever_they_are_now() -> None:
    new, old = logs(0.036, 0.9, 0.009, 0.005).detach(), logs(0.009, 0.9, 0.018, 0.005).detach()  # ratios 4 1 .5 1
    sums = statistics(new, old, T([-1.0, 2.0, 1.0, 0.0]).double())
    metrics = sums.metrics()
    assert metrics["tail_share"] == 0.5  # the first and the last
    assert metrics["tail_weight"] == pytest.approx(4 / (4 + 2 + 0.5))
    assert statistics(new, old, torch.zeros(4).double()).metrics()["tail_weight"] == 0.0


def test_ess_of_ratios_that_all_vanish_is_one() -> None:
    assert RatioStatistics(tokens=2.0).metrics()["ess"] == 1.0


@pytest.mark.parametrize(
    ("ratio", "advantage", "clip", "clipped"),
    [
        (1.5, 0.5, 0.2, True), (1.5, 0.0, 0.2, False), (1.5, -0.5, 0.2, False),
        (1.1, 0.5, 0.2, False), (1.1, -0.5, 0.2, False),
        (1.0, 0.5, 0.0, False), (1.0, -0.5, 0.0, False),  # at both limits
        (0.5, 0.5, 0.2, False), (0.5, 0.0, 0.2, False), (0.5, -0.5, 0.2, True),
    ],
)  # fmt: skip
def test_a_token_counts_as_clipped_where_its_ratio_went_too_far_the_way_of_its_advantage(
    ratio: float, advantage: float, clip: float, clipped: bool
) -> None:
    sums = statistics(logs(ratio).detach(), ZEROS[:1], T([advantage]).double(), clip)
    assert sums.clipped == float(clipped)
