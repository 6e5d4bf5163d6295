"""How a model talks to an environment: Gymnasium wrappers from text to text."""

import re
from typing import Any

import gymnasium

_THINK_ACTION = (
    "Think step by step about what to do next, inside <think> and </think>. "
    "Then give exactly one action inside <action> and </action>."
)


class ThinkAction(gymnasium.Wrapper[str, str, str, str]):
    """The model reasons inside <think> tags and acts inside <action> tags.

    The first observation carries the instruction. An answer without exactly one non-empty action is passed on as its
    last 30 characters and marked `is_valid_action = False`.

    Args:
        env: text environment.
        list_admissible: append `info["admissible_actions"]` to every observation.
    """

    def __init__(self, env: gymnasium.Env[str, str], *, list_admissible: bool = True) -> None:
        super().__init__(env)
        self.list_admissible = list_admissible

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """First observation with the instruction."""
        observation, info = self.env.reset(seed=seed, options=options)
        return f"{self._with_actions(observation, info)}\n\n{_THINK_ACTION}", info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Send the text between the action tags."""
        command, well_formed = parse_think_action(action)
        observation, reward, terminated, truncated, info = self.env.step(command)
        info["is_valid_action"] = well_formed and info.get("is_valid_action", True)
        return self._with_actions(observation, info), float(reward), terminated, truncated, info

    def _with_actions(self, observation: str, info: dict[str, Any]) -> str:
        actions = info.get("admissible_actions")
        if not self.list_admissible or not actions:
            return observation
        return f"{observation}\nAdmissible actions: {', '.join(actions)}."


def parse_think_action(answer: str) -> tuple[str, bool]:
    """(command, well-formed) of an answer: one <think> block, then one non-empty <action> block.

    >>> parse_think_action("<think>milk is cold</think><action>open fridge 1</action>")
    ('open fridge 1', True)
    """
    actions = re.findall(r"<action>(.*?)</action>", answer, flags=re.DOTALL)
    command = actions[0].strip() if actions else answer.strip()[-30:]
    has_thought = re.search(r"<think>.*?</think>", answer, flags=re.DOTALL) is not None
    return command, bool(len(actions) == 1 and command and has_thought)


FORMATS: dict[str, type[gymnasium.Wrapper[str, str, str, str]] | None] = {"plain": None, "think_action": ThinkAction}
"""Values of `env.format`; anything else is `module:Wrapper`."""
