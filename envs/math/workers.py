"""Worker processes with hard limits on CPU time, wall time and memory, for calls that model text may stall.

The processes themselves are `agentrl.envs.math.supervisor`; this is the side of the user's process. Pools of
libraries (concurrent.futures, loky, pebble, billiard) limit wall time alone, which on a loaded machine judges right
answers wrong, and start a process anew after each kill; ours limit CPU time and memory by the kernel and fork spare
workers beforehand.
"""

import atexit
import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SUPERVISOR = Path(__file__).with_name("supervisor.py")


class WorkerError(RuntimeError):
    """The worker processes cannot be started or keep dying: the machine's fault, not the model's."""


@dataclass(frozen=True, slots=True)
class WorkerOutcome:
    """What became of one request.

    Attributes:
        value: the handler's dict; None on failure.
        failure: empty, or `timeout`, `died` (killed for memory, crashed in C) or `error` (the handler raised).
        detail: for a timeout `cpu` or `wall`; for an error its text.
    """

    value: dict[str, Any] | None
    failure: str = ""
    detail: str = ""


class WorkerPool:
    """Processes that run `MODULE.handle(request)`; one supervisor, `num_workers` workers forked from it on demand.

    Starts at the first request, ends with the interpreter or by `close()`, uses no CPU while idle, may be shared by
    any number of threads, and starts afresh in a child that was forked from this process. A request that overruns
    costs its own time; when others wait, a worker that is slow (over 0.05 s of CPU) goes on at low priority and another
    one is forked in its place, so that the others go on.

    Args:
        module: name of an importable module with `initialise()` and `handle(dict) -> dict`.
        num_workers: workers kept; default: the number of cores, at least 2, at most 8.
        cpu_limit_s: CPU seconds for one request.
        wall_limit_s: wall seconds that a worker may sleep on end during one request, for what hangs; waiting for a core
            on a busy machine is no sleep, so that no verdict depends on the load.
        memory_limit_bytes: address space that a worker may add to what it started with.
    """

    def __init__(
        self,
        module: str,
        *,
        num_workers: int | None = None,
        cpu_limit_s: float = 1.25,
        wall_limit_s: float = 1.6,
        memory_limit_bytes: int = 1 << 30,
    ) -> None:
        self.module = module
        self.num_workers = num_workers or min(8, max(2, os.cpu_count() or 1))
        self.cpu_limit_s, self.wall_limit_s, self.memory_limit_bytes = cpu_limit_s, wall_limit_s, memory_limit_bytes
        self._reset()
        _register(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._ids = itertools.count()
        self._waiting: dict[int, Future[WorkerOutcome]] = {}  # of the current process
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the processes without waiting for them; done by `submit` anyway."""
        with self._lock:
            self._start()

    def submit(
        self, request: dict[str, Any], *, cpu_limit_s: float | None = None, wall_limit_s: float | None = None
    ) -> Future[WorkerOutcome]:
        """Queue a request (JSON values only). The future never raises, except `WorkerError` when no process starts."""
        future: Future[WorkerOutcome] = Future()
        with self._lock:
            process = self._start()
            number = next(self._ids)
            self._waiting[number] = future
            limits = {
                "cpu_limit_s": cpu_limit_s or self.cpu_limit_s,
                "wall_limit_s": wall_limit_s or self.wall_limit_s,
            }
            line = json.dumps({"id": number, "request": request, **limits}).encode() + b"\n"
            try:
                assert process.stdin is not None
                process.stdin.write(line)
                process.stdin.flush()
            except OSError:  # the supervisor is gone; the reader thread answers all who wait
                pass
        return future

    def call(
        self, request: dict[str, Any], *, cpu_limit_s: float | None = None, wall_limit_s: float | None = None
    ) -> WorkerOutcome:
        """`submit` and wait. A supervisor that was killed from outside is started again once."""
        outcome = self.submit(request, cpu_limit_s=cpu_limit_s, wall_limit_s=wall_limit_s).result()
        if outcome.failure == "gone":
            outcome = self.submit(request, cpu_limit_s=cpu_limit_s, wall_limit_s=wall_limit_s).result()
        if outcome.failure == "gone":
            raise WorkerError(f"The worker processes of {self.module} died twice. Is the machine out of memory?")
        return outcome

    def close(self) -> None:
        """End the processes; the pool starts again when it is next used."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        _close_input(process)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is not None:
            return self._process
        # The hash seed is fixed because SymPy and reasoning-gym iterate over sets: same input, same verdict, anywhere.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"}
        arguments = [self.module, str(self.num_workers), str(self.memory_limit_bytes)]
        # -P keeps the supervisor's own folder off the module path.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", str(_SUPERVISOR), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self._waiting = {}
        reader = threading.Thread(target=self._read_replies, args=(self._process, self._waiting), daemon=True)
        reader.start()
        return self._process

    def _read_replies(self, process: subprocess.Popen[bytes], waiting: dict[int, Future[WorkerOutcome]]) -> None:
        """Answer those who wait, until the supervisor ends; then nobody may wait for it any longer."""
        assert process.stdout is not None
        fatal = ""
        with process.stdout as lines:
            for line in lines:
                reply = json.loads(line)
                fatal = reply.get("fatal", "")
                if "id" in reply:
                    outcome = WorkerOutcome(reply.get("value"), reply.get("failure", ""), reply.get("detail", ""))
                    waiting.pop(reply["id"]).set_result(outcome)
        with self._lock:
            if self._process is process:
                self._process = None
        _close_input(process)
        process.wait()
        for future in waiting.values():
            if fatal:
                future.set_exception(WorkerError(f"The worker process could not load {self.module}: {fatal}"))
            else:
                future.set_result(WorkerOutcome(None, "gone"))

    def _forget(self) -> None:
        """In a forked child: the processes are the parent's; pipes held open here would let them outlive it."""
        process = self._process
        if process is not None:
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (process.stdin, process.stdout):
                if stream is not None and not stream.closed:
                    os.dup2(null, stream.fileno())
            os.close(null)
            process.returncode = 0  # not this process's child to wait for
        self._reset()


def _close_input(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # what could not be sent is not wanted any more
        process.stdin.close()


_pools: "weakref.WeakSet[WorkerPool]" = weakref.WeakSet()


def _register(pool: WorkerPool) -> None:
    if not _pools:
        atexit.register(_close_all)
        os.register_at_fork(after_in_child=_forget_all)
    _pools.add(pool)


def _close_all() -> None:
    for pool in list(_pools):
        pool.close()


def _forget_all() -> None:
    for pool in list(_pools):
        pool._forget()
