import math

import numpy as np
import pytest
import torch
from torch import Tensor

from agentrl.learner.batch import BatchRow
from agentrl.learner.losses.kinds import dppo_mask
from agentrl.learner.losses.token_loss import sequence_mask, token_mask
from agentrl.learner.monitors import RatioStatistics
from tests.agentrl.helpers import frozen_logprobs, loss_config, toy_config
from tests.agentrl.test_learner import make_batch, make_learner, random_rows


def logs(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def worth(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rows(*index: int) -> Tensor:
    return torch.tensor(index, dtype=torch.long)


def test_dppo_leaves_out_what_moved_too_far_the_way_of_its_advantage() -> None:
    # p - p_behaviour: a rare token that grew tenfold (+.009), a common one (+.3), the same fall (-.3), and back
    new, behaviour = logs(0.01, 0.8, 0.3, 0.3, 0.8), logs(0.001, 0.5, 0.6, 0.6, 0.5)
    advantages = worth(1.0, 1.0, -1.0, 1.0, -1.0)
    keep = dppo_mask(new, behaviour, advantages, low=0.2, high=0.2)
    assert keep.tolist() == [True, False, False, True, True]
    # the ratio clip does the opposite: it stops the rare token at a ratio of 10 and lets 1.19 x .8 through
    assert dppo_mask(new, behaviour, advantages, low=0.4, high=0.4).all()
    assert dppo_mask(new, behaviour, advantages, low=0.2, high=0.4).tolist() == [True, True, False, True, True]
    assert dppo_mask(new, behaviour, advantages, low=0.4, high=0.2).tolist() == [True, False, True, True, True]


def test_dppo_keeps_a_token_whose_probability_moved_just_to_the_limit() -> None:
    keep = dppo_mask(logs(0.75, 0.25), logs(0.5, 0.5), worth(1.0, -1.0), low=0.25, high=0.25)
    assert keep.all()


def test_dppo_treats_a_token_without_advantage_like_a_bad_one() -> None:
    keep = dppo_mask(logs(0.1, 0.9), logs(0.5, 0.5), worth(0.0, 0.0), low=0.2, high=0.2)
    assert keep.tolist() == [False, True]


def test_dppo_loss_weighs_by_the_policy_that_sampled_unless_the_mismatch_is_corrected_apart() -> None:
    new, old, behaviour, advantages = logs(0.4, 0.1), logs(0.2, 0.2), logs(0.1, 0.4), worth(1.0, -2.0)
    plain = loss_config(kind="dppo", tis_cap=0.0).policy_loss()(new, old, behaviour, advantages, rows(0, 0))
    assert plain.tolist() == pytest.approx([-4.0, 0.5])
    corrected = loss_config(kind="dppo", tis_cap=2.0).policy_loss()(new, old, behaviour, advantages, rows(0, 0))
    assert corrected.tolist() == pytest.approx([-2.0, 1.0])


def test_sequence_mask_by_its_worst_token_leaves_out_the_whole_row() -> None:
    # squares / 2: row 0 .02 .005, row 1 .08 0, row 2 .08 (downward)
    drift = worth(0.2, -0.1, 0.4, 0.0, -0.4)
    index = rows(0, 0, 1, 1, 2)
    keep = sequence_mask(drift, torch.zeros(5), index, kind="max", limit=0.05)
    assert keep.tolist() == [True, True, False, False, False]
    assert sequence_mask(drift, torch.zeros(5), index, kind="max", limit=0.0801).all()
    half = worth(0.5)  # .125, a number that floats hold exactly
    for limit, kept in ((0.125, True), (0.1249, False), (0.1, False)):
        assert sequence_mask(half, torch.zeros(1), rows(0), kind="max", limit=limit).tolist() == [kept]


def test_sequence_mask_by_its_mean_forgives_one_bad_token() -> None:
    # k3: ln 2 -> 2 - 1 - .693147 = .306853; 0 -> 0; ln .5 -> .5 - 1 + .693147 = .193147
    drift = torch.tensor([math.log(2), 0.0, 0.0, 0.0, math.log(0.5)], dtype=torch.float64)
    index = rows(0, 0, 0, 0, 1)  # means .076713 and .193147
    for limit, expected in ((0.0767, [False] * 5), (0.0768, [True] * 4 + [False]), (0.1932, [True] * 5)):
        keep = sequence_mask(drift, torch.zeros(5), index, kind="mean", limit=limit)
        assert keep.tolist() == expected


@pytest.mark.parametrize("kind", ["max", "mean"])
def test_sequence_mask_leaves_out_what_is_not_a_number_and_takes_no_tokens(kind: str) -> None:
    keep = sequence_mask(worth(math.nan, 0.0, 0.0), torch.zeros(3), rows(0, 0, 1), kind=kind, limit=1.0)
    assert keep.tolist() == [False, False, True]
    assert sequence_mask(torch.zeros(0), torch.zeros(0), rows(), kind=kind, limit=1.0).tolist() == []


def test_token_mask_joins_both_masks_and_is_none_where_nothing_masks() -> None:
    new, behaviour, advantages, index = logs(0.9, 0.5, 0.5), logs(0.5, 0.5, 0.5), worth(1.0, 1.0, 1.0), rows(0, 0, 1)

    def keep(**changes: object) -> Tensor | None:
        return token_mask(loss_config(**changes), new, behaviour, advantages, index)  # type: ignore[arg-type]

    assert keep() is None
    for kind, sequence, expected in (
        ("dppo", "off", [False, True, True]),
        ("clip", "max", [False, False, True]),  # ln(1.8)^2 / 2 = .1727
        ("dppo", "max", [False, False, True]),
        ("dppo", "mean", [False, True, True]),  # (.8 - ln 1.8) / 2 = .1061
    ):
        found = keep(kind=kind, sequence_mask=sequence, sequence_limit=0.11)
        assert found is not None
        assert found.tolist() == expected


def test_sequence_ess_multiplies_the_ratios_of_a_row() -> None:
    # row 0: ratios 2 and 1.5 -> 3; row 1: ratio 1. (3 + 1)^2 / (2 (9 + 1)) = .8
    new, old = logs(0.4, 0.3, 0.5), logs(0.2, 0.2, 0.5)
    sums = statistics(new, old, rows(0, 0, 1))
    assert (sums.rows, sums.row_weight, sums.row_weight_squared) == pytest.approx((2.0, 4.0, 10.0))
    assert sums.sequence_ess == pytest.approx(0.8)
    parts = statistics(new[:2], old[:2], rows(0, 0)) + statistics(new[2:], old[2:], rows(0))
    assert parts.sequence_ess == pytest.approx(0.8)
    assert RatioStatistics().sequence_ess == 1.0
    assert statistics(new[:0], old[:0], rows()) == RatioStatistics()
    assert math.isfinite(statistics(torch.full((900,), 9.0), torch.zeros(900), torch.zeros(900).long()).sequence_ess)


def statistics(new: Tensor, old: Tensor, index: Tensor) -> RatioStatistics:
    return RatioStatistics.of(new, old, torch.zeros_like(new), index, clip_range=(0.2, 0.2))


def sampled_rows(count: int) -> list[BatchRow]:
    """Rows whose rollout log-probs are the learner's own."""
    learner, drawn = make_learner(toy_config()), random_rows(count)
    for row in drawn:
        (part,) = learner.prepare(make_batch([row]))[0]
        row.logprobs[row.trained] = frozen_logprobs(learner, part).numpy()
    return drawn


@pytest.mark.parametrize(
    "loss",
    [
        {"kind": "dppo", "clip_low": 1e-3, "clip_high": 1e-3},
        {"sequence_mask": "max", "sequence_limit": 1e-3},
        {"sequence_mask": "mean", "sequence_limit": 1e-4},
    ],
)
def test_the_learner_masks_nothing_at_first_and_more_as_the_policy_drifts(loss: dict[str, object]) -> None:
    batch = make_batch(sampled_rows(8))
    config = {"gate": {"kind": "none"}, "learner": {"lr": 1e-2, "max_reuse": 4}}
    update = make_learner(toy_config(loss=loss, **config)).update(batch)
    masked = [step["masked"] for step in update.steps]
    assert masked[0] == 0
    assert masked[-1] > 0.2
    plain = make_learner(toy_config(**config)).update(batch)
    assert update.steps[0]["grad_norm"] == pytest.approx(plain.steps[0]["grad_norm"], rel=1e-5)
    assert "masked" not in plain.steps[0]


def test_a_masked_row_gives_no_gradient_and_stays_in_the_denominator() -> None:
    drawn = sampled_rows(4)
    drawn[0].logprobs[drawn[0].trained] -= 1.0  # k2 = .5: outside
    config = toy_config(gate={"kind": "none"}, loss={"sequence_mask": "max", "sequence_limit": 0.1})
    masked = make_learner(config)
    masked.backward(masked.prepare(make_batch(drawn))[0], 1)
    drawn[0].advantages[:] = 0
    without = make_learner(toy_config(gate={"kind": "none"}))
    without.backward(without.prepare(make_batch(drawn))[0], 1)
    for a, b in zip(masked.module.parameters(), without.module.parameters(), strict=True):
        np.testing.assert_allclose(a.grad, b.grad, rtol=1e-5, atol=1e-9)
