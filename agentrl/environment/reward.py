"""Rewards of one's own: functions that judge a whole episode."""

import math
from collections.abc import Mapping
from typing import Protocol

from agentrl.common.plugins import explain, find_callable
from agentrl.errors import RunError, UserError
from agentrl.types import Trajectory

ENVIRONMENT = "environment"
"""Among the rewards: what the environment gave."""


class Reward(Protocol):
    """A reward of your own, in Python `agentrl.train(..., reward=it)`, in a config `env.reward = "module:function"`.

    It runs in the learner's process, once an episode, in the order in which episodes end.
    """

    def __call__(self, trajectory: Trajectory) -> float:
        """The reward of a finished episode, a finite number.

        Args:
            trajectory: `turns` (each with `action`, `observation`, `reward`, `is_valid`) or the same as `messages`;
                `first_observation`; `task` and its `name`; `reward`, what the environment gave; `success`; `info`, what
                it said last; `answer`, `metadata`, `category`; `num_trained_tokens`, the length of what was said.
        """
        ...


class OwnRewards:
    """A user's functions, and what becomes of their numbers.

    Args:
        rewards: `module:function`, or several with their weights; `environment` stands for what the environment gave.

    Raises:
        UserError: there is no such function.
    """

    def __init__(self, rewards: str | Mapping[str, float]) -> None:
        self.weights = {rewards: 1.0} if isinstance(rewards, str) else dict(rewards)
        if not self.weights:
            raise UserError("env.reward is an empty table; name functions with their weights, or leave it out.")
        short = [path.rpartition(":")[2] for path in self.weights]
        self.names = {
            path: path.replace(":", ".") if short.count(name) > 1 or (name == ENVIRONMENT != path) else name
            for path, name in zip(self.weights, short, strict=True)
        }
        self._judges: dict[str, Reward] = {
            path: _given if path == ENVIRONMENT else find_callable(path, "env.reward") for path in self.weights
        }

    def give(self, trajectory: Trajectory) -> None:
        """Put the weighted sum on the last turn and nothing on those before it; an episode without a turn has none.

        Raises:
            RunError: a function raised, or gave no finite number.
        """
        if not trajectory.turns:
            return
        found = {path: self._ask(path, trajectory) for path in self.weights}
        named = {self.names[path]: value for path, value in found.items()}
        trajectory.rewards = {ENVIRONMENT: trajectory.reward} | named
        for turn in trajectory.turns:
            turn.reward = 0.0
        trajectory.turns[-1].reward = sum(self.weights[path] * value for path, value in found.items())

    def _ask(self, path: str, trajectory: Trajectory) -> float:
        try:
            reward = float(self._judges[path](trajectory))
        except Exception as error:
            raise RunError(f"env.reward: {path} raised {explain(error)}. Mend it and --resume the run.") from error
        if not math.isfinite(reward):
            raise RunError(f"env.reward: {path} must give a finite number, got {reward}.")
        return reward


def _given(trajectory: Trajectory) -> float:
    return trajectory.reward
