"""Calls an environment; body of a worker process."""

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

from agentrl.common.data_source import DataSource
from agentrl.common.plugins import explain
from agentrl.common.streams import outliving_readers, print_anything
from agentrl.environment.contract import reset_env, step_env
from agentrl.environment.spec import EnvironmentSpec, describe_tasks
from agentrl.errors import InfrastructureError, RunError, UserError
from agentrl.runs.interruption import SIGNALS
from agentrl.types import Task


class NoRoom(InfrastructureError):
    """A server has no place for another episode just now; the error of the environment has `no_room = True`."""


KINDS = {"error": InfrastructureError, "fatal": RunError, "settings": UserError, "room": NoRoom}
"""What failures are raised as."""


@dataclass(frozen=True)
class Capabilities:
    """What an environment says about itself before it is played."""

    num_tasks: int | None
    """Enumerable tasks of the split; None where it has no `num_tasks`."""
    expert: bool
    """Whether there is somebody to imitate."""
    has_splits: bool = True
    """Whether it takes a split."""
    source: DataSource | None = None
    """Where its tasks come from; None where it does not say."""


def work(spec: EnvironmentSpec, pipe: Connection, path: list[str]) -> None:
    """Body of a worker process."""
    for number in SIGNALS:  # a terminal and a scheduler reach all processes; the run's own decides, and ends this one
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = "1"
    print_anything()
    with outliving_readers(), suppress(BrokenPipeError, ConnectionResetError):  # nobody listens any more
        serve(spec, pipe, path)


def serve(spec: EnvironmentSpec, pipe: Connection, path: list[str]) -> None:
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
            if method == "give up":
                if number in made and made[number].unwrapped.metadata.get("sessions"):
                    close(made[number])
                pipe.send(("ok", None))
                continue
            if number not in made:
                made[number] = spec.make()
            run: Any = reset if method == "reset" else step_env
            pipe.send(("ok", run(made[number], argument)))
        except (KeyboardInterrupt, BrokenPipeError):
            return
        except Exception as error:
            close(made.pop(number, None))
            mine = method == "first look" and _is_about_settings(error)
            pipe.send(("settings", str(error)) if mine else (_kind(error), explain(error)))


def _end_with_parent() -> None:
    """A worker whose run was killed ends too, even in the middle of a step that hangs."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def look(spec: EnvironmentSpec) -> Capabilities:
    """What the environment of a spec offers."""
    num_tasks, source = describe_tasks(spec)
    return Capabilities(num_tasks, spec.offers_expert(), spec.has_splits(), source)


def close(env: gymnasium.Env[str, str] | None) -> None:
    """Let go of what an environment holds elsewhere; one that cannot even be closed is dropped."""
    if env is not None:
        with suppress(Exception):
            env.close()


def _kind(error: Exception) -> str:
    """How a failure is treated: `fatal` ends the run, `room` is waited for, any other `error` is tried again."""
    return "fatal" if getattr(error, "fatal", False) else "room" if getattr(error, "no_room", False) else "error"


def _is_about_settings(error: Exception) -> bool:
    """Our own errors for users, and those of `envs` and `retriever` that another setting mends."""
    ours = isinstance(error, UserError) or type(error).__module__.startswith(("agentrl.envs.", "agentrl.retriever."))
    return ours and _kind(error) == "error"


def reset(env: gymnasium.Env[str, str], task: Task) -> tuple[str, dict[str, Any]]:
    """(observation, info) of a task's beginning."""
    return reset_env(env, task.seed, None if task.index is None else {"task": task.index})


def guard(run: Any, *arguments: Any) -> Any:
    """Result of a call in this process; whatever it raises becomes what `KINDS` names."""
    try:
        return run(*arguments)
    except Exception as error:
        if run is look and _is_about_settings(error):
            raise
        raise KINDS[_kind(error)](explain(error)) from error
