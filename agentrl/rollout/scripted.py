"""Scripted policies: chance and oracle for evaluation, demonstrations for the warm start."""

from collections.abc import Callable
from typing import Any

import numpy as np

from agentrl.errors import UserError

ScriptedPolicy = Callable[[dict[str, Any], np.random.Generator], tuple[str, bool]]
"""(info of the last reset or step, random numbers) -> (answer, whether to imitate it)."""


def random_policy(info: dict[str, Any], random: np.random.Generator) -> tuple[str, bool]:
    """A uniformly drawn admissible action."""
    actions = info.get("admissible_actions")
    if not actions:
        raise UserError('this environment offers no info["admissible_actions"] to draw random actions from.')
    return str(actions[int(random.integers(len(actions)))]), False


def expert_policy(info: dict[str, Any], random: np.random.Generator) -> tuple[str, bool]:
    """The environment's own expert."""
    action = info.get("expert_action")
    if action is None:
        raise UserError('this environment offers no info["expert_action"] to imitate.')
    return str(action), True


def fallback_policy(info: dict[str, Any], random: np.random.Generator) -> tuple[str, bool]:
    """A random admissible action where there are any, else an empty answer: enough to see an environment's texts."""
    return random_policy(info, random) if info.get("admissible_actions") else ("", False)


def noisy_expert(noise: float, *, train_noise: bool) -> ScriptedPolicy:
    """The expert, except that a turn errs with probability `noise`, so that the student sees how to recover.

    Half of the errors are random admissible actions, half are a slip: the beginning of one action and the end of
    another, which the environment will mostly refuse.
    """

    def act(info: dict[str, Any], random: np.random.Generator) -> tuple[str, bool]:
        if not noise or not info.get("admissible_actions") or random.random() >= noise:
            return expert_policy(info, random)
        action = random_policy(info, random)[0]
        if random.random() < 0.5:
            action = _slip(expert_policy(info, random)[0], action, random)
        return action, train_noise

    return act


def _slip(first: str, second: str, random: np.random.Generator) -> str:
    """The first words of one action followed by the last words of another."""
    head, tail = first.split(), second.split()
    return " ".join(head[: int(random.integers(1, len(head) + 1))] + tail[int(random.integers(len(tail))) :])
