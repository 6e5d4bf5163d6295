"""Plays an environment under observation: every value checked, every call timed and bounded."""

import ctypes
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.environment.contract import KNOWN_INFO, describe, reset_env, step_env
from agentrl.environment.spec import EnvironmentSpec
from agentrl.errors import InfrastructureError

_REPEATED = [key for key in KNOWN_INFO if key != "metadata"]
"""Keys of `info` that the same seed must give again; labels for tables may tell of times and machines."""


@dataclass
class Episode:
    """What an environment showed in one episode."""

    observations: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    infos: list[dict[str, Any]] = field(default_factory=list)
    ended: str = "cut"
    """`terminated`, `truncated`, or `cut` by the step limit of the check."""

    def transcript(self) -> str:
        """Everything that must repeat, as text; what a run does not read may say anything."""
        infos = [{key: info[key] for key in _REPEATED if key in info} for info in self.infos]
        return repr((self.observations, self.actions, self.rewards, infos, self.ended))


class Prober:
    """Plays episodes of one spec with seeded actions: admissible ones where named, arbitrary words elsewhere.

    Args:
        spec: what to play.
        max_steps: steps after which an episode is cut.
        timeout_s: patience for one reset or step.
    """

    def __init__(self, spec: EnvironmentSpec, *, max_steps: int, timeout_s: float) -> None:
        self.spec, self.max_steps, self.timeout_s = spec, max_steps, timeout_s
        self.env = spec.make()
        self.reset_s: list[float] = []
        self.step_s: list[float] = []

    def play(self, seed: int, env: Any = None, *, options: dict[str, Any] | None = None) -> Episode:
        """One episode; every value is checked against the contract.

        Raises:
            InfrastructureError: the environment raised, hung, or returned something else than the contract says.
        """
        env, episode = env or self.env, Episode()
        random = np.random.default_rng(seed)
        observation, info = self._timed(self.reset_s, "reset", lambda: reset_env(env, seed, options))
        for _ in range(self.max_steps):
            episode.observations.append(observation)
            episode.infos.append(info)
            action = _choose(info, random)
            episode.actions.append(action)
            answer = self._timed(self.step_s, "step", lambda text=action: step_env(env, text))  # type: ignore[misc]
            observation, reward, terminated, truncated, info = answer
            episode.rewards.append(reward)
            if terminated or truncated:
                episode.ended = "terminated" if terminated else "truncated"
                break
        episode.observations.append(observation)
        episode.infos.append(info)
        return episode

    def _timed(self, record: list[float], what: str, call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        try:
            with patience(self.timeout_s, f"{self.spec.id} did not answer a {what} within {self.timeout_s:g} s"):
                result = call()
        except (InfrastructureError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise InfrastructureError(f"{what} raised {type(error).__name__}: {describe(error, 2000)}") from error
        record.append(time.perf_counter() - started)
        return result


def _choose(info: dict[str, Any], random: np.random.Generator) -> str:
    actions = info.get("admissible_actions")
    if actions:
        return str(actions[int(random.integers(len(actions)))])
    return " ".join(str(random.choice(["go", "look", "yes", "no", "1", "2", "a", "b"])) for _ in range(3))


@contextmanager
def patience(seconds: float, message: str) -> Iterator[None]:
    """Interrupt what takes too long; the check itself must not hang."""

    def late(*_: Any) -> None:
        raise InfrastructureError(message)

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def settled_bytes() -> int:
    """Memory of this process without what only waits to be used again: garbage, and pages that malloc has kept."""
    gc.collect()
    with suppress(OSError, TypeError, AttributeError):  # glibc's alone
        ctypes.CDLL(None).malloc_trim(0)
    return resident_bytes()


def resident_bytes(process: int | None = None) -> int:
    """Memory of a process (None: this one) that is in RAM; where only Linux tells, this one's most, another's 0."""
    try:
        pages = int(Path(f"/proc/{process or 'self'}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        if process is not None:
            return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
