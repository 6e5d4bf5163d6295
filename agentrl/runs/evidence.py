"""What a diagnosis looks at: the last rollout batches, and what was best before them; and what it finds. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agentrl.config.schema import Config
from agentrl.types import Metrics

BATCHES = 3
"""A batch may be unlucky, and two; a cause that lies in settings or environment is there in each. By the third there is
still most of a run to save."""
EPISODES = 100
"""Fewer are no evidence: what succeeds once in 30 times is missed by 100 episodes in 3 of 100 cases. With small batches
more than three are looked at."""
SOLVED = 0.9
"""Success from which equal groups, certainty and short thoughts are an end and no trouble."""


@dataclass(frozen=True)
class Cause:
    """One cause why a run does not learn, or not what it should, as it should be told."""

    code: str
    """One word for records: `cut_turns`."""
    step: int
    """Rollout batch by which it was found; 0: from the settings."""
    sentence: str
    """What was seen, with numbers."""
    remedy: str
    """What to set or change."""

    def __str__(self) -> str:
        return f"{self.sentence} {self.remedy}"


@dataclass(frozen=True)
class Seen:
    """The last batches, and what stood in the record before them."""

    batches: Sequence[Metrics]
    """Records of the last batches."""
    before: Metrics
    """The record before them; empty at a run's beginning."""
    config: Config
    """The experiment."""
    learned: bool
    """Whether there ever was a group with a better and a worse member."""
    highest: Mapping[str, float]
    """The most that a number was in all of some earlier last batches."""
    rewards: tuple[float, float]
    """The smallest and the largest reward of an episode so far."""
    unused: int
    """Batches in a row, up to now, that the gate closed before they were used again."""

    def least(self, key: str) -> float:
        """The smallest value of a number over the batches; 0 where one lacks it."""
        return float(min(record.get(key, 0.0) for record in self.batches))

    def most(self, key: str) -> float:
        """The largest value of a number over the batches; infinite where one lacks it."""
        return float(max(record.get(key, float("inf")) for record in self.batches))

    def total(self, key: str) -> float:
        """The sum of a number over the batches."""
        return float(sum(record.get(key, 0) for record in self.batches))

    def spent(self, key: str) -> float:
        """How much a running total grew over the batches."""
        return float(self.batches[-1][key] - self.before.get(key, 0))

    @property
    def episodes(self) -> int:
        """Played in these batches."""
        return int(self.spent("cost/episodes"))

    @property
    def is_equal(self) -> bool:
        """Whether no group had a better and a worse member."""
        return not any(record["batch/mixed_groups"] for record in self.batches)

    @property
    def is_solved(self) -> bool:
        """Whether there is little left to learn."""
        return self.least("rollout/success") >= SOLVED

    @property
    def reward(self) -> float | None:
        """The reward that every episode got; None where there are several."""
        ends = {end for record in self.batches for end in reward_ends(record)}
        return float(ends.pop()) if len(ends) == 1 else None

    @property
    def is_from_scratch(self) -> bool:
        """Whether the model has learned nothing before."""
        return self.config.model.path == "tiny" and not self.config.warmstart.episodes

    def find(self, code: str, sentence: str, remedy: str) -> Cause:
        """A cause that these batches show."""
        step = self.batches[-1]["step"]
        return Cause(code, step, f"batches {self.batches[0]['step']} to {step}: {sentence}", remedy)


def reward_ends(record: Metrics) -> tuple[float, float]:
    """The smallest and the largest reward of a batch; older records have the mean alone."""
    mean = float(record["rollout/reward"])
    return record.get("rollout/reward_min", mean), record.get("rollout/reward_max", mean)


class Evidence:
    """A run's batches as they come; no more are kept than are evidence.

    Args:
        config: the experiment.
        remembered: numbers whose highest value is compared with later ones.
    """

    def __init__(self, config: Config, *, remembered: Sequence[str]) -> None:
        self.config = config
        self._highest = dict.fromkeys(remembered, 0.0)
        self._batches: list[Metrics] = []
        self._rewards = (float("inf"), float("-inf"))
        self._learned, self._unused = False, 0

    def take(self, record: Metrics) -> Seen | None:
        """With the next batch's record: as few of the last ones as are evidence; None where there are not enough."""
        low, high = reward_ends(record)
        self._batches.append(record)
        self._learned = self._learned or bool(record["batch/mixed_groups"])
        self._rewards = min(low, self._rewards[0]), max(high, self._rewards[1])
        closed, steps = record.get("learner/gate_closed", False), record.get("learner/steps", 0)
        if closed or steps:  # a batch that teaches nothing asks no gate
            self._unused = self._unused + 1 if closed and steps <= 1 else 0
        begin = self._begin()
        if begin is None:
            return None
        before = self._batches[begin - 1] if begin else {}
        batches = self._batches[begin:]
        seen = Seen(
            batches, before, self.config, self._learned, dict(self._highest), self._rewards, self._unused
        )  # fmt: skip
        self._highest = {key: max(value, seen.least(key)) for key, value in self._highest.items()}
        self._batches = self._batches[-len(batches) - 1 :]  # with the one before them
        return seen

    def _begin(self) -> int | None:
        """Where the last batches begin that are evidence."""
        end = self._batches[-1]["cost/episodes"]
        for begin in range(len(self._batches) - BATCHES, -1, -1):
            before = self._batches[begin - 1] if begin else {}
            if end - before.get("cost/episodes", 0) >= EPISODES:
                return begin
        return None
