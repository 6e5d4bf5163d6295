"""Prompt templates for math problems, as wrappers: `--env.format agentrl.envs.math.protocols:QwenSystem`.

The template changes a base model's score by a lot (understand-r1-zero), so it is part of the configuration, stands in
`info["metadata"]["template"]`, and has to be the same in every run that is compared.
"""

from typing import Any

import gymnasium


class PromptTemplate(gymnasium.Wrapper[str, str, str, str]):
    """Puts words around the problem, and a system message into `info["system"]`.

    Subclasses set the class attributes; `answer_format` is the one the words ask for, and the environment below must
    look for the answer there.
    """

    system: str | None = None
    prefix: str = ""
    suffix: str = ""
    answer_format: str = "boxed"

    def __init__(self, env: gymnasium.Env[str, str]) -> None:
        super().__init__(env)
        found = getattr(env.unwrapped, "answer_format", self.answer_format)
        if found != self.answer_format:
            raise ValueError(
                f"{type(self).__name__} asks for the answer format {self.answer_format!r}, the environment checks "
                f"{found!r}. Set the option answer_format = {self.answer_format!r}."
            )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """The problem inside the template."""
        problem, info = self.env.reset(seed=seed, options=options)
        if self.system is not None:
            info["system"] = self.system
        info["metadata"] = {**info.get("metadata", {}), "template": type(self).__name__}
        return f"{self.prefix}{problem}{self.suffix}", info


class QwenSystem(PromptTemplate):
    """Qwen's instruction as the system message (Qwen2.5-Math)."""

    system = r"Please reason step by step, and put your final answer within \boxed{}."


class QwenSuffix(PromptTemplate):
    """Qwen's instruction behind the problem."""

    suffix = "\n" + r"Please reason step by step, and put your final answer within \boxed{}."


class VerlBoxed(PromptTemplate):
    """verl's instruction for MATH-like data."""

    suffix = " " + r"Let's think step by step and output the final answer within \boxed{}."


class VerlHashes(PromptTemplate):
    """verl's instruction for GSM8K."""

    suffix = ' Let\'s think step by step and output the final answer after "####".'
    answer_format = "hashes"


class Dapo(PromptTemplate):
    """DAPO's instruction: a last line `Answer: ...`."""

    prefix = (
        "Solve the following math problem step by step. The last line of your response should be of the form "
        "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
    )
    suffix = '\n\nRemember to put your answer on its own line after "Answer:".'
    answer_format = "answer"
