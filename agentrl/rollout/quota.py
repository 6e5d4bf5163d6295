"""When a batch is enough: how many groups it shall hold, which of them count, and how many may be begun."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agentrl.types import Group, Status, Task, Trajectory


@dataclass(frozen=True)
class Quota:
    """What a process plays of a batch."""

    wanted: int
    """Groups that the batch shall hold."""
    spare: int = 0
    """Groups begun beyond them, all at once (`rollout.spare_groups`)."""
    most: int = 0
    """Groups that may be begun in all (`train.refill`)."""
    only_differing: bool = False
    """Whether only groups count whose outcomes differ; for every other one a further task is begun."""


class GroupsInPlay:
    """The groups of a batch while they are played.

    Without spare groups, which tasks are begun does not depend on who is faster: one more is begun for every group that
    does not count, so the batch ends with the first task of the stream behind which `wanted` groups count.

    Args:
        tasks: what may be played, in this order.
        group_size: episodes of each.
        quota: when it is enough; None plays all tasks.
    """

    def __init__(self, tasks: Sequence[Task], *, group_size: int, quota: Quota | None = None) -> None:
        self.tasks, self.group_size = tasks, group_size
        self.quota = quota or Quota(len(tasks), most=len(tasks))
        self.episodes_s: list[float] = []
        self.whole_s: list[float] = []
        self._started = time.perf_counter()
        self._members: list[list[Trajectory]] = []
        """Episodes that are over, of every group that was begun."""
        self._counting: list[int] = []
        """Numbers of the groups that count, as they became whole."""
        self._others: list[int] = []
        """Numbers of those that are over and do not count."""

    @property
    def is_enough(self) -> bool:
        """Whether the batch has what it shall hold: nobody takes another turn."""
        return len(self._counting) >= self.quota.wanted

    def begin(self) -> Iterator[int]:
        """Numbers of the groups to begin now."""
        asked = self.quota.wanted + self.quota.spare + (len(self._others) if self.quota.only_differing else 0)
        while not self.is_enough and len(self._members) < min(asked, self.quota.most, len(self.tasks)):
            self._members.append([])
            yield len(self._members) - 1

    def add(self, number: int, trajectory: Trajectory) -> None:
        """Take in an episode that is over."""
        self._members[number].append(trajectory)
        if len(self._members[number]) < self.group_size:
            return
        self.whole_s.append(time.perf_counter() - self._started)
        group = self._group(number)
        counts = group is not None and (group.outcomes_differ or not self.quota.only_differing)
        (self._counting if counts else self._others).append(number)

    def groups(self) -> list[Group]:
        """Those of the batch that can be learned from or compared, in the order of the tasks."""
        found = (self._group(number) for number in self._delivered())
        return [group for group in found if group is not None]

    def num_left_out(self) -> int:
        """Groups of the batch with too few whole episodes."""
        return sum(self._group(number) is None for number in self._delivered())

    def put_off(self) -> list[Task]:
        """Tasks that were begun and belong to the next batch."""
        return [self.tasks[number] for number in self._not_delivered()]

    def kept(self) -> list[Trajectory]:
        """Episodes of those tasks that are over and whole."""
        members = (t for number in self._not_delivered() for t in self._members[number])
        return [trajectory for trajectory in members if trajectory.status is not Status.FAILED]

    def played(self) -> list[Trajectory]:
        """All episodes that are over."""
        return [t for members in self._members for t in sorted(members, key=lambda t: t.member)]

    def _group(self, number: int) -> Group | None:
        whole = [t for t in self._members[number] if t.status is not Status.FAILED]
        if len(whole) < min(2, self.group_size):
            return None
        return Group(self.tasks[number], sorted(whole, key=lambda t: t.member))

    def _delivered(self) -> list[int]:
        return sorted([*self._counting[: self.quota.wanted], *self._others])

    def _not_delivered(self) -> list[int]:
        delivered = set(self._delivered())
        return [number for number in range(len(self._members)) if number not in delivered]
