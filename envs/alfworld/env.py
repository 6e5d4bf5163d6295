"""ALFWorld as a Gymnasium environment: text in, text out."""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import gymnasium
from gymnasium.utils import EzPickle

from agentrl.common.data_source import DataSource
from agentrl.envs.alfworld.experts import EXPERTS, ExploringExpert, HouseholdExpert, WalkthroughExpert
from agentrl.envs.alfworld.protocols import drawn_tasks
from agentrl.envs.alfworld.sources import Games, load_game, open_games
from agentrl.envs.alfworld.stock import StockEngine
from agentrl.envs.alfworld.text_engine import TextEngine
from agentrl.envs.alfworld.texts import DIALECTS
from agentrl.envs.options import check_at_least, check_choice, choose_task
from agentrl.envs.spaces import FreeText

BACKENDS = ("native", "textworld")
_EVAL_SPLITS = ("valid_seen", "valid_unseen")


class ALFWorldEnv(gymnasium.Env[str, str], EzPickle):
    """One household task per episode, in the words of the stock engine.

    Observations and actions are text. An action that is no admissible command (outer blanks aside) is answered with
    "Nothing happens." and costs a step. The reward of a step is 1.0 while the goal holds after it, else 0.0, and
    `terminated` says the same; stepping on plays on. `gymnasium.make` adds the benchmark's limit of 50 steps.

    Tasks are numbered 0 to `num_tasks` - 1: `reset(options={"task": i})` plays task i, a game's name works as well, and
    `reset(seed=s)` draws one.
    info: `admissible_actions` (sorted), `success`, `score`, `category` (the task type), `anchor` (equal for equal
    states of a game), `task` (the game's path below json_2.1.1; at reset), `is_valid_action` (was admissible; at
    steps), and `expert_action` where an expert is asked for.

        env = gymnasium.make("agentrl/ALFWorld-v0", split="valid_unseen", data="generated")
        observation, info = env.reset(options={"task": 0})
        observation, reward, terminated, truncated, info = env.step("go to drawer 1")

    Args:
        split: "train", "valid_seen" or "valid_unseen"; an official folder has others, too.
        data, task_types, room_size, num_games, data_seed: see `agentrl.envs.alfworld.sources.open_games`.
        grammar: "move" (current) or "put" (data before 2.1.2).
        expert: None, "exploring" ("default") or "walkthrough".
        backend: "native" or "textworld" (the stock engine, needs the extra "alfworld").
        eval_draws: the tasks of valid_seen and valid_unseen are so many games drawn as verl-agent does (128 there),
            some of them twice, instead of every game once; other splits stay as they are.
    """

    metadata: dict[str, Any] = {"render_modes": [], "eval_split": "valid_unseen"}  # noqa: RUF012 - declared so by the base class

    def __init__(
        self,
        split: str = "train",
        *,
        data: str | os.PathLike[str] | None = None,
        grammar: str = "move",
        expert: str | None = None,
        task_types: str | int | Sequence[str | int] | None = None,
        backend: str = "native",
        room_size: str | None = None,
        num_games: int | None = None,
        data_seed: int | None = None,
        eval_draws: int | None = None,
    ) -> None:
        games: dict[str, Any] = {
            "data": data, "grammar": grammar, "task_types": task_types, "room_size": room_size,
            "num_games": num_games, "data_seed": data_seed,
        }  # fmt: skip
        EzPickle.__init__(self, split, **games, expert=expert, backend=backend, eval_draws=eval_draws)
        check_choice("grammar", grammar, DIALECTS)
        check_choice("expert", expert, (None, "default", *EXPERTS))
        check_choice("backend", backend, BACKENDS)
        check_at_least("eval_draws", eval_draws)
        self.split, self._grammar, self._expert_name = split, grammar, expert
        self._games: Games = open_games(split, **games)
        is_drawn = eval_draws is not None and split in _EVAL_SPLITS
        self._tasks = _draw(len(self._games), eval_draws) if is_drawn else range(len(self._games))
        self._stock = StockEngine() if backend == "textworld" else None
        self._engine: TextEngine | StockEngine | None = None
        self._expert: HouseholdExpert | None = None
        self._index = 0
        self.observation_space = FreeText()
        self.action_space = FreeText()

    @property
    def num_tasks(self) -> int:
        """Number of tasks: the games of the split, or `eval_draws`."""
        return len(self._tasks)

    @property
    def data_source(self) -> DataSource:
        """Where the games come from; the digest is that of the split, however many of its games are drawn."""
        return replace(self._games.data_source, count=self.num_tasks)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start task `options["task"]` (a number or a name), or one drawn from the environment's generator."""
        super().reset(seed=seed)
        task = (options or {}).get("task")
        if isinstance(task, str):
            index = self._games.find(task)
        else:
            index = self._tasks[choose_task(self.np_random, options, self.num_tasks)]
        self._index = index
        game = load_game(self._games, index, self._grammar)
        if self._stock is not None:
            self._stock.load(game, self._games.content(index))
        self._engine = self._stock or TextEngine(game)
        observation = self._engine.reset()
        self._expert = self._make_expert(observation)
        return observation, self._info() | {"task": self._engine.game.name}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Send one command to the game."""
        engine = self._engine
        if engine is None:
            raise gymnasium.error.ResetNeeded("reset must be called before step.")
        is_valid = action.strip() in engine.admissible
        observation = engine.step(action)
        if self._expert is not None:
            self._expert.observe(action, observation)
        return observation, float(engine.won), engine.won, False, self._info() | {"is_valid_action": is_valid}

    def task_content(self) -> dict[str, Any]:
        """What determines the score of the present task: its game."""
        return self._games.definition(self._index)

    def _make_expert(self, observation: str) -> HouseholdExpert | None:
        assert self._engine is not None
        if self._expert_name is None:
            return None
        if self._expert_name == "walkthrough":
            return WalkthroughExpert(self._engine if isinstance(self._engine, TextEngine) else self._engine.native)
        return ExploringExpert(observation, grammar=self._grammar)

    def _info(self) -> dict[str, Any]:
        engine = self._engine
        assert engine is not None
        info = {
            "admissible_actions": engine.admissible.copy(),
            "success": engine.won,
            "score": float(engine.won),
            "category": engine.game.category,
            "anchor": engine.anchor,
        }
        if self._expert is not None:
            info["expert_action"] = self._expert.act()
        return info


@cache
def _draw(num_games: int, num_draws: int) -> Sequence[int]:
    """The same draws in every environment of the process."""
    return drawn_tasks(num_games, num_draws=num_draws)
