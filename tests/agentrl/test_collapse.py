"""What the study of the collapse brings along: an environment of long answers, an engine of lower precision."""

import asyncio
import copy

import pytest
import torch

from agentrl.config.schema import RolloutConfig
from agentrl.rollout.engines.local import LocalEngine
from benchmarks.collapse import Bf16Engine, LongSums
from tests.agentrl.helpers import tiny_policy


def test_long_sums_are_the_last_digits_of_running_totals() -> None:
    env = LongSums(digits=3)
    problem, _ = env.reset(seed=0)
    digits = [int(digit) for digit in problem.split()]
    totals = [sum(digits[: i + 1]) % 10 for i in range(3)]
    answer = " ".join(map(str, totals))
    assert env.step(answer) == ("", 1.0, True, False, {"success": True})
    for wrong in (answer[:-1], f"{answer} 0", answer[:-1] + str((totals[-1] + 1) % 10)):
        env.reset(seed=0)
        assert env.step(wrong)[1] == 0.0


def test_the_expert_slips_as_often_as_it_is_told() -> None:
    env, right = LongSums(digits=100, slip_prob=0.007, expert="default"), 0
    for seed in range(400):
        right += env.step(env.reset(seed=seed)[1]["expert_action"])[1] == 1.0
    assert abs(right / 400 - 0.993**100) < 4 * 0.025  # four standard errors


@pytest.mark.filterwarnings("error")  # autocast would be off without the copy's own type
def test_the_engine_of_lower_precision_is_near_the_policy_and_follows_it() -> None:
    module, tokenizer = tiny_policy()
    config = RolloutConfig(max_concurrent=2, max_context_tokens=64)
    lower = Bf16Engine(module=module, tokenizer=tokenizer, config=config, rank=0, count=1)
    moved = copy.deepcopy(module)
    with torch.no_grad():
        for weight in moved.parameters():
            weight.mul_(1.5)
    ids = list(range(5, 25))

    def gap(policy: torch.nn.Module) -> float:
        exact = LocalEngine(policy, tokenizer, max_concurrent=2, max_context_tokens=64)
        pairs = zip(asyncio.run(exact.score(ids)), asyncio.run(lower.score(ids)), strict=True)
        return max(abs(a - b) for a, b in pairs)

    assert 1e-4 < gap(module) < gap(moved) / 5
    lower.load_weights(moved.state_dict().items(), version=1)
    assert 1e-4 < gap(moved) < gap(module) / 5
    assert module.dtype == torch.float32
