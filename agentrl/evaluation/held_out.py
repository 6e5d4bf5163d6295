"""Held-out tasks: which they are, and how they are played."""

from collections.abc import Callable
from typing import Any

from agentrl.config.schema import Config
from agentrl.evaluation.rates import Evaluation
from agentrl.rollout.rollout import Rollout
from agentrl.rollout.tasks import evaluation_tasks, split_indices
from agentrl.types import Task, Trajectory

EVAL_SEED = 2**31
"""Keys the random numbers of evaluations: the same in every run, and apart from any `train.seed`."""


def evaluate(
    rollout: Rollout,
    tasks: list[Task],
    *,
    samples: int = 1,
    on_episode: Callable[[Trajectory], None] | None = None,
) -> Evaluation:
    """Play every task exactly `samples` times with the rollout's own sampling."""
    played: list[Trajectory] = []

    def note(trajectory: Trajectory) -> None:
        played.append(trajectory)
        if on_episode:
            on_episode(trajectory)

    rollout.play(tasks, group_size=samples, on_episode=note)
    played.sort(key=lambda t: (t.task.position, t.member))
    temperature = rollout.config.temperature if rollout.engine is not None else None
    return Evaluation(played, tasks[0].split, temperature, samples)


def held_out_tasks(config: Config, *, num_tasks: int | None, num_eval_tasks: int | None) -> list[Task]:
    """The evaluation tasks of an experiment, given the sizes of its training and evaluation splits."""
    _, indices = split_indices(
        split=config.env.split, eval_split=config.env.eval_split,
        num_tasks=num_tasks, num_eval_tasks=num_eval_tasks, eval_count=config.eval.tasks,
    )  # fmt: skip
    return evaluation_tasks(config.env.id, config.env.eval_split, indices=indices, count=config.eval.tasks)


def eval_rollout_config(config: Config) -> Any:
    """The rollout config with the evaluation's temperature."""
    return config.rollout.model_copy(update={"temperature": config.eval.temperature})
