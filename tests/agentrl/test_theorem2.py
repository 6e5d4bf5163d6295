"""Theorem 2: the head's gradient energy over c_max bounds the policy's chi-square from below, at every gradient."""

import pytest
import torch

from agentrl.model.head import HeadGradient, token_logprobs
from tests.agentrl.helpers import toy_config
from tests.agentrl.test_learner import make_batch, make_learner, random_rows


def test_largest_factor_when_tracked_then_it_is_c_max_of_lemma_2_over_active_tokens() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 5), torch.randn(11, 5)
    targets, advantages = torch.randint(11, (7,)), torch.randn(7)
    head = HeadGradient(with_factors=True)
    hidden.requires_grad_()
    logprobs, _ = token_logprobs(hidden, weight, targets, chunk=3, sink=head)
    coefficients = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.5, 0.0, 1.0]) * advantages  # two tokens are clipped
    logprobs.retain_grad()
    (logprobs * coefficients).sum().backward()
    errors = torch.nn.functional.one_hot(targets, 11) - (hidden @ weight.t()).softmax(-1)
    factors = advantages**2 * errors.square().sum(1) * hidden.square().sum(1)
    expected = factors[coefficients != 0].max()
    assert float(head.largest_factor(logprobs.grad, advantages)) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert head.energies == []


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_bound_when_a_batch_is_reused_then_it_holds_and_the_gradient_is_the_same(temperature: float) -> None:
    steps = {}
    for tracked in (True, False):
        config = toy_config(
            gate={"kind": "none"}, learner={"lr": 1e-2, "max_reuse": 4}, tracking={"head_bound": tracked},
            rollout={"temperature": temperature},
        )  # fmt: skip
        steps[tracked] = make_learner(config).update(make_batch(random_rows(12))).steps
    assert len(steps[True]) == 4
    assert steps[True][0]["head_bound"] > 0
    for step, plain in zip(steps[True], steps[False], strict=True):
        assert step["head_energy"] <= step["head_bound"] * (1 + step["chi_square"])
        assert {key: value for key, value in step.items() if key != "head_bound"} == plain
