"""Success rates of played tasks, with intervals."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from agentrl.analysis.sampling import Accuracy, accuracy_table, mean_at_k, rate_interval
from agentrl.common.data_source import DataSource
from agentrl.common.intervals import wilson_interval
from agentrl.evaluation.samples import (
    problem_samples,
)
from agentrl.runs.metrics import environment_metrics, reward_metrics, verdict_metrics
from agentrl.types import Metrics, Status, Trajectory


@dataclass(frozen=True)
class Rate:
    """Successes of one category."""

    successes: int
    count: int
    bounds: tuple[float, float] | None = None
    """95 % interval where tasks were played several times: then episodes are not independent."""

    @property
    def value(self) -> float:
        """Share of successes, 0..1."""
        return self.successes / self.count if self.count else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval, else the given one."""
        return self.bounds or wilson_interval(self.successes, self.count)


@dataclass
class Evaluation:
    """Result of playing held-out tasks, each equally often."""

    trajectories: list[Trajectory]
    """`samples` a task."""
    split: str
    """Of the environment's splits the one that was played; empty where it has none."""
    temperature: float | None
    """Sampling temperature; None for scripted policies."""
    samples: int = 1
    """Episodes per task."""
    seconds: float = 0.0
    """Wall time of this process."""
    source: DataSource | None = None
    """Where the tasks come from; None where the environment does not say."""

    @property
    def total(self) -> Rate:
        """Successes over all tasks; an episode that could not be played counts as none."""
        return self._rate(self.trajectories)

    @property
    def accuracy(self) -> dict[str, Accuracy]:
        """mean@k, pass@k and majority@k per benchmark and its parts."""
        return accuracy_table(problem_samples(self.trajectories))

    def _rate(self, trajectories: list[Trajectory]) -> Rate:
        successes = sum(t.success for t in trajectories)
        if self.samples == 1:
            return Rate(successes, len(trajectories))
        estimate = rate_interval([mean_at_k(p.correct) for p in problem_samples(trajectories)])
        return Rate(successes, len(trajectories), (estimate.low, estimate.high))

    @property
    def by_category(self) -> dict[str, Rate]:
        """Successes per category, by name; of a mixture per environment, and per category of each."""
        members: dict[str, list[Trajectory]] = defaultdict(list)
        for trajectory in self.trajectories:
            environment = trajectory.task.environment
            if environment:
                members[environment].append(trajectory)
            if trajectory.category:
                members[f"{environment}: {trajectory.category}" if environment else trajectory.category].append(
                    trajectory
                )
        return {name: self._rate(trajectories) for name, trajectories in sorted(members.items())}

    def metrics(self) -> Metrics:
        """Flat numbers for metrics.jsonl."""
        played = [t for t in self.trajectories if t.status is not Status.FAILED]
        scores = [t.score for t in played if t.score is not None]
        rates = self.rates
        low, high = rates["all"].interval
        return {
            "eval/success": rates["all"].value,
            "eval/success_low": low,
            "eval/success_high": high,
            "eval/tasks": len({t.task.position for t in self.trajectories}),
            "eval/samples": self.samples,
            "eval/failed": len(self.trajectories) - len(played),
            "eval/never_asked": sum(t.unasked_tokens > 0 for t in played),
            "eval/longest_unasked": max((t.unasked_tokens for t in played), default=0),
            "eval/reward": _mean([t.reward for t in played]),
            "eval/turns": _mean([len(t.turns) for t in played]),
            **({"eval/score": _mean(scores)} if scores else {}),
            **verdict_metrics("eval", played),
            **environment_metrics("eval", played),
            **reward_metrics(played, "eval/rewards"),
            **{f"eval/success/{name}": rate.value for name, rate in rates.items() if name != "all"},
            "eval/counts": {name: [rate.successes, rate.count] for name, rate in rates.items()},
            "eval/split": self.source.name_of(self.split) if self.source else self.split,
            **({"eval/data": self.source.record()} if self.source else {}),
            **({"eval/bounds": {name: rate.bounds for name, rate in rates.items()}} if self.samples > 1 else {}),
        }

    @property
    def rates(self) -> dict[str, Rate]:
        """Successes per category, and under `all` over all tasks."""
        return {**self.by_category, "all": self.total}


def rates_from_metrics(record: Metrics) -> dict[str, Rate]:
    """`Evaluation.rates` of a record in metrics.jsonl."""
    bounds = record.get("eval/bounds", {})
    return {
        name: Rate(wins, count, tuple(bounds[name]) if name in bounds else None)
        for name, (wins, count) in record["eval/counts"].items()
    }


def format_rate(rate: Rate) -> str:
    """`61.0 % [55.1, 66.6]`."""
    low, high = rate.interval
    return f"{100 * rate.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]" if rate.count else "-"


def _mean(values: list[Any]) -> float:
    return float(sum(values) / len(values)) if values else 0.0
