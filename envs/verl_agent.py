"""What verl-agent's protocols of several benchmarks have in common: reading an answer, and a window of steps.

Source: github.com/langfengQ/verl-agent, its projections and prompt builders. The wording of prompts is our own.
"""

import re
from typing import Any

from agentrl.envs.options import check_at_least

_ACTION_START, _ACTION_END = "<action>", "</action>"
_CHINESE = re.compile(r"[\u4e00-\u9fff]")


def project(answer: str, *, fallback_characters: int) -> tuple[str, bool]:
    """The action in a model's answer and whether the answer is well formed, as verl-agent decides it.

    The answer is lower-cased; the action is what stands between the first <action> and the first </action>. Where one
    of them is missing, the last characters are sent: 30 in ALFWorld, 20 in WebShop. Well formed are answers with both
    action tags, both think tags (in lower case) and no Chinese character; whether the action is admissible does not
    matter.

    >>> project("<think>it is closed</think><action>Open Fridge 1</action>", fallback_characters=30)
    ('open fridge 1', True)
    >>> project("open fridge 1", fallback_characters=8)
    ('fridge 1', False)
    """
    lowered = answer.lower()
    start, end = lowered.find(_ACTION_START), lowered.find(_ACTION_END)
    if start < 0 or end < 0:
        return lowered[-fallback_characters:], False
    action = lowered[start + len(_ACTION_START) : end].strip()
    return action, "<think>" in answer and "</think>" in answer and not _CHINESE.search(answer)


class PromptWindow:
    """A complete prompt for every step of an episode.

    Args:
        first: template where no past step is shown.
        later: template with {history}, and perhaps {num_steps} taken, {num_shown} of them, and the number {step} of
            the one to come.
        history_length: past steps shown.
    """

    def __init__(self, first: str, later: str, *, history_length: int) -> None:
        check_at_least("history_length", history_length, 0)
        self.first, self.later, self.history_length = first, later, history_length
        self._steps: list[str] = []

    def start(self) -> None:
        """Forget the steps of the episode before."""
        self._steps = []

    def add(self, step: str) -> None:
        """Remember a step, as the history tells it."""
        self._steps.append(step)

    def add_quoted(self, observation: str, action: str) -> None:
        """Remember an observation and the action taken on it."""
        number = len(self._steps) + 1
        self.add(f"[Observation {number}: '{observation}', Action {number}: '{action}']")

    @property
    def num_steps(self) -> int:
        """Steps taken."""
        return len(self._steps)

    def prompt(self, *, longest: int | None = None, **fields: Any) -> str:
        """The prompt of the next step.

        Args:
            longest: characters; a longer prompt leaves the history out.
            fields: what else the templates hold.
        """
        shown = self._steps[max(0, self.num_steps - self.history_length) :]
        if shown:
            told = {"num_steps": self.num_steps, "num_shown": len(shown), "step": self.num_steps + 1}
            prompt = self.later.format(**fields, **told, history="\n".join(shown))
            if longest is None or len(prompt) <= longest:
                return prompt
        return self.first.format(**fields)
