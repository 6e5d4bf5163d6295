"""Rewards of one's own: a function that judges a whole episode."""

import math
from typing import Protocol

from agentrl.common.plugins import explain, find_callable
from agentrl.errors import RunError
from agentrl.types import Trajectory


class Reward(Protocol):
    """A reward of your own, named `env.reward = "module:function"`; it runs in the learner's process."""

    def __call__(self, trajectory: Trajectory) -> float:
        """The reward of a finished episode: see its turns (action, observation, reward), answer and metadata."""
        ...


class OwnReward:
    """A user's function, and what becomes of its number.

    Args:
        path: `module:function`.

    Raises:
        UserError: there is no such function.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._judge: Reward = find_callable(path, "env.reward")

    def give(self, trajectory: Trajectory) -> None:
        """Put the reward on the last turn and nothing on those before it; an episode without a turn has none.

        Raises:
            RunError: the function raised, or gave no finite number.
        """
        if not trajectory.turns:
            return
        try:
            reward = float(self._judge(trajectory))
        except Exception as error:
            raise RunError(f"env.reward: {self.path} raised {explain(error)}. Mend it and --resume the run.") from error
        if not math.isfinite(reward):
            raise RunError(f"env.reward: {self.path} must give a finite number, got {reward}.")
        for turn in trajectory.turns:
            turn.reward = 0.0
        trajectory.turns[-1].reward = reward
