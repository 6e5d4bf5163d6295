"""Training runs side by side: which are seeds of one arm, whether they can be compared, what a level cost each."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from agentrl.analysis.speedup import Difference, Speedup, converged, cost_to_reach, paired_difference, speedup
from agentrl.common.data_source import PLACES, tasks_of
from agentrl.errors import UserError
from agentrl.report.view import RunView, describe_differences, name_policy, same_settings, without_seed

COSTS = ("rollouts", "seconds")
"""Training episodes; seconds of rollouts and updates on the clock, evaluations left out."""


@dataclass(frozen=True)
class Arm:
    """One setting, on some seeds. Shapes: S seeds, E evaluations that all of its runs have made."""

    label: str
    """What tells it from the other arms."""
    runs: list[RunView]
    """By seed."""

    @cached_property
    def seeds(self) -> list[int]:
        """`train.seed` of its runs."""
        return [run.config["train"]["seed"] for run in self.runs]

    @cached_property
    def steps(self) -> list[int]:
        """Rollout batches after which all of its runs were evaluated, [E]."""
        first, *others = [{record["step"] for record in run.evals} for run in self.runs]
        return sorted(first.intersection(*others))

    def scores(self, key: str) -> list[list[float]]:
        """`success` or `reward` on the held-out tasks, [S][E]."""
        found = [{record["step"]: record.get(f"eval/{key}", float("nan")) for record in run.evals} for run in self.runs]
        return [[of_run[step] for step in self.steps] for of_run in found]

    def costs(self, name: str) -> list[list[float]]:
        """One of `COSTS`, spent by each evaluation, [S][E]."""
        if name == "rollouts":
            return [[float(run.episodes_at(step)) for step in self.steps] for run in self.runs]
        return [[run.seconds_at(step) for step in self.steps] for run in self.runs]

    def ends(self, key: str = "success") -> list[float]:
        """Mean of the last five evaluations, that before training left out where there are others, [S]."""
        skipped = 1 if len(self.steps) > 1 and not self.steps[0] else 0
        return [converged(curve[skipped:]) for curve in self.scores(key)]

    def only(self, seeds: Sequence[int]) -> "Arm":
        """The same on some of its seeds, one run each."""
        return Arm(self.label, [self.runs[self.seeds.index(seed)] for seed in seeds])


def find_arms(runs: Sequence[RunView]) -> list[Arm]:
    """The arms among runs, in the order in which they were given.

    Raises:
        UserError: the runs cannot be compared; the message names every reason.
    """
    reasons = [reason for run in runs[1:] for reason in reasons_against(runs[0], run)]
    if reasons:
        raise UserError(f"These runs cannot be compared: {'; '.join(reasons)}. Report them one by one.")
    groups = same_settings(runs)
    configs = [without_seed(group[0].config) for group in groups]
    labels = [label or name_policy(configs[0]) for label in describe_differences(configs)]
    return [
        Arm(label if labels.count(label) == 1 else f"{label} ({group[0].name})", group)
        for label, group in zip(labels, groups, strict=True)
    ]


def reasons_against(first: RunView, other: RunView) -> list[str]:
    """Why two runs cannot be compared: what they play and what they are evaluated on."""
    evaluations = [run.name for run in (first, other) if not run.is_run]
    if evaluations:
        return [f"{name} is an evaluation (agentrl compare puts those side by side)" for name in evaluations]
    told = [{**_played(run), **_evaluated_on(run)} for run in (first, other)]
    return [
        f"{name} is {told[0][name]!r} in {first.name} and {told[1][name]!r} in {other.name}"
        for name in told[0]
        if name in told[1] and told[0][name] != told[1][name]
    ]


def _played(run: RunView) -> dict[str, Any]:
    """Environments by what determines their tasks."""
    env = run.config["env"]
    tables = env if isinstance(env, list) else [env]
    options = [{key: value for key, value in e["options"].items() if key not in PLACES} for e in tables]
    return {
        "env.id": [e["id"] for e in tables] if len(tables) > 1 else tables[0]["id"],
        "env.options": options if len(tables) > 1 else options[0],
    }


def _evaluated_on(run: RunView) -> dict[str, Any]:
    """The held-out tasks, as the first evaluation tells of them; nothing before it."""
    if not run.evals:
        return {}
    first = run.evals[0]
    samples = first.get("eval/samples", 1)
    counts = {name: count // samples for name, (_, count) in first["eval/counts"].items()}
    return {"evaluation": tasks_of(first), "number of held-out tasks by category": counts}


@dataclass(frozen=True)
class Reached:
    """What a level of held-out success cost an arm; its curve is the mean over its seeds."""

    costs: dict[str, float | None]
    """Of `COSTS`; None: not reached."""
    num_runs: int
    """Runs of it that reach the level by themselves."""
    speedup: Speedup | None
    """In rollouts, over the seeds that it shares with the reference; None without any."""


def common_level(arms: Sequence[Arm], given: float | None = None) -> float | None:
    """The level of success that costs are told for: the given one, else where the first arm ends; None before that."""
    if given is not None:
        return given
    ends = arms[0].ends() if arms[0].steps else []
    return sum(ends) / len(ends) if ends else None


def cost_of_level(arm: Arm, reference: Arm, level: float) -> Reached:
    """When an arm reaches a level, and how many times cheaper than another one."""
    if not arm.steps:
        return Reached(dict.fromkeys(COSTS), 0, None)
    curves = arm.scores("success")
    mean = _mean(curves)
    costs = {name: cost_to_reach(_mean(arm.costs(name)), mean, level) for name in COSTS}
    seeds = shared_seeds(arm, reference)
    gain = None
    if seeds and arm is not reference:
        pair = [each.only(seeds) for each in (reference, arm)]
        one, two = ((each.costs("rollouts"), each.scores("success")) for each in pair)
        gain = speedup(one, two, target=level)
    return Reached(costs, sum(max(curve) >= level for curve in curves), gain)


def end_against(arm: Arm, reference: Arm) -> Difference | None:
    """Success at the end minus that of another arm, paired by seed; None without a seed in common."""
    seeds = shared_seeds(arm, reference)
    if not seeds or arm is reference:
        return None
    return paired_difference(arm.only(seeds).ends(), reference.only(seeds).ends())


def shared_seeds(arm: Arm, reference: Arm) -> list[int]:
    """Seeds on which both have an evaluated run."""
    return sorted(set(arm.seeds) & set(reference.seeds)) if arm.steps and reference.steps else []


def over_seeds(values: Sequence[float]) -> Difference:
    """A mean over seeds with its 95 % interval (Student's t)."""
    return paired_difference(values, [0.0] * len(values))


def _mean(curves: Sequence[Sequence[float]]) -> list[float]:
    """Over seeds, [E]."""
    return [sum(values) / len(values) for values in zip(*curves, strict=True)]
