"""The stream of rollout batches: each is played when it is needed, or one step ahead of the learner.

    rollout.ahead = 0                            rollout.ahead = 1
    rollouts │ 1 │     │ 2 │     │ 3 │           rollouts │ 1 │ 2   │ 3   │ 4
    learner  │   │  1  │   │  2  │   │  3        learner  │   │  1  │  2  │  3
    weights    0         1         2             weights    0   0     1     2       that play the batch

Ahead, batch t + 1 is played with the weights after batch t - 1 while the learner uses batch t, and both meet behind it:
the lag is fixed, whoever is faster, so a run repeats bit by bit. Only the first batch is waited for.

A checkpoint lies where both have met. It keeps the batch that is ready, finished and not yet learned from; a resumed
run begins with it and never plays it again, whatever the engine.
"""

import time
from dataclasses import replace
from typing import Any

from agentrl.config.schema import TrainConfig
from agentrl.errors import Unplayable
from agentrl.model.processes import ALONE, Processes
from agentrl.rollout.process import DistantRollout
from agentrl.rollout.rollout import Rollout
from agentrl.rollout.rollout_batch import RolloutBatch
from agentrl.rollout.tasks import TaskSampler


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

    def play(self) -> None:
        """Have a batch ready; may be abandoned, and its tasks then come again.

        Raises:
            Unplayable: not one whole group came back, now or while the learner worked.
        """
        if self._failure is not None:
            raise self._failure
        if self._ready is None:
            batch = self.rollout.play(self._tasks(), group_size=self.config.group_size)
            self._put(batch)

    def take(self, *, is_last: bool) -> RolloutBatch:
        """The batch that is ready; ahead, the next one is begun unless this is the last."""
        assert self._ready is not None, "played first"
        batch, self._ready = self._ready, None
        if isinstance(self.rollout, DistantRollout) and not is_last:
            self.rollout.begin(self._tasks(), group_size=self.config.group_size)
            self._is_in_flight = True
        return batch

    def meet(self) -> dict[str, float]:
        """Wait for the batch in flight; how long that took. Why it could not be played is told by the next `play`."""
        if not self._is_in_flight:
            return {}
        assert isinstance(self.rollout, DistantRollout)
        started = time.perf_counter()
        self._is_in_flight = False
        try:
            batch = self.rollout.finish()
        except Unplayable as failure:
            self._failure = failure
        else:
            self._put(batch)
        return {"time/wait_s": time.perf_counter() - started}

    def state_dict(self) -> dict[str, Any]:
        """Place in the stream of tasks, and the batch that is ready, of all processes, which must ask together."""
        parts = self.processes.gather(self._ready)
        ready = None if parts[0] is None else RolloutBatch.join([part for part in parts if part is not None])
        return {"sampler": self.sampler.state_dict(), "ready": ready}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there, on any number of processes."""
        self.sampler.load_state_dict(state["sampler"])
        ready: RolloutBatch | None = state["ready"]
        if ready is not None:
            first = self.sampler.position - self.config.groups_per_step
            rank, count = self.processes.rank, self.processes.count
            mine = [group for group in ready.groups if (group.task.position - first) % count == rank]
            told = ready if rank == 0 else RolloutBatch([])
            self._ready = replace(told, groups=mine, version=ready.version)

    def _tasks(self) -> list[Any]:
        self._behind = self.sampler.fork()
        return self.processes.share(self._behind.take(self.config.groups_per_step))

    def _put(self, batch: RolloutBatch) -> None:
        # One statement: signals are answered between calls, and a batch counts as played with its tasks taken.
        self._ready, self.sampler = batch, self._behind
