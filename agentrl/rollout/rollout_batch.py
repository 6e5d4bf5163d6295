"""What came out of playing a batch of tasks."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from agentrl.types import Group, Row, Trajectory


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
        )
