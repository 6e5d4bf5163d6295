"""Calls an environment and checks that what it answers keeps the contract; body of a worker process."""

import math
import multiprocessing
import os
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import gymnasium
import numpy as np

from agentrl.errors import InfrastructureError, RunError, UserError
from agentrl.interruption import SIGNALS
from agentrl.plugins import explain
from agentrl.rollout.env_spec import EnvSpec, count_tasks
from agentrl.streams import outliving_readers, print_anything
from agentrl.types import Task

StepResult = tuple[str, float, bool, bool, dict[str, Any]]


@dataclass(frozen=True)
class Offer:
    """What an environment says about itself before it is played."""

    num_tasks: int | None
    """Enumerable tasks of the split; None where it has no `num_tasks`."""
    expert: bool
    """Whether there is somebody to imitate."""


def work(spec: EnvSpec, pipe: Connection, path: list[str]) -> None:
    """Body of a worker process."""
    for number in SIGNALS:  # a terminal and a scheduler reach all processes; the run's own decides, and ends this one
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = "1"
    print_anything()
    with outliving_readers(), suppress(BrokenPipeError, ConnectionResetError):  # nobody listens any more
        serve(spec, pipe, path)


def serve(spec: EnvSpec, pipe: Connection, path: list[str]) -> None:
    """Answer (number, method, argument) until the pipe closes."""
    sys.path[:] = path
    made: dict[int, gymnasium.Env[str, str]] = {}
    pipe.send("ready")
    while True:
        try:
            number, method, argument = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            if method == "first look":
                pipe.send(("ok", look(spec)))
                continue
            if number not in made:
                made[number] = spec.make()
            run: Any = reset if method == "reset" else step
            pipe.send(("ok", run(made[number], argument)))
        except (KeyboardInterrupt, BrokenPipeError):
            return
        except Exception as error:
            made.pop(number, None)
            mine = method == "first look" and _is_about_settings(error)
            kind = "settings" if mine else "fatal" if getattr(error, "fatal", False) else "error"
            pipe.send((kind, str(error) if mine else explain(error)))


def _end_with_parent() -> None:
    """A worker whose run was killed ends too, even in the middle of a step that hangs."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def look(spec: EnvSpec) -> Offer:
    """What the environment of a spec offers."""
    return Offer(count_tasks(spec), spec.offers_expert())


def _is_about_settings(error: Exception) -> bool:
    """Our own errors for users, and those of `envs` and `retriever` that another setting mends."""
    ours = isinstance(error, UserError) or type(error).__module__.startswith(("agentrl.envs.", "agentrl.retriever."))
    return ours and not getattr(error, "fatal", False)


def reset(env: gymnasium.Env[str, str], task: Task) -> tuple[str, dict[str, Any]]:
    """(observation, info) of a task's beginning."""
    # Environments that cannot enumerate their tasks need not know the word `options`.
    options: dict[str, Any] = {} if task.index is None else {"options": {"task": task.index}}
    result: Any = env.reset(seed=task.seed, **options)
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(f"reset must return (observation, info), the environment returned {result!r:.80}")
    observation, info = result
    return as_text(observation), _as_info(info)


def step(env: gymnasium.Env[str, str], action: str) -> StepResult:
    """Gymnasium's 5-tuple, in Python's own types."""
    result: Any = env.step(action)
    if not isinstance(result, tuple) or len(result) != 5:
        raise TypeError(
            "step must return (observation, reward, terminated, truncated, info), "
            f"the environment returned {result!r:.80}"
        )
    observation, reward, terminated, truncated, info = result
    if not isinstance(reward, int | float | np.number | np.bool_) or not math.isfinite(reward):
        raise ValueError(f"a reward must be a finite number, got {reward!r:.80}")
    return as_text(observation), float(reward), bool(terminated), bool(truncated), _as_info(info)


def as_text(observation: Any) -> str:
    """An observation as it reaches the model."""
    if not isinstance(observation, str):
        raise TypeError(f"observations must be text (str), the environment returned {type(observation).__name__}")
    return _without_surrogates(observation)


def _as_info(info: Any) -> dict[str, Any]:
    """`info` where a run can use what it offers."""
    if not isinstance(info, dict):
        raise TypeError(f"info must be a dict, the environment returned {type(info).__name__}")
    score, metadata = info.get("score"), info.get("metadata", {})
    if score is not None and not (isinstance(score, int | float | np.number) and math.isfinite(score)):
        raise TypeError(f'info["score"] must be a finite number, got {score!r:.80}')
    if not isinstance(metadata, dict):
        raise TypeError(f'info["metadata"] must be a dict, got {metadata!r:.80}')
    return {key: _without_surrogates(value) if isinstance(value, str) else value for key, value in info.items()}


def _without_surrogates(text: str) -> str:
    """Lone surrogates, as undecodable files leave them, are no characters: no tokens, not to be printed or stored."""
    return text.encode("utf-8", "replace").decode()


def guard(run: Any, *arguments: Any) -> Any:
    """Result of a call in this process; whatever it raises becomes an InfrastructureError, or a RunError if fatal."""
    try:
        return run(*arguments)
    except Exception as error:
        if run is look and _is_about_settings(error):
            raise
        kind = RunError if getattr(error, "fatal", False) else InfrastructureError
        raise kind(explain(error)) from error
