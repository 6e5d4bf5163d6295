"""Makes environments and runs them: in this process, or in worker processes with time-outs and restarts.

The only file of `agentrl` that imports `envs`. Whatever an environment does wrong (raise, hang, die) surfaces as one
`InfrastructureError`; the model's text can never cause one in an environment that keeps the contract.
"""

import asyncio
import difflib
import importlib
import inspect
import math
import multiprocessing
import os
import re
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import gymnasium
from gymnasium.envs.registration import EnvSpec as GymnasiumSpec
from gymnasium.envs.registration import registry
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

import envs
from agentrl.config import note
from agentrl.errors import InfrastructureError, RunError, UserError
from agentrl.types import Task
from envs.wrappers import FORMATS

StepResult = tuple[str, float, bool, bool, dict[str, Any]]

_MAX_WAITING_STEPS = 64
"""Steps of `blocking` environments that wait at once."""
_START_S = 120.0
"""Patience for a worker process to start, which is not the environment's time."""
_END_S = 5.0
"""Patience for the exit code of a worker process that closed its pipe."""
WORKER_GROWTH_BYTES = 1 << 30
"""A worker process that has grown by this much since its first batch is replaced: its environments leak."""


@dataclass(frozen=True)
class EnvSpec:
    """All it takes to make an environment, in any process."""

    id: str
    """Gymnasium id, or `module:Class`."""
    split: str
    """Passed on where the constructor has a parameter `split`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the constructor."""
    format: str = "plain"
    """Name in `envs.wrappers.FORMATS`, or `module:Wrapper`."""
    expert: bool = False
    """Ask for `info["expert_action"]` where the constructor has a parameter `expert`."""

    def make(self) -> gymnasium.Env[str, str]:
        """A new environment.

        Raises:
            UserError: unknown id, module or option.
        """
        entry_point = _find_entry_point(self.id)
        accepted = _parameters(entry_point)
        options = dict(self.options)
        if "split" in accepted:
            options.setdefault("split", self.split)
        if self.expert and "expert" in accepted:
            options.setdefault("expert", "default")
        unknown = [name for name in options if name not in accepted and "**" not in accepted]
        if unknown:
            known = sorted(accepted - {"**"})
            near = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" It takes: {', '.join(known) or 'none'}."
            raise UserError(f"env.options.{unknown[0]} is not an option of {self.id}.{hint}")
        name = _registered_name(self.id)
        made = entry_point(**options) if name is None else gymnasium.make(name, disable_env_checker=True, **options)
        if self.format not in FORMATS:
            return _find_object(self.format, "env.format")(made)
        _refuse_numbers(made, self.id)
        wrapper = FORMATS[self.format]
        return wrapper(made) if wrapper is not None else made

    def offers_expert(self) -> bool:
        """Whether there is somebody to imitate: the constructor takes `expert`, or `info` names an `expert_action`."""
        if "expert" in _parameters(_find_entry_point(self.id)):
            return True
        env = self.make()
        try:
            return "expert_action" in env.reset(seed=0)[1]
        finally:
            env.close()


class Handle(Protocol):
    """One environment, playing one episode at a time."""

    async def reset(self, task: Task) -> tuple[str, dict[str, Any]]:
        """Start the episode of a task."""
        ...

    async def step(self, action: str) -> StepResult:
        """Gymnasium's 5-tuple."""
        ...


class EnvPool:
    """Environments of one spec, reused between episodes.

    Args:
        spec: what to make.
        num_workers: processes; 0 steps environments in this process.
        step_timeout_s: patience for one reset or step in a worker.
    """

    def __init__(self, spec: EnvSpec, *, num_workers: int = 0, step_timeout_s: float = 60.0) -> None:
        self.spec = spec
        self._idle: list[Handle] = []
        self._workers = [_Worker(spec, step_timeout_s) for _ in range(num_workers)]
        self._next = 0
        self._threads = ThreadPoolExecutor(_MAX_WAITING_STEPS, thread_name_prefix="env")

    def acquire(self) -> Handle:
        """An environment for one episode."""
        if self._idle:
            return self._idle.pop()
        if not self._workers:
            return _InProcess(self.spec.make(), self._threads)
        worker = self._workers[self._next % len(self._workers)]
        self._next += 1
        return _Remote(worker, self._next)

    def release(self, handle: Handle, *, broken: bool = False) -> None:
        """Take an environment back; a broken one is dropped."""
        if not broken:
            self._idle.append(handle)

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
            worker.kill()
        for handle in self._idle:
            if isinstance(handle, _InProcess):
                handle.env.close()
        self._idle = []


def count_tasks(spec: EnvSpec) -> int | None:
    """Number of enumerable tasks of a spec's split; None where the environment has no `num_tasks`."""
    env = spec.make()
    num_tasks = getattr(env.unwrapped, "num_tasks", None)
    env.close()
    return None if num_tasks is None else int(num_tasks)


def conventions(env_id: str) -> dict[str, Any]:
    """How a benchmark is usually evaluated, from the `metadata` of its class; all keys may be missing.

    `eval_split`; `eval_samples`, episodes per task; `scorer`, the distribution that judges answers.
    """
    return dict(getattr(_find_entry_point(env_id), "metadata", {}))


def default_workers(env_id: str) -> int:
    """0 for the built-in environments, which neither hang nor leak; 2 processes for anybody else's."""
    return 0 if env_id in envs.ENVIRONMENTS else 2


class _InProcess:
    """An environment of this process; one whose metadata says `blocking` is played in a thread.

    Its calls wait for other processes or servers, and nobody else shall wait along.
    """

    def __init__(self, env: gymnasium.Env[str, str], threads: ThreadPoolExecutor) -> None:
        self.env = env
        self.threads = threads if env.unwrapped.metadata.get("blocking") else None

    async def reset(self, task: Task) -> tuple[str, dict[str, Any]]:
        return await self._call(_reset, task)

    async def step(self, action: str) -> StepResult:
        return await self._call(_step, action)

    async def _call(self, run: Any, argument: Any) -> Any:
        if self.threads is None:
            return _guard(run, self.env, argument)
        return await asyncio.get_running_loop().run_in_executor(self.threads, _guard, run, self.env, argument)


class _Remote:
    def __init__(self, worker: "_Worker", number: int) -> None:
        self.worker, self.number = worker, number

    async def reset(self, task: Task) -> tuple[str, dict[str, Any]]:
        return await self.worker.call(self.number, "reset", task)

    async def step(self, action: str) -> StepResult:
        return await self.worker.call(self.number, "step", action)


class _Worker:
    """One process that runs many environments, one call at a time."""

    def __init__(self, spec: EnvSpec, timeout_s: float) -> None:
        self.spec, self.timeout_s = spec, timeout_s
        self._process: Any = None
        self._first_bytes = 0
        self._pipe: Connection | None = None
        self._lock: asyncio.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def call(self, number: int, method: str, argument: Any) -> Any:
        """Result of a method of environment `number`; restarts the process first if it is gone."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._lock = loop, asyncio.Lock()
        assert self._lock is not None
        async with self._lock:
            is_new = self._process is None or not self._process.is_alive()
            if is_new:
                self._start()
            pipe = self._pipe
            assert pipe is not None
            try:
                if is_new:
                    await self._await_start(pipe)
                pipe.send((number, method, argument))
                ready = await loop.run_in_executor(None, pipe.poll, self.timeout_s)
                if not ready:
                    self.kill()
                    raise InfrastructureError(
                        f"the environment {self.spec.id} did not answer a {method} within {self.timeout_s:g} s "
                        "(rollout.step_timeout_s); its worker process was stopped"
                    )
                kind, result = pipe.recv()
            except (EOFError, BrokenPipeError, ConnectionResetError):
                self._process.join(_END_S)
                code = self._process.exitcode
                self.kill()
                raise InfrastructureError(
                    f"the worker process of {self.spec.id} died during a {method} (exit code {code})"
                ) from None
        if kind == "ok":
            return result
        raise RunError(result) if kind == "fatal" else InfrastructureError(result)

    async def _await_start(self, pipe: Connection) -> None:
        if not await asyncio.get_running_loop().run_in_executor(None, pipe.poll, _START_S):
            self.kill()
            raise InfrastructureError(f"a worker process of {self.spec.id} did not start within {_START_S:g} s")
        pipe.recv()  # "ready"

    def growth_bytes(self) -> int:
        """How much larger the process is than when this was first asked; 0 where the system does not say."""
        if self._process is None:
            return 0
        try:
            pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0
        size = pages * os.sysconf("SC_PAGE_SIZE")
        self._first_bytes = self._first_bytes or size
        return size - self._first_bytes

    def kill(self) -> None:
        """Stop the process and everything in it."""
        self._first_bytes = 0
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def _start(self) -> None:
        self.kill()
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self.spec, theirs, sys.path), daemon=True)
        self._process.start()
        theirs.close()


def _serve(spec: EnvSpec, pipe: Connection, path: list[str]) -> None:
    """Body of a worker process: answers (number, method, argument) until the pipe closes."""
    sys.path[:] = path
    os.environ["OMP_NUM_THREADS"] = "1"
    made: dict[int, gymnasium.Env[str, str]] = {}
    pipe.send("ready")
    while True:
        try:
            number, method, argument = pipe.recv()
        except (EOFError, ConnectionResetError, KeyboardInterrupt):
            return
        try:
            if number not in made:
                made[number] = spec.make()
            run: Any = _reset if method == "reset" else _step
            pipe.send(("ok", run(made[number], argument)))
        except KeyboardInterrupt:
            return
        except Exception as error:
            made.pop(number, None)
            pipe.send(("fatal" if getattr(error, "fatal", False) else "error", _explain(error)))


def _reset(env: gymnasium.Env[str, str], task: Task) -> tuple[str, dict[str, Any]]:
    # Environments that cannot enumerate their tasks need not know the word `options`.
    options: dict[str, Any] = {} if task.index is None else {"options": {"task": task.index}}
    observation, info = env.reset(seed=task.seed, **options)
    return _as_text(observation), info


def _step(env: gymnasium.Env[str, str], action: str) -> StepResult:
    observation, reward, terminated, truncated, info = env.step(action)
    if not math.isfinite(reward):
        raise ValueError(f"a reward must be a finite number, got {reward}")
    return _as_text(observation), float(reward), bool(terminated), bool(truncated), info


def _as_text(observation: Any) -> str:
    if not isinstance(observation, str):
        raise TypeError(f"observations must be text (str), the environment returned {type(observation).__name__}")
    return observation


def _guard(run: Any, env: gymnasium.Env[str, str], argument: Any) -> Any:
    try:
        return run(env, argument)
    except Exception as error:
        kind = RunError if getattr(error, "fatal", False) else InfrastructureError
        raise kind(_explain(error)) from error


def _explain(error: Exception) -> str:
    """One line: type, message and the innermost place in the environment's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def _registered_name(env_id: str) -> str | None:
    """The id under which Gymnasium knows an environment; `module:Name-v0` imports the module that registers it."""
    module, colon, name = env_id.rpartition(":")
    if colon and re.search(r"-v\d+$", name):
        _import_module(module, "env.id", env_id)
        env_id = name
    return env_id if env_id in registry else None


def _refuse_numbers(env: gymnasium.Env[str, str], env_id: str) -> None:
    for name in ("observation_space", "action_space"):
        space = getattr(env, name, None)
        if isinstance(space, Box | Discrete | MultiBinary | MultiDiscrete):
            raise UserError(
                f"env.id: the {name} of {env_id} is {space}, and a language model needs text. "
                "Give env.format = module:Wrapper, a gymnasium.Wrapper that turns it into text."
            )


def _find_entry_point(env_id: str) -> Any:
    name = _registered_name(env_id)
    if name is not None:
        spec: GymnasiumSpec = registry[name]
        entry_point = spec.entry_point
        return _find_object(entry_point, env_id) if isinstance(entry_point, str) else entry_point
    if ":" in env_id:
        return _find_object(env_id, "env.id")
    near = difflib.get_close_matches(env_id, list(registry), n=1, cutoff=0.4)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise UserError(
        f"env.id: no environment {env_id!r}. {hint}Built in: {', '.join(envs.ENVIRONMENTS)}; your own: module:Class."
    )


def _find_object(path: str, where: str) -> Any:
    module_name, _, name = path.partition(":")
    module = _import_module(module_name, where, path)
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, dir(module), n=1)
        raise UserError(f"{where}: {module_name} has no {name!r}." + (f" Did you mean {near[0]}?" if near else ""))
    return getattr(module, name)


def _import_module(name: str, where: str, path: str) -> Any:
    """A module, also from the folder that the command was given in."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"{where}: cannot import {name!r} for {path!r}: {error}.") from None


def _parameters(entry_point: Any) -> set[str]:
    parameters = inspect.signature(entry_point).parameters.values()
    return {"**" if parameter.kind is parameter.VAR_KEYWORD else parameter.name for parameter in parameters}
