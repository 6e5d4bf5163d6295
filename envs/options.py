"""Options of environments and of their resets: one check and one wording for all."""

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from agentrl.envs.env_errors import DataError


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        DataError: it is none.
    """
    known = list(choices)
    if value not in known:
        raise DataError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r}.")


def check_at_least(name: str, value: int | None, least: int = 1) -> None:
    """Refuse a number below `least`; None, where an option may be left out, passes.

    Raises:
        DataError: it is below.
    """
    if value is not None and value < least:
        raise DataError(f"{name} must be >= {least}, got {value}.")


def choose_task(random: np.random.Generator, options: dict[str, Any] | None, num_tasks: int) -> int:
    """Number `options["task"]` of `reset`, else one drawn from the environment's generator.

    Raises:
        DataError: there is no such task.
    """
    task = (options or {}).get("task")
    return int(random.integers(num_tasks)) if task is None else check_task(task, num_tasks)


def check_task(task: object, num_tasks: int) -> int:
    """The number of a task, 0 to `num_tasks` - 1.

    Raises:
        DataError: it is no integer, or there is no such task.
    """
    try:
        number = operator.index(task)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if not 0 <= number < num_tasks:
        raise DataError(f"options['task'] must be an integer from 0 to {num_tasks - 1}, got {task!r}.")
    return number
