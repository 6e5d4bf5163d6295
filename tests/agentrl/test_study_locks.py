"""Locks of a study: one owner at a time, whoever dies, and whatever the clocks say."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agentrl.runs.folder import read_last_record
from agentrl.study import locks
from agentrl.study.locks import acquire, held, is_held, release

HOLD = (
    "import sys, time; from pathlib import Path; from agentrl.study.locks import acquire; acquire(Path(sys.argv[1]));"
)


def hold_elsewhere(path: Path) -> None:
    """As if another machine held the lock."""
    assert acquire(path)
    owner = json.loads(path.read_text())
    path.write_text(json.dumps({**owner, "machine": "another one", "token": "theirs"}))


def test_lock_when_held_then_nobody_else_gets_it_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "a.lock"
    assert not is_held(path)
    with held(path) as mine:
        assert mine
        assert is_held(path)
        assert acquire(path) is None
        with held(path) as again:
            assert not again
        assert is_held(path)  # who did not get it does not release it
    assert not path.exists()
    assert list(path.parent.iterdir()) == []


def test_lock_when_released_by_one_who_lost_it_then_it_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    token = acquire(path)
    assert token
    hold_path = json.loads(path.read_text())
    path.write_text(json.dumps({**hold_path, "token": "theirs"}))
    release(path, token)
    assert path.exists()


def test_lock_when_its_process_was_killed_then_it_is_free_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    words = [sys.executable, "-c", f"{HOLD} print('held', flush=True); time.sleep(60)", str(path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert is_held(path)
        assert acquire(path) is None
        process.kill()
    assert not is_held(path)
    assert acquire(path)


def test_lock_of_another_machine_when_touched_lately_then_it_is_held_and_else_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    hold_elsewhere(path)
    assert is_held(path)
    assert acquire(path) is None
    stale = time.time() - locks.STALE_S - 5
    os.utime(path, (stale, stale))
    assert not is_held(path)
    token = acquire(path)
    assert token
    assert json.loads(path.read_text())["token"] == token


def test_lock_when_not_yet_written_then_it_is_held(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    path.touch()
    assert is_held(path)
    assert acquire(path) is None


def test_lock_when_another_takes_over_then_it_is_not_taken_twice(tmp_path: Path) -> None:
    path, guard = tmp_path / "a.lock", tmp_path / "a.lock.takeover"
    hold_elsewhere(path)
    stale = time.time() - locks.STALE_S - 5
    os.utime(path, (stale, stale))
    guard.touch()
    assert acquire(path) is None
    os.utime(guard, (stale, stale))  # who was about to take over died
    assert acquire(path) is None  # clears the way
    assert acquire(path)


@pytest.mark.parametrize("abandoned", [False, True])
def test_lock_when_many_want_it_at_once_then_exactly_one_gets_it(tmp_path: Path, abandoned: bool) -> None:
    for turn in range(20):
        path, start = tmp_path / f"{turn}.lock", threading.Barrier(8)
        if abandoned:
            hold_elsewhere(path)
            os.utime(path, (0, 0))

        def want(path: Path = path, start: threading.Barrier = start) -> bool:
            start.wait()
            return acquire(path) is not None

        with ThreadPoolExecutor(8) as pool:
            wins = [future.result() for future in [pool.submit(want) for _ in range(8)]]
        assert sum(wins) == 1


def test_process_when_its_lock_was_taken_over_then_it_ends_on_the_spot(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    code = (
        "import sys, time; from pathlib import Path; from agentrl.study import locks; locks.BEAT_S = 0.05\n"
        "with locks.held(Path(sys.argv[1])):\n"
        "    print('held', flush=True); time.sleep(60); print('still writing')"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        before = path.stat().st_mtime_ns
        time.sleep(0.3)
        assert path.stat().st_mtime_ns > before  # it says that it lives
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps({"token": "theirs", "machine": "another one"}))
        draft.replace(path)
        assert process.wait(timeout=20) == locks.LOST
        assert process.stdout.read() == ""


def test_last_record_when_read_then_it_is_the_newest_whole_one(tmp_path: Path) -> None:
    assert read_last_record(tmp_path) is None
    path = tmp_path / "metrics.jsonl"
    path.write_text("")
    assert read_last_record(tmp_path) is None
    path.write_text("".join(json.dumps({"step": i, "text": "x" * 50_000}) + "\n" for i in range(5)))
    last = read_last_record(tmp_path)
    assert last is not None
    assert (last["step"], len(last["text"])) == (4, 50_000)
    with path.open("a") as file:
        file.write('{"step": 5, "te')
    assert read_last_record(tmp_path) is None
