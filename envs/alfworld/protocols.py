"""How other frameworks let a model play ALFWorld.

`Conversation` is that of the DGG paper: the environment's own texts in one growing chat. `VerlAgentWindow` is that of
verl-agent, with which the GiGPO numbers were made: a fresh prompt for every step.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import gymnasium
import numpy as np

from agentrl.envs.options import check_at_least
from agentrl.envs.verl_agent import PromptWindow, project
from agentrl.envs.wrappers import ThinkAction

_FALLBACK_CHARACTERS = 30

_ROLE = "You are an expert agent that carries out household tasks in the ALFRED embodied environment."
_FIRST = "{role}\nYour current observation is: {observation}\n{actions}\n{instruction}"
_LATER = (
    "{role} Your task is to: {task}\n"
    "You have already taken {num_steps} step(s). The last {num_shown} observation(s) with the action taken on each:\n"
    "{history}\n"
    "You are now at step {step} and your current observation is: {observation}\n{actions}\n{instruction}"
)
_ACTIONS = "The admissible actions of the current situation are: [{}]."
_INSTRUCTION = (
    "\nIt is your turn to act. First reason step by step about the situation, enclosed in <think> </think> tags. "
    "Then choose one admissible action for this step and give it enclosed in <action> </action> tags."
)


def list_actions(admissible: Sequence[str]) -> str:
    """The admissible commands as verl-agent shows them: quoted, one a line, without `help`.

    >>> print(list_actions(["help", "inventory", "look"]))
    'inventory'
     'look'
    """
    return "\n ".join(f"'{command}'" for command in admissible if command != "help")


class Conversation(ThinkAction):
    """One growing chat of at most 50 steps, with <think> and <action> tags: the format `think_action` with the limits
    of the DGG paper (appendix G.1), which `configs/paper/alfworld_qwen3_4b.toml` sets: rows of 8,192 prompt and 8,192
    response tokens. The tokens of one answer are our choice, the paper is silent about them.
    """


class VerlAgentWindow(gymnasium.Wrapper[str, str, str, str]):
    """Every observation is a complete prompt: role, task, last steps, observation, admissible commands, instruction.

    For a context that shows the model the current observation only. The reward is `success_reward` times the game's.
    `is_valid_action` says whether the answer was well formed; verl-agent subtracts 0.1 where it was not, which is left
    to the learner. `anchor` becomes the raw observation, as verl-agent groups steps. The structure of the prompts is
    verl-agent's, the wording is our own.

    Args:
        env: ALFWorld.
        history_length: how many past steps a prompt shows.
        lists_admissible: whether prompts list the admissible commands.
        needs_admissible: whether an answer must also name an admissible command to be valid.
        success_reward: factor on the game's reward of 1.
    """

    def __init__(
        self,
        env: gymnasium.Env[str, str],
        *,
        history_length: int = 2,
        lists_admissible: bool = True,
        needs_admissible: bool = False,
        success_reward: float = 10.0,
    ) -> None:
        super().__init__(env)
        self.lists_admissible, self.needs_admissible = lists_admissible, needs_admissible
        self.success_reward = success_reward
        self._window = PromptWindow(_FIRST, _LATER, history_length=history_length)
        self._task = self._observation = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """The first prompt."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._task = observation.partition("Your task is to: ")[2]
        self._observation = observation
        self._window.start()
        return self._prompt(info), info | {"anchor": observation}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Send the command in the answer; returns the next prompt."""
        command, is_valid = project(action, fallback_characters=_FALLBACK_CHARACTERS)
        self._window.add_quoted(self._observation, command)
        observation, reward, terminated, truncated, info = self.env.step(command)
        self._observation = observation
        if self.needs_admissible:
            is_valid = is_valid and info["is_valid_action"]
        reward = self.success_reward * float(reward)
        info = info | {"is_valid_action": is_valid, "anchor": observation}
        return self._prompt(info), reward, terminated, truncated, info

    def _prompt(self, info: dict[str, Any]) -> str:
        return self._window.prompt(
            role=_ROLE,
            task=self._task,
            observation=self._observation,
            actions=_ACTIONS.format(list_actions(info["admissible_actions"])) if self.lists_admissible else "",
            instruction=_INSTRUCTION,
        )


def drawn_tasks(num_tasks: int, *, num_draws: int = 128, seed: int = 0, evaluation: int = 0) -> list[int]:
    """Task indices of an evaluation in verl-agent's manner, for comparison with published numbers.

    Each of `num_draws` workers shuffles all games by its own seed, `seed` + 1000 + i, and plays the next one in every
    evaluation: the games are drawn independently, some of them twice and two in five never. An exact evaluation
    plays every task once instead. Games count in sorted order here, in the file system's order there.

    >>> len(drawn_tasks(140)), max(drawn_tasks(140)) < 140
    (128, True)
    """
    check_at_least("num_tasks", num_tasks)
    return [
        next(islice(_shuffled_for_ever(num_tasks, seed + 1000 + worker), evaluation, None))
        for worker in range(num_draws)
    ]


def _shuffled_for_ever(num_tasks: int, seed: int) -> Iterator[int]:
    """All tasks in random order, then again in another one; the random numbers are those of TextWorld's pool."""
    generator, order = np.random.RandomState(seed), list(range(num_tasks))
    while True:
        generator.shuffle(order)
        yield from order
