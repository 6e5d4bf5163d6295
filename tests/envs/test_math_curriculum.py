"""The generated curriculum: right answers, disjoint splits, a pupil with one mistake a level."""

import re

import numpy as np
import pytest

from agentrl.envs.math.curriculum import LEVELS, make_problem, make_problems, solve
from agentrl.envs.math.env import MathEnv

TRAIN = make_problems(split="train", num_problems=4000)
TEST = make_problems(split="test", num_problems=500)


def evaluate(text: str) -> int:
    """An independent reading of a problem's text."""
    if match := re.fullmatch(r"x\+(\d+)=(\d+)", text):
        return int(match[2]) - int(match[1])
    if match := re.fullmatch(r"(\d+)\*\((\d+)-(\d+)\)", text):
        return int(match[1]) * (int(match[2]) - int(match[3]))
    if match := re.fullmatch(r"(\d+)\+(\d+)\*(\d+)", text):
        return int(match[1]) + int(match[2]) * int(match[3])
    match = re.fullmatch(r"(\d+)([+-])(\d+)", text)
    assert match, text
    return int(match[1]) + (1 if match[2] == "+" else -1) * int(match[3])


def test_problems_when_made_then_have_the_right_answer():
    assert all(evaluate(problem.problem) == int(problem.answer) for problem in (*TRAIN, *TEST))


def test_splits_when_made_then_are_disjoint_distinct_and_hold_every_level():
    train, test = {p.problem for p in TRAIN}, {p.problem for p in TEST}
    assert not train & test
    assert (len(train), len(test)) == (len(TRAIN), 500)
    assert {p.metadata["subject"] for p in TEST} == set(LEVELS)
    larger = {p.problem for p in make_problems(split="train", num_problems=20_000)}
    assert not larger & test
    # An evenly spread part meets every level.
    assert {p.metadata["level"] for p in TEST[::5]} == {1, 2, 3, 4, 5}


def test_problems_when_the_seed_differs_then_differ_and_else_repeat():
    make_problems.cache_clear()
    again = make_problems(split="test", num_problems=500)
    assert again == TEST
    assert make_problems(split="test", num_problems=500, seed=1) != TEST
    assert {p.metadata["level"] for p in make_problems(split="test", num_problems=50, levels=(1, 3))} == {1, 3}


@pytest.mark.parametrize(
    ("level", "numbers", "problem", "right", "wrong"),
    [
        (1, (47, 38), "47+38", r"7+8=15 4+3+1=8 \boxed{85}", r"7+8=15 4+3=7 \boxed{75}"),
        (2, (52, 17), "52-17", r"12-7=5 4-1=3 \boxed{35}", r"7-2=5 5-1=4 \boxed{45}"),
        (3, (3, 4, 2), "3+4*2", r"4*2=8 3+8=11 \boxed{11}", r"3+4=7 7*2=14 \boxed{14}"),
        (4, (7, 9, 5), "7*(9-5)", r"9-5=4 7*4=28 \boxed{28}", r"7*9=63 63-5=58 \boxed{58}"),
        (5, (38, 85), "x+38=85", r"x=85-38 15-8=7 7-3=4 \boxed{47}", r"x=85+38 5+8=13 8+3+1=12 \boxed{123}"),
    ],
)
def test_pupil_when_careful_or_mistaken_then_writes_the_documented_working(
    level: int, numbers: tuple[int, ...], problem: str, right: str, wrong: str
):
    made = make_problem(level, numbers)
    assert made.problem == problem
    assert solve(made) == right
    assert solve(made, np.random.default_rng(0), mistake_prob=1.0) == wrong


def test_experts_when_followed_then_the_careful_one_is_always_right_and_the_pupil_often_wrong():
    env = MathEnv(split="train", expert="careful", num_problems=500)
    assert all(_follow(env, task) == 1.0 for task in range(500))
    rewards = [_follow(MathEnv(split="train", expert="default", num_problems=500), task) for task in range(500)]
    assert 0.5 < sum(rewards) / 500 < 0.75
    rewards = [
        _follow(MathEnv(split="train", expert="default", mistake_prob=1.0, num_problems=500), t) for t in range(500)
    ]
    assert 0.1 < sum(rewards) / 500 < 0.35  # sums without a carry leave nothing to forget


def test_expert_when_not_asked_for_then_nothing_of_it_is_told():
    assert "expert_action" not in MathEnv().reset(seed=0)[1]


def _follow(env: MathEnv, task: int) -> float:
    _, info = env.reset(seed=task, options={"task": task})
    return env.step(info["expert_action"])[1]
