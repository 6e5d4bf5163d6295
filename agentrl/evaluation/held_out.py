"""Held-out tasks: which they are, and how they are played."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from agentrl.common.data_source import DataSource
from agentrl.config.schema import Config, RolloutConfig
from agentrl.console import Display
from agentrl.evaluation.rates import Evaluation, format_rate
from agentrl.model.processes import Processes
from agentrl.rollout.rollout import Rollout
from agentrl.rollout.tasks import evaluation_tasks, split_indices
from agentrl.runs.interruption import Interruption
from agentrl.runs.writer import RunWriter
from agentrl.types import Task, Trajectory

EVAL_SEED = 2**31
"""Keys the random numbers of evaluations: the same in every run, and apart from any `train.seed`."""


def evaluate(
    rollout: Rollout,
    tasks: list[Task],
    *,
    samples: int = 1,
    on_episode: Callable[[Trajectory], None] | None = None,
    known: Mapping[tuple[int, int], Trajectory] | None = None,
) -> Evaluation:
    """Play every task exactly `samples` times with the rollout's own sampling, those of `known` excepted."""
    played: list[Trajectory] = []

    def note(trajectory: Trajectory) -> None:
        played.append(trajectory)
        if on_episode:
            on_episode(trajectory)

    seconds = rollout.play(tasks, group_size=samples, on_episode=note, known=known).seconds
    played.sort(key=lambda t: (t.task.position, t.member))
    temperature = None if rollout.is_scripted else rollout.config.temperature
    split, source = _origin(tasks, rollout)
    return Evaluation(played, split, temperature, samples, seconds[0], source)


def _origin(tasks: list[Task], rollout: Rollout) -> tuple[str, DataSource | None]:
    """(split, source) of the tasks; of several environments each one's id and split, their sources in the names."""
    splits = {task.environment: task.split for task in tasks}
    offers = {name: rollout.environments[name].pool.capabilities() for name in splits}
    told = {name: split if offers[name].has_splits else "" for name, split in splits.items()}
    if len(told) == 1:
        ((name, split),) = told.items()
        return split, offers[name].source
    ids = {task.environment: task.env_id for task in tasks}
    names = {name: source.name_of(told[name]) if (source := offers[name].source) else told[name] for name in told}
    return ", ".join(f"{ids[name]} {names[name]}".strip() for name in told), None


class HeldOut:
    """The evaluations of a run: the same tasks every time, shared by all processes.

    Args:
        rollout: with the evaluation's sampling.
        tasks: of all processes.
        run: what they are logged to.
        processes: who plays.
        interruption: a signal abandons an evaluation.
        display: shows its progress.
    """

    def __init__(
        self, rollout: Rollout, tasks: list[Task], *, run: RunWriter, processes: Processes,
        interruption: Interruption, display: Display,
    ) -> None:  # fmt: skip
        self.rollout, self.tasks, self.run, self.processes = rollout, tasks, run, processes
        self.interruption, self.display = interruption, display

    def evaluate_once(self, step: int) -> None:
        """Evaluate, unless the run has a record of it."""
        if not self.run.is_evaluated(step):
            self.evaluate(step)

    def evaluate(self, step: int, *, final: bool = False) -> None:
        """Play the held-out tasks and log their success after `step` rollout batches.

        Args:
            step: batches so far.
            final: whether nothing follows, though more batches were planned.
        """
        samples = self.run.config.eval.samples or 1
        tasks = self.processes.share(self.tasks)
        with self.display.bar("evaluation", total=len(tasks) * samples) as bar, self.interruption.at_once():
            result = evaluate(self.rollout, tasks, samples=samples, on_episode=lambda _: bar.advance())
        played = [trajectory for each in self.processes.gather(result.trajectories) for trajectory in each]
        if self.processes.is_first:
            result = replace(result, trajectories=sorted(played, key=lambda t: (t.task.position, t.member)))
            metrics = {**result.metrics(), "time/eval_s": result.seconds}
            self.run.log_evaluation(step, metrics, result.trajectories, final=final)
            reached = f"success {format_rate(result.total)}, reward {metrics['eval/reward']:.3g}"
            self.display.line(f"evaluation after {step} batches: {reached}", force=True)


def held_out_tasks(config: Config, *, num_tasks: int | None, num_eval_tasks: int | None) -> list[Task]:
    """The evaluation tasks of an experiment, given the sizes of its training and evaluation splits."""
    _, indices = split_indices(
        split=config.env.split, eval_split=config.env.eval_split,
        num_tasks=num_tasks, num_eval_tasks=num_eval_tasks, eval_count=config.eval.tasks,
    )  # fmt: skip
    return evaluation_tasks(config.env.id, config.env.eval_split, indices=indices, count=config.eval.tasks)


def renumbered(tasks: list[Task], environment: str, *, start: int) -> list[Task]:
    """Tasks of one environment of a mixture, whose positions go on behind those of the others."""
    return [replace(task, environment=environment, position=start + i) for i, task in enumerate(tasks)]


def eval_rollout_config(config: Config) -> RolloutConfig:
    """The rollout config with the evaluation's temperature."""
    return config.rollout.model_copy(update={"temperature": config.eval.temperature})
