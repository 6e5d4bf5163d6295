"""Which of the enumerable tasks of a split an episode plays."""

from typing import Any

import numpy as np


def choose_task(random: np.random.Generator, options: dict[str, Any] | None, num_tasks: int) -> int:
    """Number `options["task"]` of `reset`, else one drawn from the environment's generator.

    Raises:
        ValueError: there is no such task.
    """
    task = (options or {}).get("task")
    if task is None:
        return int(random.integers(num_tasks))
    if not 0 <= task < num_tasks:
        raise ValueError(f"options['task'] must be 0 to {num_tasks - 1}, got {task}.")
    return int(task)
