"""Digests of tasks, of files, and of what an engine answers. Nothing of their text is kept."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.environment.contract import plain, reset_env, step_env
from agentrl.rollout.scripted import fallback_policy
from agentrl.types import Task

_WALKS, _STEPS = 12, 12
"""Tasks and steps of the seeded walk that stands for the engine's behaviour."""


@dataclass(frozen=True)
class Fingerprint:
    """What is there, to be compared with what a panel says."""

    names: list[str]
    """`info["task"]` of every task."""
    digests: list[str]
    """sha256 of every task: its content where the environment tells it, else what it says first."""
    engine: str
    """sha256 of a seeded walk."""
    files: dict[str, str]
    """sha256 of the files that the environment names, and what else it tells of its data; empty where it cannot."""

    @property
    def content(self) -> str:
        """sha256 over all tasks."""
        return digest_of(self.digests)


def digest_of(value: Any) -> str:
    """sha256 of a value's JSON.

    >>> digest_of({"b": 1, "a": 2}) == digest_of({"a": 2, "b": 1})
    True
    """
    text = json.dumps(plain(value), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def take_fingerprint(env: Any, tasks: Iterable[Task]) -> Fingerprint:
    """Start every task once, and walk a few steps in some.

    Args:
        env: without the wrapper of a protocol; closed by the caller. It may offer `task_content()`, plain data that
            determine the score of the present task (game, goal, question and gold answers), `data_files()`, names
            and paths, and `data_digests()`, names and digests of what is no file here (a server's corpus).
        tasks: of a panel.
    """
    tasks = list(tasks)
    names, digests, walks = [], [], []
    walked = {tasks[i * len(tasks) // min(_WALKS, len(tasks))].position for i in range(min(_WALKS, len(tasks)))}
    content = getattr(env.unwrapped, "task_content", None)
    for task in tasks:
        observation, info = reset_env(env, task.seed, None if task.index is None else {"task": task.index})
        told = content() if content is not None else [observation, _stable(info)]
        names.append(str(info.get("task", "")))
        digests.append(digest_of([names[-1], told]))
        if task.position in walked:
            walks.append([observation, _stable(info), *_walk(env, info, task.seed)])
    files: dict[str, Path] = getattr(env.unwrapped, "data_files", dict)()
    known: dict[str, str] = getattr(env.unwrapped, "data_digests", dict)()
    known |= {name: hash_of(path) for name, path in files.items()}
    return Fingerprint(names, digests, digest_of(walks), known)


def hash_of(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _walk(env: Any, info: dict[str, Any], seed: int) -> list[Any]:
    """What comes back to random admissible actions (to empty answers, where none are offered)."""
    random, told = np.random.default_rng(seed), []
    for _ in range(_STEPS):
        action = fallback_policy(info, random)[0]
        observation, reward, terminated, truncated, info = step_env(env, action)
        told.append([action, observation, reward, terminated, truncated, _stable(info)])
        if terminated or truncated:
            break
    return told


def _stable(info: dict[str, Any]) -> dict[str, Any]:
    """What a run reads from `info`; the rest may hold paths and times."""
    return {key: info[key] for key in ("success", "score", "category", "admissible_actions", "tools") if key in info}
