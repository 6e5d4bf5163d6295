"""The process that plays batches ahead: what it is made from, and its body. `RolloutProcess` is its other end."""

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing

from agentrl.common.event_loops import run_coroutine
from agentrl.common.streams import outliving_readers, print_anything
from agentrl.config.schema import Config, RolloutConfig
from agentrl.environment.played import PlayedEnvironment, close_all, played_environments
from agentrl.errors import InfrastructureError, RunError, Unplayable, UserError
from agentrl.rollout.chat import Chat, chat_for
from agentrl.rollout.engines.base import Completion, Engine, Sampling
from agentrl.rollout.engines.factory import make_engine
from agentrl.rollout.quota import Quota
from agentrl.rollout.rollout import Rollout
from agentrl.rollout.rollout_batch import RolloutBatch
from agentrl.runs.interruption import SIGNALS
from agentrl.types import Task, Trajectory

Known = Mapping[tuple[int, int], Trajectory] | None
"""Episodes that need not be played again, as `Rollout.play` takes them."""
LOOK_S = 1.0
"""Seconds between looks at whether anything moves in the process."""
_ALIGNMENT = 64
"""Tensors in shared memory begin at multiples of so many bytes."""


@dataclass(frozen=True)
class RolloutPlan:
    """What a rollout is made of, in whichever process."""

    experiment: Config
    split: str
    """`train` or `eval`."""
    config: RolloutConfig
    """Its limits."""
    seed: int

    def rollout(self, engine: Engine, chat: Chat, environments: Mapping[str, PlayedEnvironment]) -> Rollout:
        """The rollout, in this process."""
        return Rollout(engine, chat, environments, self.config, seed=self.seed)

    def environments(self) -> dict[str, PlayedEnvironment]:
        """What is played, in this process."""
        return played_environments(self.experiment.model_copy(update={"rollout": self.config}), self.split)


@dataclass(frozen=True)
class Order:
    """All that the process is made from."""

    module: Any
    """Its tensors lie in shared memory."""
    tokenizer: Any
    plans: Mapping[str, RolloutPlan]
    rank: int
    count: int
    folder: str
    version: int | None
    """Of the weights that the module holds; None before the first."""
    num_threads: int
    progress: torch.Tensor
    """[1], shared: changes whenever something moved."""
    path: list[str]


@torch.no_grad()
def share_memory(module: Any) -> None:
    """Move a module's parameters and buffers into one piece of shared memory, ties and values kept.

    Raises:
        UserError: the machine has too little of it.
    """
    tensors = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    sizes = [-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for tensor in tensors.values()]
    # only asked for its free space; nothing is written there by name
    place = Path("/dev/shm")  # nosec B108
    free = shutil.disk_usage(place).free if place.is_dir() else sum(sizes)
    if free < sum(sizes):  # writing to what is not there would end the process without a word
        raise UserError(
            f"rollout.ahead = 1 keeps the weights in shared memory, {sum(sizes) >> 20:,} MiB, but {place} has "
            f"{free >> 20:,} MiB left. Give it more (docker run --shm-size), or set rollout.ahead = 0."
        )
    memory = torch.empty(sum(sizes), dtype=torch.uint8).share_memory_()
    start = 0
    for tensor, size in zip(tensors.values(), sizes, strict=True):
        view = memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        tensor.data = view.copy_(tensor)
        start += size


def work(pipe: Connection, order: Order) -> None:
    """Body of the process."""
    for number in SIGNALS:  # a terminal and a scheduler reach all processes; the run's own decides, and ends this one
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.path[:] = order.path
    torch.set_num_threads(order.num_threads)
    print_anything()
    with outliving_readers():
        try:
            player = _Player(order, pipe)
        except Exception as error:
            pipe.send(("error", _portable(error)))
            return
        pipe.send(("ok", player.engine.mismatches))
        try:
            player.answer()
        finally:
            player.close()


class _Player:
    """Engine and rollouts inside the process."""

    def __init__(self, order: Order, pipe: Connection) -> None:
        self.order, self.pipe = order, pipe
        config = next(iter(order.plans.values())).config
        self.engine = make_engine(
            config, order.module, order.tokenizer, rank=order.rank, count=order.count, folder=order.folder
        )
        if order.version is not None:
            self.load(order.version)
        chat = chat_for(order.tokenizer, order.module, config)
        self.rollouts = {
            name: plan.rollout(self.engine, chat, plan.environments()) for name, plan in order.plans.items()
        }
        threading.Thread(target=self._show_progress, daemon=True).start()

    def answer(self) -> None:
        """Do what is asked until the pipe closes."""
        while True:
            try:
                method, *arguments = self.pipe.recv()
            except (EOFError, OSError):
                return
            try:
                result = getattr(self, method)(*arguments)
            except Exception as error:
                if is_out_of_memory(error):  # and so would be the next call, if something here has grown
                    self.pipe.send(("no memory", str(error).strip().partition("\n")[0]))
                    return
                self.pipe.send(("error", _portable(error)))
            else:
                self.pipe.send(("ok", result))

    def play(
        self, name: str, tasks: list[Task], group_size: int, tells: bool, known: Known, quota: Quota | None
    ) -> RolloutBatch:
        """A batch."""

        def tell(trajectory: Trajectory) -> None:
            self.pipe.send(("episode", trajectory))

        told = tell if tells else None
        return self.rollouts[name].play(tasks, group_size=group_size, on_episode=told, known=known, quota=quota)

    def load(self, version: int) -> None:
        """Take the weights that lie in the shared memory."""
        self.engine.load_weights(self.order.module.state_dict().items(), version=version)

    def generate(self, ids: list[int], sampling: Sampling, key: tuple[int, ...], session: str | None) -> Completion:
        """One turn."""
        return run_coroutine(self.engine.generate(ids, sampling, key=key, session=session))

    def score(self, ids: list[int], temperature: float) -> list[float]:
        """Log-probs of a row."""
        return run_coroutine(self.engine.score(ids, temperature=temperature))

    def release(self, session: str) -> None:
        """Free what is kept for a session."""
        self.engine.release(session)

    def close(self) -> None:
        """End worker processes and engine."""
        for rollout in self.rollouts.values():
            close_all(rollout.environments)
        self.engine.close()

    def _show_progress(self) -> None:
        """Change `progress` whenever tokens or steps were counted."""
        before = -1.0
        while True:
            steps = sum(rollout.num_steps for rollout in self.rollouts.values())
            moved = sum(self.engine.counts().values()) + steps
            if moved != before:
                self.order.progress.add_(1)
                before = moved
            time.sleep(LOOK_S)


def _end_with_parent() -> None:
    """End with a run that was killed, even in the middle of a batch."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory was refused, by Python or by torch, whose allocator for CPUs has no error of its own."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _portable(error: Exception) -> Exception:
    """An error as it is raised again in the learner's process: ours by their message, bugs with their traceback."""
    for kind in (Unplayable, InfrastructureError, RunError, UserError):
        if isinstance(error, kind):
            return kind(str(error))
    return RuntimeError("in the rollout process:\n" + "".join(traceback.format_exception(error)))
