"""Lock files: who works on a run, among any number of processes on any number of machines that share a folder.

A lock is a file that exactly one process managed to create. Its owner touches it every few seconds. On the owner's
machine a lock is abandoned when its process is gone; seen from elsewhere when nobody touched it for `STALE_S`, by the
clock of the shared folder, so that clocks of machines need not agree.
"""

import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

BEAT_S = 10.0
"""Seconds between touches."""
STALE_S = 180.0
"""Silence after which a lock of another machine counts as abandoned; network folders show times a minute late."""
LOST = 75
"""Exit code of a process whose lock was taken over while it slept: it must not write another byte."""


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Hold a lock for the length of the block; whether it could be had.

    A process that finds its lock taken over by another ends on the spot: two must never write one run folder.
    """
    token = acquire(path)
    if token is None:
        yield False
        return
    ended = threading.Event()
    beat = threading.Thread(target=_keep_touching, args=(path, token, ended), daemon=True)
    beat.start()
    try:
        yield True
    finally:
        ended.set()
        beat.join()
        release(path, token)


def acquire(path: Path) -> str | None:
    """Create a lock; the token that releases it, or None where somebody else holds it."""
    token = uuid.uuid4().hex
    if _create(path, token):
        return token
    if not is_abandoned(path):
        return None
    # Only one at a time may take over, or a second one would remove the first one's new lock.
    guard = path.with_name(path.name + ".takeover")
    if not _create(guard, token):
        with suppress(FileNotFoundError):
            if _silence(guard) > STALE_S:
                guard.unlink()
        return None
    try:
        if is_abandoned(path):
            path.unlink(missing_ok=True)
        return token if _create(path, token) else None
    finally:
        guard.unlink(missing_ok=True)


def release(path: Path, token: str) -> None:
    """Remove a lock that is still one's own."""
    if _owner(path).get("token") == token:
        path.unlink(missing_ok=True)


def is_held(path: Path) -> bool:
    """Whether somebody works under this lock."""
    return path.exists() and not is_abandoned(path)


def is_abandoned(path: Path) -> bool:
    """Whether the owner of a lock is gone; also where there is no lock any more."""
    owner = _owner(path)
    if owner.get("machine") == _machine():
        return _started(owner["pid"]) != owner["started"]
    try:
        return _silence(path) > STALE_S
    except FileNotFoundError:
        return True


def _keep_touching(path: Path, token: str, ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        if _owner(path).get("token") != token:
            os._exit(LOST)
        with suppress(OSError):  # a network folder that is away for a moment
            os.utime(path)


def _create(path: Path, token: str) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        number = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    pid = os.getpid()
    owner = {"token": token, "machine": _machine(), "pid": pid, "started": _started(pid), "host": socket.gethostname()}
    with os.fdopen(number, "w") as file:
        file.write(json.dumps(owner))
    return True


def _owner(path: Path) -> dict[str, Any]:
    """What a lock says of its owner; empty where it is gone or not written yet."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _silence(path: Path) -> float:
    """Seconds since a file was touched, by the clock of its folder."""
    probe = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink()


@cache
def _machine() -> str:
    """Names the set of processes that this one can see: host, boot and container."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(pid: int) -> str:
    """When a process started, to tell it from a later one of the same number; empty where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        state, started = stat.rpartition(")")[2].split()[0], stat.rpartition(")")[2].split()[19]
        return "" if state == "Z" else started
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "alive"
