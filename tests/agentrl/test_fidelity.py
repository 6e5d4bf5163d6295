"""What counts as rounding when log-probs are compared with transformers' own."""

import pytest
import torch

from agentrl.model.fidelity import agree, own_logprobs, shaking
from tests.agentrl.helpers import tiny_policy

OWN = torch.tensor([[-1.0, -3.0], [-2.0, -2.5]])  # spread 0.85, so that 4.3e-4 is the limit


@pytest.mark.parametrize(
    ("gap", "moved", "same"),
    [(4e-4, 0.0, True), (5e-4, 0.0, False), (1e-3, 1e-5, False), (1e-3, 6e-5, True), (0.1, 6e-5, False)],
)
def test_a_position_may_differ_as_far_as_rounding_moves_it(gap: float, moved: float, same: bool) -> None:
    ours, shaken = OWN.clone(), OWN.clone()
    ours[1, 0] += gap
    shaken[1, 1] -= moved
    assert agree(ours, OWN, torch.float32, shaken=lambda: shaken) == same
    assert agree(ours, OWN, torch.float32) == (gap < 4.3e-4)


def test_another_position_that_rounds_badly_excuses_nothing() -> None:
    ours, shaken = OWN.clone(), OWN.clone()
    ours[0, 0] += 1e-3
    shaken[1] += 0.1
    assert not agree(ours, OWN, torch.float32, shaken=lambda: shaken)


def test_single_values_are_positions_of_their_own() -> None:
    ours = OWN[:, 0] + torch.tensor([0.0, 1e-3])
    assert agree(ours, OWN[:, 0], torch.float32, shaken=lambda: OWN[:, 0] + torch.tensor([0.0, 6e-5]))
    assert not agree(ours, OWN[:, 0], torch.float32, shaken=lambda: OWN[:, 0] + torch.tensor([6e-5, 0.0]))


def test_shaking_moves_log_probs_by_rounding_and_ends() -> None:
    module, _ = tiny_policy()
    ids = list(range(5, 25))
    before = own_logprobs(module, ids, [4, 19])
    with shaking(module):
        moved = (own_logprobs(module, ids, [4, 19]) - before).abs().max()
    assert 0 < moved < 1e-4
    assert torch.equal(own_logprobs(module, ids, [4, 19]), before)
