"""The process between a pool and its workers: `python supervisor.py MODULE`, JSON lines in, JSON lines out.

It imports MODULE once, calls its `initialise()`, and forks workers from itself on demand: a worker that replaces a
killed one costs milliseconds, not the second that importing SymPy takes. The process is single-threaded and started
by exec, so forking is safe whatever threads, locks or CUDA contexts the user's process holds; neither `fork` nor
`spawn` of `multiprocessing` gives both (nor may daemonic processes use them).

A worker handles one request at a time by `MODULE.handle(request) -> dict`. It dies, by the kernel's hand, when it has
used its CPU time (ITIMER_PROF with the default action, which reaches code stuck in C), and by the supervisor's when it
hangs: when it has slept, neither running nor waiting for a core or the disk, for its wall time on end. So a verdict
does not depend on how busy the machine is. Either costs one request.
One that has grown by a quarter of the memory it may take is replaced after its answer. All processes block while idle
and end when their input closes.

Requests:  {"id", "request", "cpu_limit_s", "wall_limit_s"}
Replies:   {"ready": true} or {"fatal": "why"} once, then {"id", "value"} or {"id", "failure", "detail"}
Between supervisor and workers the same, less the id, and "bloated".
"""

import gc
import importlib
import json
import os
import resource
import selectors
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

SLOW_CPU_S = 0.05  # who has used more on a request, while others wait, goes on in the background, and another is forked
SLOW_NICENESS = 5  # a third of the others' share; at 19 an honest check would hardly go on where other programs compute
LONGEST_S = 600.0  # wall seconds after which a request is given up whatever the worker does: a frozen machine
ASLEEP = ("sleeping", "stopped", "tracing-stop", "idle", "zombie")  # psutil's words for who does not want to run
MAX_SLOW_WORKERS = 32
LOOK_S = 0.03  # how often busy workers are looked at while requests wait


@dataclass
class Worker:
    """A forked process and the ends of its two pipes that the supervisor holds."""

    pid: int
    requests: int
    replies: int
    process: Any
    job: dict[str, Any] | None = None
    started: float = 0.0
    awake: float = 0.0
    looked: float = 0.0
    cpu_before_s: float = 0.0
    cpu_seen_s: float = 0.0
    in_background: bool = False
    buffer: bytearray = field(default_factory=bytearray)

    def used_s(self) -> float:
        """CPU seconds that the worker has used since it took its request."""
        times = self.process.cpu_times()
        return times.user + times.system - self.cpu_before_s

    def begin(self, job: dict[str, Any], now: float) -> None:
        """Note that it has taken a request."""
        self.job, self.started, self.awake, self.looked, self.cpu_seen_s = job, now, now, now, 0.0
        self.cpu_before_s += self.used_s()

    def hangs(self, now: float) -> bool:
        """Whether it has slept for its wall time on end; one that waits for a core or the disk does not."""
        if self.job is None or now - self.looked < LOOK_S:
            return False
        used_s, self.looked = self.used_s(), now
        if used_s > self.cpu_seen_s or self.process.status() not in ASLEEP:
            self.awake, self.cpu_seen_s = now, used_s
        return now - self.awake >= self.job["wall_limit_s"] or now - self.started >= LONGEST_S


class Supervisor:
    """Hands queued requests to workers, and buries those that overrun."""

    def __init__(self, module: ModuleType, *, num_workers: int, memory_limit_bytes: int) -> None:
        self.module, self.num_workers, self.memory_limit_bytes = module, num_workers, memory_limit_bytes
        self.queue: deque[dict[str, Any]] = deque()
        self.workers: list[Worker] = []
        self.selector = selectors.DefaultSelector()
        self.selector.register(0, selectors.EVENT_READ, None)
        self.incoming = bytearray()

    def run(self) -> None:
        """Serve until the input closes, or nobody reads the replies any more; then end all workers, busy or not."""
        try:
            reply({"ready": True})
            while self._take_turn():
                self._kill_hanging()
                self._assign()
        except BrokenPipeError:
            pass
        finally:
            for worker in self.workers:
                os.kill(worker.pid, signal.SIGKILL)
            for worker in self.workers:
                os.waitpid(worker.pid, 0)

    def _take_turn(self) -> bool:
        """Wait for something to do and read it; False at the end of the input."""
        for key, _ in self.selector.select(self._patience()):
            if key.data is not None:
                self._receive(key.data)
            elif not self._read_requests():
                return False
        return True

    def _patience(self) -> float | None:
        """Seconds until something has to be done without being told; None while nothing runs."""
        limits = [w.job["wall_limit_s"] for w in self.workers if w.job]
        if not limits:
            return None
        return LOOK_S if self.queue else max(LOOK_S, min(limits) / 4)

    def _read_requests(self) -> bool:
        data = os.read(0, 1 << 16)
        self.incoming += data
        *lines, rest = self.incoming.split(b"\n")
        self.incoming = bytearray(rest)
        self.queue.extend(json.loads(line) for line in lines)
        return bool(data)

    def _assign(self) -> None:
        while self.queue:
            worker = next((w for w in self.workers if w.job is None), None) or self._fork_if_due()
            if worker is None:
                return
            try:
                write_all(worker.requests, json.dumps(self.queue[0]).encode() + b"\n")
            except BrokenPipeError:  # it died while idle: the request goes to another
                self._bury(worker)
                continue
            worker.begin(self.queue.popleft(), time.monotonic())

    def _fork_if_due(self) -> Worker | None:
        for worker in self.workers:
            if worker.job and not worker.in_background and worker.used_s() > SLOW_CPU_S:
                worker.in_background = True
                os.setpriority(os.PRIO_PROCESS, worker.pid, SLOW_NICENESS)
        num_slow = sum(worker.in_background for worker in self.workers)
        if len(self.workers) - num_slow >= self.num_workers or num_slow >= MAX_SLOW_WORKERS:
            return None
        worker = self._fork()
        self.workers.append(worker)
        self.selector.register(worker.replies, selectors.EVENT_READ, worker)
        return worker

    def _fork(self) -> Worker:
        request_end, requests = os.pipe()
        replies, reply_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            # A worker keeps no end of anybody else's pipe, else nobody would see the end of the input.
            for fd in (requests, replies, *(fd for w in self.workers for fd in (w.requests, w.replies))):
                os.close(fd)
            self.selector.close()
            with open(os.devnull) as null:
                os.dup2(null.fileno(), 0)
            os.dup2(2, 1)
            work(self.module, request_end, reply_end, self.memory_limit_bytes)
        os.close(request_end)
        os.close(reply_end)
        return Worker(pid, requests, replies, observed(pid))

    def _receive(self, worker: Worker) -> None:
        data = os.read(worker.replies, 1 << 16)
        worker.buffer += data
        if not data:
            self._bury(worker)
        elif worker.buffer.endswith(b"\n") and worker.job:
            outcome = json.loads(worker.buffer)
            bloated = outcome.pop("bloated")
            reply({"id": worker.job["id"], **outcome})
            worker.buffer.clear()
            worker.job = None
            if worker.in_background or bloated:  # priority cannot be raised again, memory hardly be given back
                self._bury(worker, kill=True)

    def _kill_hanging(self) -> None:
        now = time.monotonic()
        for worker in [worker for worker in self.workers if worker.hangs(now)]:
            self._bury(worker, kill=True)

    def _bury(self, worker: Worker, *, kill: bool = False) -> None:
        if kill:
            os.kill(worker.pid, signal.SIGKILL)
        self.workers.remove(worker)
        self.selector.unregister(worker.replies)
        os.close(worker.requests)
        os.close(worker.replies)
        status = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
        if worker.job is None:
            return
        if kill or status == -signal.SIGPROF:
            failure, detail = "timeout", "wall" if kill else "cpu"
        else:
            failure, detail = "died", f"exit status {status}"
        reply({"id": worker.job["id"], "failure": failure, "detail": detail})


def work(module: ModuleType, requests: int, replies: int, memory_limit_bytes: int) -> None:
    """A worker's life: read a line, handle it within its CPU time, write a line; never returns."""
    observe = observed(os.getpid()).memory_info
    bloated_bytes = observe().vms + memory_limit_bytes // 4
    limit_memory(memory_limit_bytes)
    sys.addaudithook(forbid_side_effects)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with os.fdopen(requests, "rb") as lines:
        for line in lines:
            job = json.loads(line)
            signal.setitimer(signal.ITIMER_PROF, job["cpu_limit_s"])
            outcome: dict[str, Any]
            try:
                outcome = {"value": module.handle(job["request"])}
            except Exception as error:  # whatever the model's text does to a third-party library is a wrong answer
                outcome = {"failure": "error", "detail": f"{type(error).__name__}: {str(error)[:200]}"}
            signal.setitimer(signal.ITIMER_PROF, 0)
            outcome["bloated"] = observe().vms > bloated_bytes
            write_all(replies, json.dumps(outcome).encode() + b"\n")
    os._exit(0)


_FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link",
    "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.kill", "subprocess.", "socket.", "shutil.", "ctypes.",
)  # fmt: skip


def forbid_side_effects(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook of workers: SymPy's parser evaluates text, so files, processes and connections are out of reach."""
    if event == "open":
        _, mode, flags = arguments
        if (isinstance(mode, str) and set(mode) & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise PermissionError("workers may not write files")
    elif event.startswith(_FORBIDDEN):
        raise PermissionError(f"workers may not call {event}")


def limit_memory(extra_bytes: int) -> None:
    """Let the process grow by at most `extra_bytes` of address space."""
    limit = observed(os.getpid()).memory_info().vms + extra_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def observed(pid: int) -> Any:
    """psutil's view of a process."""
    import psutil

    return psutil.Process(pid)


def reply(message: dict[str, Any]) -> None:
    """Write one line to the pool."""
    write_all(1, json.dumps(message).encode() + b"\n")


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`, however large a pipe takes at once."""
    while data:
        data = data[os.write(fd, data) :]


def main() -> None:
    """Import the module named on the command line, then serve."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the user's process; its end closes our input
    try:
        module = importlib.import_module(sys.argv[1])
        module.initialise()
    except Exception as error:
        return reply({"fatal": f"{type(error).__name__}: {error}"})
    gc.freeze()  # forked workers share these objects' pages as long as the collector does not touch them
    Supervisor(module, num_workers=int(sys.argv[2]), memory_limit_bytes=int(sys.argv[3])).run()


if __name__ == "__main__":
    main()
