"""What came out of playing a batch of tasks."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from agentrl.types import Group, Row, Task, Trajectory


@dataclass
class RolloutBatch:
    """Groups, and what it took to play them."""

    groups: list[Group]
    """Whole groups."""
    failures: list[Trajectory] = field(default_factory=list)
    """Episodes that no retry mended."""
    left_out: int = 0
    """Groups with too few whole episodes."""
    seconds: tuple[float, float] = (0.0, 0.0)
    """Wall and CPU seconds in this process."""
    counts: dict[str, float] = field(default_factory=dict)
    """What the engine counted meanwhile (tokens generated, tokens prefilled ...)."""
    version: int = 0
    """Weight updates that the engine had seen."""
    put_off: list[Task] = field(default_factory=list)
    """Tasks that were begun and go on in the next batch."""
    kept: list[Trajectory] = field(default_factory=list)
    """Their episodes that are over."""
    episodes_s: list[float] = field(default_factory=list)
    """Seconds that each episode took, in the order in which they ended."""
    whole_s: list[float] = field(default_factory=list)
    """Seconds from the beginning until each group was over, in the same order."""

    @property
    def num_begun(self) -> int:
        """Groups that were begun."""
        return len(self.groups) + self.left_out + len(self.put_off)

    @property
    def rows(self) -> list[Row]:
        """All rows."""
        return [row for group in self.groups for trajectory in group.trajectories for row in trajectory.rows]

    @classmethod
    def join(cls, parts: Sequence["RolloutBatch"]) -> "RolloutBatch":
        """What several processes played, in the order of the tasks; seconds are the first one's."""
        return cls(
            sorted((group for part in parts for group in part.groups), key=lambda group: group.task.position),
            [trajectory for part in parts for trajectory in part.failures],
            sum(part.left_out for part in parts),
            parts[0].seconds,
            {key: sum(part.counts.get(key, 0.0) for part in parts) for key in parts[0].counts},
            parts[0].version,
            [task for part in parts for task in part.put_off],
            [trajectory for part in parts for trajectory in part.kept],
            [seconds for part in parts for seconds in part.episodes_s],
            [seconds for part in parts for seconds in part.whole_s],
        )
