"""Runs environments: in this process, or in worker processes with time-outs and restarts.

Whatever an environment does wrong (raise, hang, die) surfaces as one `InfrastructureError`; the model's text can never
cause one in an environment that keeps the contract.
"""

import asyncio
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from threading import Lock, RLock
from typing import Any, Protocol

import gymnasium

from agentrl.common.event_loops import run_coroutine
from agentrl.common.plugins import HERE
from agentrl.common.process_end import end_process
from agentrl.config.defaults import default_workers
from agentrl.config.schema import RolloutConfig
from agentrl.console import note
from agentrl.environment.calls import KINDS, Capabilities, NoRoom, close, guard, look, reset, work
from agentrl.environment.capacity import Room
from agentrl.environment.contract import StepResult, step_env
from agentrl.environment.probe import resident_bytes
from agentrl.environment.spec import EnvironmentSpec
from agentrl.errors import InfrastructureError
from agentrl.types import Task

_MAX_WAITING_STEPS = 64
"""Steps of `blocking` environments that wait at once."""
_START_S = 120.0
"""Patience for a worker process to start, which is not the environment's time."""
_END_S = 5.0
"""Patience for the exit code of a worker process that closed its pipe."""
_STARTING = Lock()
"""Workers start in threads of their own; each must find the names of the main module as they were."""
_FIRST_LOOKS = 3
"""Times an environment is asked what it offers before the run gives up."""
WORKER_GROWTH_BYTES = 1 << 30
"""A worker process that has grown by this much since its first batch is replaced: its environments leak."""


class WorkerLost(InfrastructureError):
    """A worker process hung or died, instead of telling what went wrong."""


class NeighbourLost(InfrastructureError):
    """The worker process of an episode was lost to another episode, or between two steps."""


class EnvironmentHandle(Protocol):
    """One environment, playing one episode at a time."""

    async def reset(self, task: Task) -> tuple[str, dict[str, Any]]:
        """Start the episode of a task."""
        ...

    async def step(self, action: str) -> StepResult:
        """Gymnasium's 5-tuple."""
        ...

    async def give_up(self) -> None:
        """Let go of what the environment holds elsewhere; the next reset takes it again."""
        ...


class EnvPool:
    """Environments of one spec, reused between episodes.

    Args:
        spec: what to make.
        num_workers: processes; 0 steps environments in this process.
        step_timeout_s: patience for one reset or step in a worker.
    """

    def __init__(self, spec: EnvironmentSpec, *, num_workers: int = 0, step_timeout_s: float = 60.0) -> None:
        self.spec, self.step_timeout_s = spec, step_timeout_s
        self.room = Room(spec.id)
        self._idle: list[EnvironmentHandle] = []
        self._workers = [_Worker(spec, step_timeout_s) for _ in range(num_workers)]
        self._next = 0
        self._offer: Capabilities | None = None
        self._threads = ThreadPoolExecutor(_MAX_WAITING_STEPS, thread_name_prefix="env")

    @classmethod
    def of(cls, spec: EnvironmentSpec, config: RolloutConfig) -> "EnvPool":
        """As many workers, and as much patience, as a config says."""
        workers = default_workers(spec.id) if config.env_workers is None else config.env_workers
        return cls(spec, num_workers=workers, step_timeout_s=config.step_timeout_s)

    def capabilities(self) -> Capabilities:
        """What the environment offers, asked once and where it is played: one that hangs or exits does so there.

        Raises:
            UserError: it cannot be made from these settings.
            InfrastructureError: it raised, hung or died, time after time.
        """
        if self._offer is None:
            self._offer = run_coroutine(self._ask_offer())
        return self._offer

    async def _ask_offer(self) -> Capabilities:
        self.room.open()
        tries = 0
        while True:
            await self.room.enter()
            try:
                return await self._workers[0].ask_offer() if self._workers else guard(look, self.spec)
            except NoRoom:
                tries += 1
                if not await self.room.refuse(tries):
                    raise

    def acquire(self, *, alone: bool = False) -> EnvironmentHandle:
        """An environment for one episode; `alone`: in a worker process that no other episode shares."""
        if alone:
            return _Remote(_Worker(self.spec, self.step_timeout_s), 0, alone=True)
        if self._idle:
            return self._idle.pop()
        if not self._workers:
            return _InProcess(self.spec.make(), self._threads)
        worker = self._workers[self._next % len(self._workers)]
        self._next += 1
        return _Remote(worker, self._next)

    async def release(self, handle: EnvironmentHandle, *, broken: bool = False) -> None:
        """Take an environment back; a broken one is dropped, and one whose place others may need gives that up."""
        if isinstance(handle, _Remote) and handle.alone:
            handle.worker.kill()
            return
        if broken or (self.room.is_scarce and not self.room.num_waiting):
            await handle.give_up()
        if not broken:
            self._idle.append(handle)

    async def rest(self) -> None:
        """Give up what idle environments hold elsewhere (`metadata["sessions"]`): the next batch may be long away."""
        resting, self._idle = self._idle, []
        await asyncio.gather(*(handle.give_up() for handle in resting))
        self._idle += resting

    def renew(self) -> None:
        """Replace worker processes whose memory has grown; called between batches, when no episode is running."""
        for worker in self._workers:
            grown = worker.growth_bytes()
            if grown > WORKER_GROWTH_BYTES:
                worker.kill()
                note(
                    f"a worker process of {self.spec.id} was replaced: its memory has grown by {grown >> 20:,} MiB. "
                    f"See python -m agentrl.check_env {self.spec.id}"
                )

    def close(self) -> None:
        """Stop the worker processes and threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.close()
        for handle in self._idle:
            if isinstance(handle, _InProcess):
                close(handle.env)
        self._idle = []


class _InProcess:
    """An environment of this process; one whose metadata says `blocking` is played in a thread.

    Its calls wait for other processes or servers, and nobody else shall wait along.
    """

    def __init__(self, env: gymnasium.Env[str, str], threads: ThreadPoolExecutor) -> None:
        self.env = env
        self.threads = threads if env.unwrapped.metadata.get("blocking") else None

    async def reset(self, task: Task) -> tuple[str, dict[str, Any]]:
        return await self._call(reset, task)

    async def step(self, action: str) -> StepResult:
        return await self._call(step_env, action)

    async def give_up(self) -> None:
        if self.env.unwrapped.metadata.get("sessions"):
            await self._run(close, self.env)

    async def _call(self, run: Any, argument: Any) -> Any:
        return await self._run(guard, run, self.env, argument)

    async def _run(self, call: Any, *arguments: Any) -> Any:
        if self.threads is None:
            return call(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self.threads, call, *arguments)


class _Remote:
    def __init__(self, worker: "_Worker", number: int, *, alone: bool = False) -> None:
        self.worker, self.number, self.alone = worker, number, alone
        self._life = 0

    async def reset(self, task: Task) -> tuple[str, dict[str, Any]]:
        result: tuple[str, dict[str, Any]] = await self.worker.call(self.number, "reset", task)
        self._life = self.worker.life
        return result

    async def step(self, action: str) -> StepResult:
        result: StepResult = await self.worker.call(self.number, "step", action, life=self._life)
        return result

    async def give_up(self) -> None:
        with suppress(InfrastructureError):  # the process is gone, and what it held with it
            if self._life == self.worker.life:
                await self.worker.call(self.number, "give up", None, life=self._life)


class _Worker:
    """One process that runs many environments, one call at a time."""

    def __init__(self, spec: EnvironmentSpec, timeout_s: float) -> None:
        self.spec, self.timeout_s = spec, timeout_s
        self._process: Any = None
        self._first_bytes = 0
        self.life = 0
        """How many processes there have been."""
        self._pipe: Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="worker")
        # the thread of an abandoned batch may find its process dead just as the main thread stops the worker
        self._lock = RLock()
        self._is_closed = False

    async def call(self, number: int, method: str, argument: Any, *, life: int | None = None) -> Any:
        """Result of a method of environment `number`; restarts the process first if it is gone.

        Args:
            number: which environment.
            method: `reset`, `step`, or `first look` at what it offers.
            argument: task or action.
            life: which of the worker's processes holds the episode; None where that does not matter.

        Raises:
            InfrastructureError: the method raised; WorkerLost: the process hung or died; NeighbourLost: it had before.
        """
        # Calls wait for each other in a thread: a loop that decodes between two of them would bring one answer a tick,
        # and the engine would decode row by row.
        try:
            kind, result = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._exchange, number, method, argument, life
            )
        except asyncio.CancelledError:  # the batch is abandoned: nobody waits for a step that may hang
            process = self._process
            if process is not None:
                process.kill()
            raise
        if kind == "ok":
            return result
        raise KINDS[kind](result)

    def _exchange(self, number: int, method: str, argument: Any, life: int | None) -> tuple[str, Any]:
        is_new = self._process is None or not self._process.is_alive()
        if life is not None and (is_new or life != self.life):
            raise NeighbourLost(f"the worker process of {self.spec.id} was lost between two steps")
        if is_new:
            self._start()
        process, pipe = self._process, self._pipe
        if process is None or pipe is None:
            raise NeighbourLost(f"the worker process of {self.spec.id} was stopped")
        try:
            if is_new:
                self._await_start(pipe)
            pipe.send((number, method, argument))
            if not pipe.poll(self.timeout_s):
                self.kill()
                raise WorkerLost(
                    f"the environment {self.spec.id} did not answer a {method} within {self.timeout_s:g} s "
                    "(rollout.step_timeout_s); its worker process was stopped"
                )
            answer: tuple[str, Any] = pipe.recv()
        except (EOFError, OSError):
            process.join(_END_S)
            code = process.exitcode
            self.kill()
            raise WorkerLost(
                f"the worker process of {self.spec.id} died during a {method} (exit code {code})"
            ) from None
        return answer

    async def ask_offer(self) -> Capabilities:
        """What an environment offers; failures are said and it is asked again."""
        for attempt in range(1, _FIRST_LOOKS + 1):
            try:
                offer: Capabilities = await self.call(0, "first look", None)
                return offer
            except NoRoom:
                raise
            except InfrastructureError as error:
                if attempt == _FIRST_LOOKS:
                    raise InfrastructureError(f"{self.spec.id} cannot be played: {error}") from None
                note(f"a first look at {self.spec.id} failed, trying again: {error}")
        raise AssertionError("the last attempt returns or raises")

    def _await_start(self, pipe: Connection) -> None:
        if not pipe.poll(_START_S):
            self.kill()
            raise InfrastructureError(f"a worker process of {self.spec.id} did not start within {_START_S:g} s")
        pipe.recv()  # "ready"

    def growth_bytes(self) -> int:
        """How much larger the process is than when this was first asked; 0 where the system does not say."""
        if self._process is None:
            return 0
        size = resident_bytes(self._process.pid)
        self._first_bytes = self._first_bytes or size
        return size - self._first_bytes

    def kill(self) -> None:
        """Stop the process and everything in it."""
        with self._lock:
            process, self._process = self._process, None
            pipe, self._pipe = self._pipe, None
            self._first_bytes = 0
        end_process(process, pipe)

    def close(self) -> None:
        """Stop the process for good, whatever a thread still asks of it."""
        with self._lock:
            self._is_closed = True
            self.kill()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> None:
        with self._lock:
            self.kill()
            if self._is_closed:
                return
            self.life += 1
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=work, args=(self.spec, theirs, sys.path), daemon=True)
            with _light_start(self.spec):
                self._process.start()
            theirs.close()


@contextmanager
def _light_start(spec: EnvironmentSpec) -> Iterator[None]:
    """Keep a new process from running our command, or somebody's script, again: it imports what it needs by name."""
    main = vars(sys.modules["__main__"])
    with _STARTING:
        before: dict[str, Any] = {name: main[name] for name in ("__spec__", "__file__") if name in main}
        if HERE not in (spec.id[: len(HERE)], spec.format[: len(HERE)]):  # else the script holds the environment
            main.update(__spec__=None, __file__=None)
        try:
            yield
        finally:
            main.pop("__file__", None)
            main.update(before)
