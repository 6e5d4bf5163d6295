"""The comparison of runs as charts and tables; one page and a terminal show the same."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.table import Table

from agentrl.analysis.speedup import format_difference, format_speedup
from agentrl.config.describe import leaves
from agentrl.report.arms import COSTS, Arm, Reached, common_level, cost_of_level, end_against, find_arms, over_seeds
from agentrl.report.charts import Chart, Series
from agentrl.report.sections import count, duration, percent, smoothed
from agentrl.report.view import RunView, without_seed

_X = {"rollouts": "training episodes", "seconds": "seconds of rollouts and updates"}


class ComparisonTable(NamedTuple):
    """Words in rows and columns."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str


class RunComparison(NamedTuple):
    """Everything that is said about several runs together."""

    charts: list[Chart]
    tables: list[ComparisonTable]


def compare_runs(runs: Sequence[RunView], level: float | None = None) -> RunComparison:
    """Charts with one curve an arm, and tables: what a level cost, verdicts of the gates, settings, every run.

    Args:
        runs: of one or more arms; the first one's arm is what the others are compared with.
        level: of held-out success, 0..1, for which costs are told; None: where the first arm ends.

    Raises:
        UserError: the runs cannot be compared.
    """
    arms = find_arms(runs)
    reached = common_level(arms, level)
    tables = [costs_table(arms, reached, is_given=level is not None), gates_table(arms)]
    return RunComparison(comparison_charts(arms, reached), [*tables, settings_table(arms), runs_table(runs)])


def comparison_charts(arms: Sequence[Arm], level: float | None) -> list[Chart]:
    """Success, reward, costs and uses of batches; bands reach from the lowest to the highest seed."""
    lines = [] if level is None else [(level, f"level {percent(level)}")]
    band = "Bands reach from the lowest to the highest seed." if any(len(arm.runs) > 1 for arm in arms) else ""

    def held_out(title: str, key: str, cost: str, format_: str) -> Chart:
        series = [_curve(arm, arm.costs(cost), arm.scores(key), color=i % 8) for i, arm in enumerate(arms)]
        return Chart(title, series, _X[cost], format_, lines=lines if key == "success" else [], note=band)

    def batches(title: str, key: str, *, format_: str = "number") -> Chart:
        series = [_of_batches(arm, key, color=i % 8) for i, arm in enumerate(arms)]
        return Chart(title, series, format=format_, note="Mean of five batches.")

    spent = [
        _curve(arm, [[float(step) for step in arm.steps]] * len(arm.runs), arm.costs("seconds"), color=i % 8)
        for i, arm in enumerate(arms)
    ]
    return [
        held_out("Held-out success against rollouts", "success", "rollouts", "percent"),
        held_out("Held-out success against time", "success", "seconds", "percent"),
        held_out("Held-out mean reward against rollouts", "reward", "rollouts", "number"),
        batches("Training success", "rollout/success", format_="percent"),
        batches("Gradients applied per batch", "learner/steps"),
        Chart("Seconds of rollouts and updates", spent, note=band),
    ]


def costs_table(arms: Sequence[Arm], level: float | None, *, is_given: bool) -> ComparisonTable:
    """Where the arms end, and what it cost them to reach a level."""
    told = "level" if level is None else percent(level)
    columns = [
        "arm", "seeds", "success at the end, %", "minus the first arm", "mean reward", f"rollouts to {told}",
        f"seconds to {told}", "rollouts saved",
    ]  # fmt: skip
    rule = "as given" if is_given else "where the first arm ends"
    note = (
        f"End: mean of the last five evaluations. Level: {told}, {rule}; costs are read off the mean curve of an arm's "
        "seeds, on straight lines between evaluations. Saved: cost of the first arm over that of this one. Brackets "
        "are 95 % intervals over seeds, which pair the arms."
    )
    return ComparisonTable("Arms", columns, [_cost_row(arm, arms[0], level) for arm in arms], note)


def gates_table(arms: Sequence[Arm]) -> ComparisonTable:
    """What the gates did with the gradients, over all batches of all seeds."""
    rows = []
    for arm in arms:
        batches = [batch for run in arm.runs for batch in run.batches]
        reuse = [update for batch in batches for update in batch["updates"] if update["k"] > 1]
        discarded = sum(not update["applied"] for update in reuse)
        closed = sum(batch["learner/gate_closed"] for batch in batches)
        used = sum(batch["learner/steps"] for batch in batches)
        rows.append([
            arm.label, f"{used / len(batches):.2f}" if batches else "-", f"{len(reuse):,}",
            f"{discarded:,} ({percent(discarded / len(reuse))})" if reuse else "-",
            f"{percent(closed / len(batches))} of {count(len(batches), 'batch')}" if batches else "-",
        ])  # fmt: skip
    columns = ["arm", "uses of a batch", "gradients at k > 1", "of them discarded", "gate closed"]
    return ComparisonTable("Gates", columns, rows, "Uses: gradients that were applied.")


def settings_table(arms: Sequence[Arm]) -> ComparisonTable:
    """Config keys in which the arms differ, those aside that say what is written and saved."""
    configs = [dict(leaves(without_seed(arm.runs[0].config))) for arm in arms]
    keys = dict.fromkeys(key for config in configs for key in config)
    differing = [key for key in keys if any(config.get(key) != configs[0].get(key) for config in configs)]
    rows = [[key, *(_word(config.get(key)) for config in configs)] for key in differing]
    commits = dict.fromkeys(str(run.versions.get("git_commit")) for arm in arms for run in arm.runs)
    note = "" if len(commits) == 1 else f"The runs were made by different versions: {', '.join(commits)}."
    return ComparisonTable("Settings that differ", ["key", *(arm.label for arm in arms)], rows, note)


def runs_table(runs: Sequence[RunView]) -> ComparisonTable:
    """One row a run: success at the start and the end, mean reward, costs."""
    rows = []
    for run in runs:
        rates = [percent(record["eval/success"]) for record in run.evals] or ["-"]
        reward = run.evals[-1].get("eval/reward") if run.evals else None
        cost = run.batches[-1] if run.batches else {}
        costs = [f"{cost.get(f'cost/{name}', 0):,}" for name in ("episodes", "optimizer_steps", "discarded_steps")]
        time = duration(run.cpu_seconds_at(cost.get("step", 0)))
        rows.append([run.label, rates[0], rates[-1], "-" if reward is None else f"{reward:.3g}", *costs, time])
    columns = ["run", "start", "end", "mean reward", "rollouts", "gradients", "discarded", "CPU time"]
    return ComparisonTable("Runs", columns, rows, "")


def terminal_table(table: ComparisonTable) -> Table:
    """For the terminal."""
    view = Table(title=table.title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for number, column in enumerate(table.columns):
        view.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in table.rows:
        view.add_row(*row)
    return view


def _cost_row(arm: Arm, first: Arm, level: float | None) -> list[str]:
    seeds = str(len(arm.runs))
    if not arm.steps or level is None:
        return [arm.label, seeds, *["-"] * 6]
    ends, reached = over_seeds(arm.ends()), cost_of_level(arm, first, level)
    end = f"{100 * ends.mean:.1f}" + (f" [{100 * ends.low:.1f}, {100 * ends.high:.1f}]" if ends.count > 1 else "")
    rewards = arm.ends("reward")
    reward = f"{sum(rewards) / len(rewards):.3g}"
    difference = end_against(arm, first)
    against = "" if arm is first else "no seed in common" if difference is None else format_difference(difference)
    costs = [_cost(reached, name, len(arm.runs)) for name in COSTS]
    return [arm.label, seeds, end, against, reward, *costs, _saved(arm, first, reached)]


def _cost(reached: Reached, name: str, num_runs: int) -> str:
    cost = reached.costs[name]
    text = "not reached" if cost is None else f"{cost:,.0f}"
    return text if reached.num_runs in (0, num_runs) else f"{text} ({reached.num_runs} of {num_runs} seeds)"


def _saved(arm: Arm, first: Arm, reached: Reached) -> str:
    if arm is first or reached.speedup is None:
        return ""
    if reached.speedup.value is None and reached.costs["rollouts"] is not None:
        return "-"  # the first arm does not get there, or begins there
    if len(arm.runs) == 1 and reached.speedup.value is not None:
        return f"{reached.speedup.value:.2f}x (one seed)"
    return format_speedup(reached.speedup)


def _curve(arm: Arm, x: list[list[float]], y: list[list[float]], *, color: int) -> Series:
    """Mean over seeds, with the range of the seeds where there are several."""
    columns, seeds = list(zip(*y, strict=True)), len(arm.runs)
    costs = [sum(values) / seeds for values in zip(*x, strict=True)]
    low, high = (list(map(end, columns)) if seeds > 1 else None for end in (min, max))
    return Series(arm.label, costs, [sum(values) / seeds for values in columns], low, high, color, "dots")


def _of_batches(arm: Arm, key: str, *, color: int) -> Series:
    """Mean over seeds of a number of the batches that all of them have played."""
    rows = [[float(batch[key]) for batch in run.batches] for run in arm.runs]
    means = [sum(values) / len(values) for values in zip(*rows, strict=False)]
    return Series(arm.label, [float(i + 1) for i in range(len(means))], smoothed(means), color=color)


def _word(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
