"""Which tasks are played next: a seeded stream for training, a fixed list for evaluation; the two never meet."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from agentrl.types import Task

EXPLORED = 0.1
"""Share of the tasks outside of the difficulty band that are played all the same: what was too hard may have become
possible, and a rate that nobody measures again stays what it was."""
_SEED_SPAN = 2**30
"""Environments without a task list: training seeds lie below this number, evaluation seeds above."""


class TaskSampler:
    """An endless, resumable stream of training tasks.

    Tasks are assigned by position, so the stream is the same on any number of processes. Enumerable tasks come in
    seeded permutations, each task once an epoch.

    Args:
        env_id: environment.
        split: split the tasks belong to.
        indices: task numbers of the split; None where the environment cannot enumerate.
        seed: seed of the order.
        band: tasks whose last success rate lies outside are passed over, all but `EXPLORED` of them.
    """

    def __init__(
        self, env_id: str, split: str, *, indices: list[int] | None, seed: int, band: tuple[float, float] | None = None
    ) -> None:
        self.env_id, self.split, self.indices, self.seed, self.band = env_id, split, indices, seed, band
        self.position = 0
        """Tasks given out so far."""
        self.place = 0
        """Tasks of the order that were given out or passed over."""
        self.rates: Mapping[int, float] = {}
        """Last success rate of tasks, by index."""

    def take(self, count: int) -> list[Task]:
        """The next `count` tasks."""
        return [self._next() for _ in range(count)]

    def learn(self, rates: Mapping[str, Mapping[int, float]]) -> None:
        """Take note of the success rates of tasks, by environment and index."""
        if self.band is not None:
            self.rates = {**self.rates, **rates.get("", {})}

    def fork(self) -> Self:
        """Another stream that stands where this one stands."""
        return copy.copy(self)

    def state_dict(self) -> dict[str, Any]:
        """Place in the stream, and what the band needs."""
        state: dict[str, Any] = {"position": self.position}
        return (
            state
            if self.place == self.position and not self.rates
            else {**state, "place": self.place, "rates": self.rates}
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a saved sampler stood."""
        self.position = int(state["position"])
        self.place = int(state.get("place", self.position))
        self.rates = {int(index): float(rate) for index, rate in state.get("rates", {}).items()}

    def _next(self) -> Task:
        while True:
            place, self.place = self.place, self.place + 1
            index = self._index(place)
            if self._is_wanted(place, index):
                break
        position, self.position = self.position, self.position + 1
        seed = int(np.random.default_rng((self.seed, place)).integers(_SEED_SPAN))
        return Task(self.env_id, self.split, seed, index, position)

    def _index(self, place: int) -> int | None:
        if self.indices is None:
            return None
        epoch, number = divmod(place, len(self.indices))
        return self.indices[int(_order(self.seed, epoch, len(self.indices))[number])]

    def _is_wanted(self, place: int, index: int | None) -> bool:
        rate = None if index is None else self.rates.get(index)
        if self.band is None or rate is None:
            return True
        low, high = self.band
        return low <= rate <= high or np.random.default_rng((self.seed, 2, place)).random() < EXPLORED


@lru_cache(maxsize=16)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, 1, epoch)).permutation(count)


class MixedSampler(TaskSampler):
    """A stream of tasks of several environments, each in the order in which it would come alone.

    The next task is of the environment that lags furthest behind its share, so any stretch of the stream holds all of
    them in proportion: weights 2 and 1 give A B A A B A ...

    Args:
        streams: one of every environment, by name.
        weights: how many tasks of each, relative to the others.
    """

    def __init__(self, streams: Mapping[str, TaskSampler], weights: Mapping[str, float]) -> None:
        self.streams, self.position = dict(streams), 0
        total = sum(weights.values())
        self.shares = {name: weights[name] / total for name in self.streams}

    def fork(self) -> Self:
        """Another stream that stands where this one stands."""
        other = copy.copy(self)
        other.streams = {name: stream.fork() for name, stream in self.streams.items()}
        return other

    def learn(self, rates: Mapping[str, Mapping[int, float]]) -> None:
        """Take note of the success rates of tasks, by environment and index."""
        for name, stream in self.streams.items():
            stream.learn({"": rates.get(name, {})})

    def _next(self) -> Task:
        position, self.position = self.position, self.position + 1
        name = max(self.streams, key=lambda n: self.shares[n] * self.position - self.streams[n].position)
        return replace(self.streams[name].take(1)[0], position=position, environment=name)

    def state_dict(self) -> dict[str, Any]:
        """Places in the streams."""
        streams = {name: stream.state_dict() for name, stream in self.streams.items()}
        return {"position": self.position, "streams": streams}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a saved sampler stood; an environment that was not there then begins where it would be now."""
        self.position = int(state["position"])
        for name, stream in self.streams.items():
            known = state.get("streams", {}).get(name)
            stream.load_state_dict(known or {"position": round(self.shares[name] * self.position)})


def evaluation_tasks(env_id: str, split: str, *, indices: list[int] | None, count: int | None) -> list[Task]:
    """Held-out tasks, each exactly once: all of a split, or an evenly spread part of it.

    Args:
        env_id: environment.
        split: split of the tasks.
        indices: task numbers of the split; None where the environment cannot enumerate.
        count: how many; None takes all of an enumerable split, else 64.
    """
    if indices is None:
        return [Task(env_id, split, _SEED_SPAN + i, None, i) for i in range(count or 64)]
    count = min(count or len(indices), len(indices))
    chosen = [indices[i * len(indices) // count] for i in range(count)]
    return [Task(env_id, split, _SEED_SPAN + i, index, i) for i, index in enumerate(chosen)]


def split_indices(
    *, split: str, eval_split: str, num_tasks: int | None, num_eval_tasks: int | None, eval_count: int | None
) -> tuple[list[int] | None, list[int] | None]:
    """Task numbers for training and for evaluation that never overlap.

    Where both use one split of an enumerable environment, the last tasks (`eval_count`, at most a fifth) are held out.
    """
    if num_tasks is None or num_eval_tasks is None:
        return (None if num_tasks is None else list(range(num_tasks))), (
            None if num_eval_tasks is None else list(range(num_eval_tasks))
        )
    if split != eval_split:
        return list(range(num_tasks)), list(range(num_eval_tasks))
    held_out = max(1, min(eval_count or 64, num_tasks // 5))
    return list(range(num_tasks - held_out)), list(range(num_tasks - held_out, num_tasks))
