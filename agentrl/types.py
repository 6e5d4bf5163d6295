"""The words of the house: task, turn, row, trajectory, group, signal, verdict.

Plain data that both rooms, rollout and learner, understand. Shapes: L tokens of a row, T turns of a trajectory.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Task:
    """One thing to play: an environment, a seed, and (where tasks can be enumerated) an index."""

    env_id: str
    """Gymnasium id or `module:Class`."""
    split: str
    """Split handed to the environment."""
    seed: int
    """Seed of `reset`; the same for all members of a group."""
    index: int | None = None
    """Task number for `reset(options={"task": index})`; None where the environment cannot enumerate."""
    position: int = 0
    """Place in the stream of tasks; keys the random numbers of its episodes."""
    environment: str = ""
    """Which environment of a mixture (`Config.environments`); empty where there is one."""


class Status(StrEnum):
    """How an episode ended. Every trajectory has one."""

    TERMINATED = "terminated"
    """The environment ended the episode."""
    TRUNCATED = "truncated"
    """The environment's own step limit."""
    TURN_LIMIT = "turn_limit"
    """`rollout.max_turns` reached."""
    TOKEN_LIMIT = "token_limit"
    """No room left in the context for another turn."""
    FAILED = "failed"
    """An infrastructure failure that retries did not mend; never trained on."""


@dataclass
class Turn:
    """One action of the model and what the environment answered."""

    row: int
    """Index into `Trajectory.rows`."""
    start: int
    """First generated token in the row."""
    end: int
    """One past the last generated token in the row."""
    action: str
    """Text handed to the environment."""
    observation: str
    """Text that came back."""
    reward: float
    """Reward of the step."""
    is_valid: bool = True
    """False where the environment says that the action was not a valid one."""
    anchor: str | None = None
    """Equal for equal states before the action (GiGPO's step groups)."""
    finish: str = "stop"
    """`stop` (end of turn or stop string), `length` (token limit), or `refused` (by a server behind an API)."""
    imitate: bool = True
    """False where a demonstration acted at random and shall not be imitated."""
    counted: tuple[int, int] | None = None
    """(prompt, generated) tokens where a server behind an API counted them: the row's ids are then not the model's."""


@dataclass
class Row:
    """One token sequence the learner sees."""

    ids: NDArray[np.int32]
    """Token ids, [L]."""
    trained: NDArray[np.bool_]
    """True where the policy sampled the token, [L]. Nothing else is trained on."""
    logprobs: NDArray[np.float32]
    """Log-prob under the rollout policy at the sampling temperature, [L]; 0 where not sampled."""

    @property
    def num_trained_tokens(self) -> int:
        """Number of sampled tokens."""
        return int(self.trained.sum())


@dataclass
class Trajectory:
    """One episode: one row in a growing conversation, one row a turn in the `window` context."""

    task: Task
    member: int
    """0 .. group_size - 1."""
    rows: list[Row]
    turns: list[Turn]
    first_observation: str
    """Observation of `reset`."""
    status: Status
    policy_version: int = 0
    """Number of weight updates the rollout policy had seen."""
    success: bool = False
    """`info["success"]` at the end, else whether the environment's return reaches `env.success_threshold`."""
    tells_success: bool = True
    """Whether the environment said `info["success"]`."""
    score: float | None = None
    """`info["score"]` at the end, 0..1, where offered."""
    category: str = ""
    """`info["category"]`, for rates per category."""
    name: str = ""
    """`info["task"]`, a stable name of the task."""
    answer: str | None = None
    """`info["answer"]` at the end, where offered: what a majority vote counts."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """`info["metadata"]`: what the task is sorted by in tables, such as benchmark, subject and level."""
    error: str = ""
    """What failed, for `Status.FAILED`."""
    num_retries: int = 0
    """Infrastructure failures before this try."""
    verdict: str = ""
    """`info["verdict"]` at the end, where offered: what decided success (`agentrl/envs/math`)."""
    num_verdict_timeouts: int = 0
    """Turns whose check ran out of time (`info["verdict"]` "timeout"), and counted as wrong."""
    unasked_tokens: int = 0
    """Tokens of a first prompt that left no room for an answer, so that the task was never asked; 0 where it was."""
    info: dict[str, Any] = field(default_factory=dict)
    """All that the environment said last, and what it said at reset and not again; only while `env.reward` judges."""
    rewards: dict[str, float] = field(default_factory=dict)
    """What each function of `env.reward` gave, before its weight, and `environment`, the environment's own return."""
    advantage: float | None = None
    """Mean over its turns of what their tokens are worth; None before it is compared, and of evaluations."""

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as chat templates know it: `role` user (the environment) or assistant, and `content`."""
        said = [{"role": "user", "content": self.first_observation}]
        for turn in self.turns:
            said += [{"role": "assistant", "content": turn.action}, {"role": "user", "content": turn.observation}]
        return said

    @property
    def reward(self) -> float:
        """Return of the episode: the undiscounted sum of its rewards."""
        return float(sum(turn.reward for turn in self.turns))

    @property
    def outcome(self) -> tuple[bool, float]:
        """Success, and the return that the environment itself gave: never a reward of one's own."""
        return self.success, self.rewards.get("environment", self.reward)

    @property
    def num_trained_tokens(self) -> int:
        """Sampled tokens over all rows; as the server counted them, where one did."""
        if any(turn.counted for turn in self.turns):
            return sum(turn.counted[1] for turn in self.turns if turn.counted)
        return sum(row.num_trained_tokens for row in self.rows)

    @property
    def num_tokens(self) -> int:
        """Tokens over all rows, prompts and observations included."""
        return sum(len(row.ids) for row in self.rows)


@dataclass
class Group:
    """G trajectories of one task: what a group-relative advantage compares."""

    task: Task
    trajectories: list[Trajectory]

    @property
    def rewards(self) -> NDArray[np.float64]:
        """Returns, [G]."""
        return np.array([t.reward for t in self.trajectories], dtype=np.float64)

    @property
    def rewards_differ(self) -> bool:
        """Whether some episode did better than another: what advantages are made of."""
        return bool(np.ptp(self.rewards) > 0)

    @property
    def outcomes_differ(self) -> bool:
        """Whether not all of its episodes came to the same outcome: what `train.refill` looks at."""
        return len({t.outcome for t in self.trajectories}) > 1

    @property
    def success_rate(self) -> float:
        """Share of its episodes that succeeded."""
        return sum(t.success for t in self.trajectories) / len(self.trajectories)


Metrics = dict[str, Any]
"""A record of metrics.jsonl: mostly flat name -> number; `updates` and counts are nested."""
