"""Worker processes: what overruns is killed, others go on, and nothing is left behind."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agentrl.envs.math import verifier
from agentrl.envs.math.verifier import verify
from agentrl.envs.math.workers import WorkerError, WorkerOutcome, WorkerPool

psutil = pytest.importorskip("psutil")

HANDLER = "tests.envs.test_math_handler"
BOMBS = [
    "9^{9^{9^9}}",
    "10^{10^8}",
    "1000000!",
    "\\binom{100000}{50000}",
    "(" * 200 + "1" + ")" * 200,
    "\\sum_{k=1}^{100000} k^k",
    "\\frac{1}{" * 150 + "1" + "}" * 150,
]


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool(HANDLER, num_workers=2, cpu_limit_s=2, wall_limit_s=20)
    yield pool
    pool.close()


def family(pool: WorkerPool) -> list[psutil.Process]:
    """The supervisor and its workers."""
    assert pool._process is not None
    supervisor = psutil.Process(pool._process.pid)
    return [supervisor, *supervisor.children()]


def test_pool_when_a_request_is_harmless_then_returns_the_handlers_answer(pool: WorkerPool):
    outcome = pool.call({"action": "echo", "text": 'ü\n"\\ud800"'})
    assert outcome.failure == ""
    assert outcome.value is not None
    assert outcome.value["text"] == 'ü\n"\\ud800"'


@pytest.mark.parametrize(
    ("action", "failure", "detail"),
    [
        ("spin", "timeout", "cpu"),
        ("sleep", "timeout", "wall"),
        ("allocate", "error", "MemoryError"),
        ("exit", "died", "exit status 3"),
        ("raise", "error", "ValueError: a message x"),
        ("recurse", "error", "RecursionError"),
        ("run", "error", "PermissionError"),
    ],
)
def test_pool_when_a_request_misbehaves_then_it_alone_fails(pool: WorkerPool, action: str, failure: str, detail: str):
    wall_limit_s = 0.1 if action == "sleep" else 20
    outcome = pool.call({"action": action}, cpu_limit_s=0.2, wall_limit_s=wall_limit_s)
    assert (outcome.value, outcome.failure) == (None, failure)
    assert outcome.detail.startswith(detail)
    assert pool.call({"action": "echo"}).failure == ""


@pytest.mark.slow
def test_pool_when_the_machine_is_busy_then_who_waits_for_a_core_is_not_killed_by_wall_time():
    """Three spinning programs on each core; the request needs more wall time than its limit, and gets it."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3 * (os.cpu_count() or 1))]
    pool = WorkerPool(HANDLER, num_workers=2, cpu_limit_s=5, wall_limit_s=0.3)
    try:
        started = time.monotonic()
        outcome = pool.call({"action": "work", "cpu_s": 0.25})
        wall_s = time.monotonic() - started
    finally:
        pool.close()
        for burner in burners:
            burner.kill()
            burner.wait()
    assert outcome.failure == ""
    assert wall_s > 0.3


def test_pool_when_a_handler_prints_then_the_protocol_survives(pool: WorkerPool):
    assert pool.call({"action": "print"}).failure == ""
    assert pool.call({"action": "echo"}).failure == ""


def test_pool_when_a_handler_writes_a_file_then_is_refused(pool: WorkerPool, tmp_path: Path):
    assert pool.call({"action": "write", "path": str(tmp_path / "file")}).detail.startswith("PermissionError")
    assert not (tmp_path / "file").exists()


def test_pool_when_all_workers_are_busy_then_others_go_on():
    pool = WorkerPool(HANDLER, num_workers=2, cpu_limit_s=60, wall_limit_s=60)
    try:
        pool.call({"action": "echo"})
        stuck = [pool.submit({"action": "spin"}) for _ in range(4)]
        for _ in range(20):
            assert pool.call({"action": "echo"}).failure == ""
        assert not any(future.done() for future in stuck)
    finally:
        pool.close()
    assert {future.result().failure for future in stuck} <= {"gone", "timeout"}


def test_pool_when_a_worker_has_kept_much_memory_then_another_takes_its_place():
    pool = WorkerPool(HANDLER, num_workers=1, memory_limit_bytes=128 << 20)
    try:
        pids = [(pool.call({"action": action}).value or {})["pid"] for action in ("echo", "echo", "hoard", "echo")]
    finally:
        pool.close()
    assert pids[0] == pids[1] == pids[2] != pids[3]


def test_pool_when_idle_then_uses_no_cpu(pool: WorkerPool):
    pool.call({"action": "echo"})
    before = [sum(process.cpu_times()[:2]) for process in family(pool)]
    time.sleep(0.5)
    assert [sum(process.cpu_times()[:2]) for process in family(pool)] == before


def test_pool_when_closed_then_leaves_no_process_and_can_start_again(pool: WorkerPool):
    pool.call({"action": "echo"})
    processes = family(pool)
    assert len(processes) == 2
    pool.close()
    assert not any(process.is_running() for process in processes)
    assert pool.call({"action": "echo"}).failure == ""


def test_pool_when_its_supervisor_is_killed_then_starts_another(pool: WorkerPool):
    pool.call({"action": "echo"})
    supervisor, worker = family(pool)
    supervisor.kill()
    assert pool.call({"action": "echo"}).failure == ""
    assert worker.wait(timeout=5) is not None or not worker.is_running()


def test_pool_when_its_module_cannot_be_loaded_then_says_why():
    pool = WorkerPool("agentrl.envs.math.no_such_module")
    with pytest.raises(WorkerError, match="no_such_module"):
        pool.call({})


def test_pool_when_the_process_forks_then_parent_and_child_have_their_own(pool: WorkerPool):
    mine = pool.call({"action": "echo"}).value
    child = os.fork()
    if child == 0:
        outcome = pool.call({"action": "echo"})
        theirs = outcome.value
        pool.close()
        os._exit(0 if theirs and mine and theirs["pid"] != mine["pid"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pool.call({"action": "echo"}).value == mine


@pytest.mark.parametrize(
    "ending",
    [
        "os.kill(os.getpid(), 9)",
        pytest.param("pass", marks=pytest.mark.slow),
        pytest.param("raise SystemExit(3)", marks=pytest.mark.slow),
    ],
)
def test_pool_when_the_process_ends_in_whatever_way_then_its_workers_end_too(ending: str):
    script = (
        "import os, psutil, time\n"
        "from agentrl.envs.math.workers import WorkerPool\n"
        f"pool = WorkerPool({HANDLER!r}, num_workers=2, cpu_limit_s=20, wall_limit_s=20)\n"
        "pool.call({'action': 'echo'})\n"
        "pool.submit({'action': 'sleep'})\n"
        "pool.submit({'action': 'spin'})\n"
        "time.sleep(0.3)\n"
        "print(*(p.pid for p in psutil.Process().children(recursive=True)), flush=True)\n"
        f"{ending}\n"
    )
    run = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert run.stderr == ""
    pids = [int(pid) for pid in run.stdout.split()]
    assert len(pids) == 3
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10)
    assert not alive


@pytest.mark.slow
def test_verifier_when_a_bomb_is_checked_then_costs_little_and_counts_as_wrong():
    pytest.importorskip("math_verify")
    _check_bomb(BOMBS[0])


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS[1:], ids=lambda bomb: bomb[:20])
def test_verifier_when_any_bomb_is_checked_then_costs_little_and_counts_as_wrong(bomb: str):
    pytest.importorskip("math_verify")
    _check_bomb(bomb)


def _check_bomb(bomb: str) -> None:
    """At most two seconds, unless other programs leave the workers less than half a core."""
    verify("x", r"\boxed{y+z}")  # the start of the workers is no part of it
    started = time.monotonic()
    verdict = verify("123456", rf"\boxed{{{bomb}}}")
    wall_s = time.monotonic() - started
    assert not verdict.correct
    share = 1 / max(1.0, psutil.getloadavg()[0] / (psutil.cpu_count() or 1))
    assert wall_s < (2.0 if share > 0.5 else 6.0)


@pytest.mark.slow
def test_verifier_when_called_from_threads_then_every_call_gets_its_own_verdict():
    pytest.importorskip("math_verify")
    golds = [rf"\sqrt{{{i}}}" for i in range(2, 42)]
    with ThreadPoolExecutor(8) as threads:
        verdicts = list(
            threads.map(lambda i: verify(golds[i // 2], rf"\boxed{{{i // 2 + 2 + i % 2}^{{1/2}}}}"), range(80))
        )
    assert [verdict.correct for verdict in verdicts] == [i % 2 == 0 for i in range(80)]


def test_verifier_when_threads_ask_the_same_then_it_is_checked_once(monkeypatch: pytest.MonkeyPatch):
    calls, gate = [], threading.Event()

    def call(request: dict[str, object]) -> WorkerOutcome:
        calls.append(request)
        gate.wait(10)
        return WorkerOutcome({"equal": True})

    monkeypatch.setattr(verifier._pool, "call", call)
    with ThreadPoolExecutor(4) as threads:
        verdicts = [threads.submit(verify, "a b c", r"\boxed{c b a}") for _ in range(4)]
        gate.set()
    assert all(verdict.result().correct for verdict in verdicts)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("failure", "detail", "num_calls"),
    [("timeout", "cpu", 1), ("error", "ValueError: x", 1), ("timeout", "wall", 2), ("error", "MemoryError: ", 2)],
)
def test_verifier_when_a_check_fails_then_it_is_remembered_unless_the_machine_was_the_cause(
    monkeypatch: pytest.MonkeyPatch, failure: str, detail: str, num_calls: int
):
    calls = []
    monkeypatch.setattr(verifier._pool, "call", lambda r: calls.append(r) or WorkerOutcome(None, failure, detail))
    question = rf"\boxed{{{failure} {detail} ?}}"
    verdicts = [verify("a b c d", question) for _ in range(2)]
    assert [(v.correct, v.decided_by, v.detail) for v in verdicts] == [(False, failure, detail)] * 2
    assert len(calls) == num_calls


def test_verifier_when_awaited_in_threads_of_an_event_loop_then_a_bomb_stalls_nobody():
    pytest.importorskip("math_verify")

    async def play() -> list[bool]:
        bomb = asyncio.create_task(asyncio.to_thread(verify, "7", r"\boxed{8^{8^{8^8}}}"))
        await asyncio.sleep(0.01)
        others = [await asyncio.to_thread(verify, rf"x+{i}", rf"\boxed{{{i}+x}}") for i in range(10)]
        finished_first = not bomb.done()
        verdict = await bomb
        return [finished_first, not verdict.correct, *(other.correct for other in others)]

    verify("x", r"\boxed{y+1}")
    assert all(asyncio.run(play()))


def test_verifier_when_math_verify_is_missing_then_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    import importlib.util

    from agentrl.common.extras import MissingExtraError

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[math\]"):
        verify("x", r"\boxed{a+b+c+d}")
    assert verify("0.5", r"\boxed{\frac12}").correct
