"""Engine and rollouts in a process of their own, which plays whole batches while the learner computes.

    learner's process                                     rollout process
    a copy of the module ──────── shared memory ────────► what its engine decodes with, or sends to its servers
    begin: (which rollout, tasks) ──────── pipe ────────► Rollout.play
    finish ◄────────────────────────────── pipe ───────── RolloutBatch

Weights change only while nothing is played. A process that dies, is out of memory, or in which nothing moves any more,
is started again and plays the same batch again with the same weights, which the shared memory still holds.
"""

import atexit
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch
import torch.multiprocessing

from agentrl.common.process_end import end_process
from agentrl.console import note
from agentrl.environment.played import PlayedEnvironment
from agentrl.environment.probe import resident_bytes
from agentrl.errors import RunError
from agentrl.rollout.chat import Chat
from agentrl.rollout.engines.base import Completion, Sampling
from agentrl.rollout.process_body import LOOK_S, Known, Order, RolloutPlan, share_memory, work
from agentrl.rollout.quota import Quota
from agentrl.rollout.rollout import Rollout
from agentrl.rollout.rollout_batch import RolloutBatch
from agentrl.types import Task, Trajectory

_MAX_RESTARTS = 2
"""Times a lost process is started again for one call."""
_END_S = 10.0
"""Patience for the process to end when it was asked to."""
_GROWTH_BYTES = 1 << 30
"""A process that has grown by this much, and to twice its size, since its first batch is started anew: it leaks."""


class _Lost(Exception):
    """The process died, hangs or is out of memory; the message says which."""


class RolloutProcess:
    """The process, seen from the learner's: an engine whose rollouts are `DistantRollout`s.

    Args:
        module: a whole plain copy of the policy; its tensors move into shared memory.
        tokenizer: its tokenizer.
        plans: its rollouts, by name.
        rank: number of the learner's process, which uses every `count`-th endpoint.
        count: number of learner processes.
        folder: name of a folder for the weights of servers.
        num_threads: CPU threads of torch in the process.

    Raises:
        UserError, RunError: what making the engine raises there.
    """

    shares_weights = False
    needs_shape_only = False
    can_run_ahead = True

    def __init__(
        self, module: Any, tokenizer: Any, plans: Mapping[str, RolloutPlan], *,
        rank: int, count: int, folder: str, num_threads: int,
    ) -> None:  # fmt: skip
        config = next(iter(plans.values())).config
        self.version = 0
        self.mismatches = False
        self.patience_s = config.turn_timeout_s + config.step_timeout_s
        self._weights_root = Path(config.engine_options.get("folder") or gettempdir()) if config.endpoints else None
        share_memory(module)
        progress = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._order = Order(
            module, tokenizer, plans, rank, count, folder, None, num_threads, progress, list(sys.path)
        )  # fmt: skip
        self._tensors = module.state_dict()
        self._life = 0
        self._first_bytes = 0
        self._call: tuple[Any, ...] | None = None
        self._process: Any = None
        self._pipe: Connection | None = None
        atexit.register(self.close)  # before multiprocessing waits for its children
        self._start()

    def begin(self, method: str, *arguments: Any) -> None:
        """Let the process do something; `finish` brings the result."""
        assert self._call is None, "one thing at a time"
        if method == "play":
            self._renew()
        self._call = (method, *arguments)
        self._send()

    def finish(self, on_episode: Callable[[Trajectory], None] | None = None) -> Any:
        """The result of what was begun; a lost process is started again and does it again.

        Raises:
            RunError: it was lost time after time; whatever the call itself raised.
        """
        known: set[tuple[int, int]] = set()

        def tell(trajectory: Trajectory) -> None:
            key = trajectory.task.position, trajectory.member
            if on_episode is not None and key not in known:
                known.add(key)
                on_episode(trajectory)

        for attempt in range(_MAX_RESTARTS + 1):
            try:
                result = self._receive(tell)
                self._call = None
                return result
            except _Lost as lost:
                if attempt == _MAX_RESTARTS:
                    self._call = None
                    raise RunError(
                        f"{lost}, {attempt + 1} times with the same batch. A smaller rollout.max_concurrent needs less "
                        "memory. Go on with --resume."
                    ) from None
                note(f"{lost}; it is started again and plays the batch once more")
                self._start()
                self._send()
        raise AssertionError("the last attempt returns or raises")

    def call(self, method: str, *arguments: Any) -> Any:
        """`begin` and `finish`."""
        self.begin(method, *arguments)
        return self.finish()

    async def generate(
        self, ids: list[int], sampling: Sampling, *, key: tuple[int, ...], session: str | None = None
    ) -> Completion:
        """Sample one turn; see `Engine.generate`. For checks: nothing else goes on meanwhile."""
        completion: Completion = self.call("generate", ids, sampling, key, session)
        return completion

    def release(self, session: str) -> None:
        """Free what is kept for a session."""
        self.call("release", session)

    async def score(self, ids: list[int], *, temperature: float = 1.0) -> list[float]:
        """Log-probs of a row, [L - 1]."""
        scores: list[float] = self.call("score", ids, temperature)
        return scores

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], *, version: int) -> None:
        """Write new weights into the shared memory and tell the engine."""
        assert self._call is None, "weights change only between rollouts"
        for name, tensor in named_tensors:
            self._tensors[name].copy_(tensor)
        self.version = version
        self._order = replace(self._order, version=version)
        self.call("load", version)

    def pause(self) -> None:
        """The process pauses its engine itself, behind every batch."""

    def counts(self) -> dict[str, float]:
        """Nothing: what the engine counts comes with every batch."""
        return {}

    def close(self) -> None:
        """End the process: politely where it is idle, at once where it plays."""
        atexit.unregister(self.close)
        if self._process is not None and self._process.is_alive() and self._call is None and self._pipe is not None:
            self._pipe.close()
            self._process.join(_END_S)
        self._kill()

    def _start(self) -> None:
        self._kill()
        self._life += 1
        order = replace(self._order, folder=f"{self._order.folder}-{self._order.rank}-{self._life}")
        context = torch.multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        # No daemon: those may have no worker processes of their own. It ends with this process all the same.
        self._process = context.Process(target=work, args=(theirs, order), name="agentrl rollouts", daemon=False)
        self._process.start()
        theirs.close()
        try:
            self.mismatches = self._receive()
        except _Lost as lost:
            raise RunError(f"{lost} while it started") from None

    def _send(self) -> None:
        assert self._pipe is not None
        with suppress(OSError):  # `finish` finds it dead
            self._pipe.send(self._call)

    def _receive(self, tell: Callable[[Trajectory], None] = lambda _: None) -> Any:
        assert self._pipe is not None
        seen, since = -1, time.monotonic()
        while True:
            try:
                if self._pipe.poll(LOOK_S):
                    kind, value = self._pipe.recv()
                    if kind == "ok":
                        return value
                    if kind == "error":
                        self._call = None
                        raise value
                    if kind == "no memory":
                        raise _Lost(f"the rollout process is out of memory ({value})")
                    tell(value)
            except (EOFError, OSError):
                self._process.join(_END_S)
                code = self._process.exitcode
                raise _Lost(f"the rollout process died ({_explain_exit(code)})") from None
            moved = int(self._order.progress)
            if moved != seen:
                seen, since = moved, time.monotonic()
            elif time.monotonic() - since > self.patience_s:
                self._kill()
                raise _Lost(
                    f"the rollout process hangs: nothing moved for {self.patience_s:g} s (rollout.turn_timeout_s + "
                    "rollout.step_timeout_s); it was stopped"
                )

    def _renew(self) -> None:
        """Start a process anew whose memory has grown."""
        size = resident_bytes(self._process.pid)
        if self._first_bytes and size - self._first_bytes > max(_GROWTH_BYTES, self._first_bytes):
            note(f"the rollout process was replaced: its memory has grown by {size - self._first_bytes >> 20:,} MiB")
            self._start()
        elif self._order.progress[0] and not self._first_bytes:
            self._first_bytes = size

    def _kill(self) -> None:
        process, self._process = self._process, None
        pipe, self._pipe = self._pipe, None
        self._first_bytes = 0
        end_process(process, pipe)
        if self._weights_root is not None and self._life:
            name = f"{self._order.folder}-{self._order.rank}-{self._life}"
            shutil.rmtree(self._weights_root / name, ignore_errors=True)


class DistantRollout(Rollout):
    """A rollout of a `RolloutProcess`, seen from the learner's process.

    Args:
        process: where it is played.
        name: of its plan.
        chat: as there.
        environments: of this process, whose pools answer what there is to play and play nothing.
        plan: what it is made of there.
    """

    def __init__(
        self, process: RolloutProcess, name: str, chat: Chat, environments: Mapping[str, PlayedEnvironment],
        plan: RolloutPlan,
    ) -> None:  # fmt: skip
        super().__init__(process, chat, environments, plan.config, seed=plan.seed)
        self.process, self.name = process, name

    def begin(
        self, tasks: list[Task], *, group_size: int, tells: bool = False, known: Known = None,
        quota: Quota | None = None,
    ) -> None:  # fmt: skip
        """Let the process play; `tells`: every episode when it is over."""
        self.process.begin("play", self.name, tasks, group_size, tells, known, quota)

    def finish(self, on_episode: Callable[[Trajectory], None] | None = None) -> RolloutBatch:
        """What was begun, as `play` returns it."""
        batch: RolloutBatch = self.process.finish(on_episode)
        return batch

    def play(
        self,
        tasks: list[Task],
        *,
        group_size: int,
        on_episode: Callable[[Trajectory], None] | None = None,
        known: Known = None,
        quota: Quota | None = None,
    ) -> RolloutBatch:
        """See `Rollout.play`."""
        self.begin(tasks, group_size=group_size, tells=on_episode is not None, known=known, quota=quota)
        return self.finish(on_episode)


def _explain_exit(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"{name}: perhaps out of memory" if code == -signal.SIGKILL else name
    return f"exit code {code}"
