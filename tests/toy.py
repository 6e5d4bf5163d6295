"""A two-turn text environment for tests: fast, learnable, with every optional piece of `info`."""

import time
from typing import Any

import gymnasium

from agentrl.envs.spaces import FreeText

COLOURS = ("red", "green", "blue", "white")
SMALL_CONFIG = """
[env]
id = "tests.toy:ColourEnv"
eval_split = "test"
[model.tiny]
hidden_size = 32
intermediate_size = 64
num_heads = 2
num_kv_heads = 1
[rollout]
max_turns = 2
max_new_tokens = 4
max_context_tokens = 128
env_workers = 0
"""
"""Environment, model and limits of a toy experiment, as TOML."""
IMITATION = """
[warmstart]
episodes = 200
noise = 0.4
train_noise = true
passes = 8
"""
"""Its warm start, from which it succeeds now and then."""
TRAINING = """
[learner]
lr = 1e-3
[gate]
window = 4
[train]
groups_per_step = 4
group_size = 4
"""
"""How it learns; the number of batches, `steps = ...`, comes behind it."""


class ColourEnv(gymnasium.Env[str, str]):
    """Two turns: say the colour that is shown, then the colour shown before. Both right wins.

    `faults` maps "reset" or "step" to what goes wrong there: "raise", "hang", "exit"; `fault_seeds` limits it to some
    task indices.
    """

    metadata: dict[str, Any] = {}  # noqa: RUF012
    num_tasks = 64

    def __init__(
        self,
        split: str = "train",
        *,
        expert: str | None = None,
        faults: dict[str, str] | None = None,
        faulty_tasks: list[int] | None = None,
        flag: str | None = None,
    ) -> None:
        self.split, self.expert = split, expert
        self.faults, self.faulty_tasks, self.flag = faults or {}, faulty_tasks, flag
        self.observation_space, self.action_space = FreeText(), FreeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.task = (options or {}).get("task", int(self.np_random.integers(self.num_tasks)))
        offset = 0 if self.split == "train" else 1
        self.colours = [COLOURS[(self.task + self.task // 4 + offset) % 4], COLOURS[(self.task // 4) % 4]]
        self.turn, self.right = 0, 0
        self._fail("reset")
        return f"You see {self.colours[0]}.", self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._fail("step")
        valid = action.strip() in COLOURS
        self.right += action.strip() == self._wanted()
        self.turn += 1
        done = self.turn == 2
        info = {**self._info(), "is_valid_action": valid, "success": self.right == 2, "score": self.right / 2}
        return f"Now {self.colours[1]}. Which came first?", float(done and self.right == 2), done, False, info

    def _wanted(self) -> str:
        return self.colours[0]

    def _info(self) -> dict[str, Any]:
        info = {
            "category": self.colours[0],
            "task": f"{self.split}/{self.task}",
            "admissible_actions": list(COLOURS),
            "anchor": f"{self.task}/{self.turn}",
        }
        return {**info, "expert_action": self._wanted()} if self.expert else info

    def _fail(self, where: str) -> None:
        fault = self.faults.get(where)
        if fault is None or (self.faulty_tasks is not None and self.task not in self.faulty_tasks):
            return
        if self.flag is not None:  # fail once only: the second try finds the flag
            import pathlib

            if pathlib.Path(self.flag).exists():
                return
            pathlib.Path(self.flag).touch()
        if fault == "raise":
            raise ZeroDivisionError("the oven is on fire")
        if fault == "hang":
            time.sleep(3600)
        if fault == "exit":
            import os

            os._exit(7)


class NoExpertEnv(ColourEnv):
    """The same without an expert."""

    def __init__(self, split: str = "train") -> None:
        super().__init__(split)


class SlowEnv(ColourEnv):
    """The same, but the steps of one task take a moment."""

    def __init__(self, split: str = "train", *, slow_task: int) -> None:
        super().__init__(split)
        self.slow_task = slow_task

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.task == self.slow_task:
            time.sleep(0.3)
        return super().step(action)


class WaitingEnv(SlowEnv):
    """The same, and says so."""

    metadata: dict[str, Any] = {"blocking": True}  # noqa: RUF012
