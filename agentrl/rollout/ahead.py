"""The stream of rollout batches: each is played when it is needed, or one step ahead of the learner.

    rollout.ahead = 0                            rollout.ahead = 1
    rollouts │ 1 │     │ 2 │     │ 3 │           rollouts │ 1 │ 2   │ 3   │ 4
    learner  │   │  1  │   │  2  │   │  3        learner  │   │  1  │  2  │  3
    weights    0         1         2             weights    0   0     1     2       that play the batch

Ahead, batch t + 1 is played with the weights after batch t - 1 while the learner uses batch t, and both meet behind it:
the lag is fixed, whoever is faster, so a run repeats bit by bit. Only the first batch is waited for.

What is played may depend on what was: a batch is refilled until enough groups differ (`train.refill`), tasks outside of
a band of success rates are passed over, the slowest groups go on in the next batch (`rollout.spare_groups`).

A checkpoint lies where both have met. It keeps the batch that is ready, finished and not yet learned from; a resumed
run begins with it and never plays it again, whatever the engine.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from agentrl.config.schema import TrainConfig
from agentrl.errors import Unplayable
from agentrl.model.processes import ALONE, Processes
from agentrl.rollout.process import DistantRollout
from agentrl.rollout.quota import Quota
from agentrl.rollout.rollout import Rollout
from agentrl.rollout.rollout_batch import RolloutBatch
from agentrl.rollout.tasks import TaskSampler
from agentrl.types import Task, Trajectory


class BatchStream:
    """Batches in the order of their tasks, this process's share of each.

    Args:
        rollout: plays; a `DistantRollout` is asked one step ahead.
        sampler: the stream of tasks; stands behind the last batch that is ready or was taken.
        config: how many tasks, how often each.
        processes: who shares the tasks.
    """

    def __init__(
        self, rollout: Rollout, sampler: TaskSampler, config: TrainConfig, *, processes: Processes = ALONE
    ) -> None:
        self.rollout, self.sampler, self.config, self.processes = rollout, sampler, config, processes
        self._ready: RolloutBatch | None = None
        self._failure: Unplayable | None = None
        self._is_in_flight = False
        self._behind = sampler
        """The stream of tasks as it stands behind the batch that is being played."""
        self._new: list[Task] = []
        """Tasks of that batch that come from the stream, this process's."""
        self._put_off: list[Task] = []
        """Tasks that come first in the next batch, this process's."""
        self._kept: dict[tuple[int, int], Trajectory] = {}
        """Their episodes that are over, by position and member."""
        refill, spare = config.refill or 1.0, rollout.config.spare_groups
        self._is_open = refill > 1 or spare > 0 or config.difficulty_band is not None
        """Whether what was played decides what is played next; the processes then tell each other."""

    def play(self) -> None:
        """Have a batch ready; may be abandoned, and its tasks then come again.

        Raises:
            Unplayable: not one whole group came back, now or while the learner worked.
        """
        if self._failure is not None:
            raise self._failure
        if self._ready is None:
            self._put(self.rollout.play(self._tasks(), **self._how()))

    def take(self, *, is_last: bool) -> RolloutBatch:
        """The batch that is ready; ahead, the next one is begun unless this is the last."""
        assert self._ready is not None, "played first"
        batch, self._ready = self._ready, None
        if isinstance(self.rollout, DistantRollout) and not is_last:
            self.rollout.begin(self._tasks(), **self._how())
            self._is_in_flight = True
        return batch

    def meet(self) -> dict[str, float]:
        """Wait for the batch in flight; how long that took. Why it could not be played is told by the next `play`."""
        if not isinstance(self.rollout, DistantRollout):
            return {}
        if not self._is_in_flight:
            return {"time/wait_s": 0.0}
        started = time.perf_counter()
        self._is_in_flight = False
        try:
            self._put(self.rollout.finish())
        except Unplayable as failure:
            self._failure = failure
            self._settle(None)
        return {"time/wait_s": time.perf_counter() - started}

    def state_dict(self) -> dict[str, Any]:
        """Place in the stream of tasks, the batch that is ready, and what was put off: of all processes, which must
        ask together."""
        parts = self.processes.gather(self._ready)
        ready = None if parts[0] is None else RolloutBatch.join([part for part in parts if part is not None])
        sampler = self.sampler.state_dict()
        if not self._is_open:
            return {"sampler": sampler, "ready": ready}
        others = self.processes.gather(RolloutBatch([], put_off=self._put_off, kept=list(self._kept.values())))
        pairs = zip(parts, others, strict=True)
        sampler["shares"] = [
            sorted(_positions(part) | {task.position for task in other.put_off}) for part, other in pairs
        ]
        return {"sampler": sampler, "ready": ready, "put_off": RolloutBatch.join(others)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there, on any number of processes."""
        self.sampler.load_state_dict(state["sampler"])
        ready: RolloutBatch | None = state["ready"]
        put_off: RolloutBatch = state.get("put_off") or RolloutBatch([])
        owns = self._owner(state["sampler"].get("shares"))
        if ready is not None:
            mine = [group for group in ready.groups if owns(group.task.position)]
            told = ready if self.processes.rank == 0 else RolloutBatch([])
            self._ready = replace(told, groups=mine, version=ready.version)
        self._put_off = [task for task in put_off.put_off if owns(task.position)]
        self._kept = {(t.task.position, t.member): t for t in put_off.kept if owns(t.task.position)}
        self._is_open = self._is_open or bool(put_off.put_off)

    def _owner(self, shares: list[list[int]] | None) -> Callable[[int], bool]:
        """Whether a position of a saved state belongs to this process."""
        rank, count = self.processes.rank, self.processes.count
        if shares is None:
            first = self.sampler.position - self.config.groups_per_step
            return lambda position: (position - first) % count == rank
        if len(shares) != count:  # another number of processes than saved it
            order = sorted(position for share in shares for position in share)
            shares = [order[number::count] for number in range(count)]
        return set(shares[rank]).__contains__

    def _tasks(self) -> list[Task]:
        """What this process may play: what was put off, then the next ones of the stream."""
        self._behind, count = self.sampler.fork(), self.config.groups_per_step
        if self._is_open:  # as many as the process with the largest share may need, for each
            count = self.processes.count * self._quota(0).most
        self._new = self.processes.share(self._behind.take(count))
        return [*self._put_off, *self._new]

    def _how(self) -> dict[str, Any]:
        """How they are played."""
        if not self._is_open:
            return {"group_size": self.config.group_size}
        return {"group_size": self.config.group_size, "known": self._kept, "quota": self._quota(self.processes.rank)}

    def _quota(self, rank: int) -> Quota:
        """A process's share of the groups, of those to spare, and of what refilling may take."""
        count, refill = self.processes.count, self.config.refill or 1.0
        wanted = len(range(rank, self.config.groups_per_step, count))
        spare = len(range(rank, self.rollout.config.spare_groups, count))
        return Quota(wanted, spare, math.ceil(refill * wanted) + spare, only_differing=refill > 1)

    def _put(self, batch: RolloutBatch) -> None:
        behind, put_off, kept = self._settle(batch)
        # One statement: signals are answered between calls, and a batch counts as played with its tasks taken.
        self._ready, self.sampler, self._put_off, self._kept = replace(batch, kept=[]), behind, put_off, kept

    def _settle(self, batch: RolloutBatch | None) -> tuple[TaskSampler, list[Task], dict[tuple[int, int], Trajectory]]:
        """(stream of tasks behind a batch, tasks put off, their episodes); of all processes, None where one failed.

        The stream goes on behind the last task that any process began; what others left before that is theirs to begin
        with. So no task is lost, and a process alone leaves none.
        """
        if not self._is_open:
            return self._behind, [], {}
        rank, count = self.processes.rank, self.processes.count
        num_begun = 0 if batch is None else batch.num_begun
        num_new = max(0, num_begun - len(self._put_off))
        taken = rank + 1 + (num_new - 1) * count if num_new else 0
        parts = self.processes.gather((taken, [] if batch is None else _rates(batch)))
        end = max(taken for taken, _ in parts)
        behind = self.sampler.fork()
        behind.take(end)
        behind.learn(_by_environment([rate for _, rates in parts for rate in rates]))
        left = [task for number, task in enumerate(self._new) if number >= num_new and rank + number * count < end]
        begun, waiting = [] if batch is None else batch.put_off, self._put_off[num_begun:]
        over = [t for t in self._kept.values() if t.task in waiting] + ([] if batch is None else batch.kept)
        return behind, [*begun, *waiting, *left], {(t.task.position, t.member): t for t in over}


_Rate = tuple[str, int, float]
"""Environment, index, success rate."""


def _rates(batch: RolloutBatch) -> list[_Rate]:
    tasks = [(group.task, group.success_rate) for group in batch.groups]
    return [(task.environment, task.index, rate) for task, rate in tasks if task.index is not None]


def _by_environment(rates: list[_Rate]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for environment, index, rate in rates:
        found.setdefault(environment, {})[index] = rate
    return found


def _positions(batch: RolloutBatch | None) -> set[int]:
    return set() if batch is None else {group.task.position for group in batch.groups}
