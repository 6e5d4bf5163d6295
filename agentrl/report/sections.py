"""The parts of the page as numbers and words; templates make HTML of them, and escape all that comes from a run."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from agentrl.analysis.speedup import degradation_onset
from agentrl.config.describe import leaves
from agentrl.report.charts import Chart, Histogram, Series, Timeline
from agentrl.report.view import RunView, name_policy, rate_factors, success_interval
from agentrl.runs.metrics import clock_seconds


class Tile(NamedTuple):
    """One of the numbers that one looks for first."""

    name: str
    value: str
    note: str


class CategoryRow(NamedTuple):
    """Success of one category: (rate, low, high, tasks) at the start and now."""

    name: str
    before: tuple[float, float, float, int]
    now: tuple[float, float, float, int]

    @property
    def change(self) -> float:
        """Percentage points."""
        return 100 * (self.now[0] - self.before[0])


def describe_policy(config: dict[str, Any]) -> str:
    """Reuse policy and learning rate of an experiment in words."""
    return f"{name_policy(config)}, learning rate {config['learner']['lr']:g}"


def tiles(run: RunView) -> list[Tile]:
    """What was reached, and what it cost."""
    return [*_result_tiles(run), *_cost_tiles(run)]


def diagnosis(run: RunView) -> list[tuple[int, str]]:
    """(batch, what kept the run from learning and the remedy), as the run told it."""
    return [(batch["step"], cause["text"]) for batch in run.batches for cause in batch.get("diagnosis", ())]


def found_causes(run: RunView) -> list[tuple[int, str]]:
    """(batch, code) of what the diagnosis found while the run went on."""
    return [(batch["step"], cause["code"]) for batch in run.batches for cause in batch.get("diagnosis", ())]


def _result_tiles(run: RunView) -> Iterator[Tile]:
    if not run.evals:
        return
    rate, low, high, num_tasks = success_interval(run.evals[-1])
    name = "success now" if run.is_run else "success"
    yield Tile(
        name,
        percent(rate),
        f"{percent(low)} to {percent(high)}, {count(num_tasks, 'task')}",
    )
    if run.is_run:
        change = rate - success_interval(run.evals[0])[0]
        yield Tile("change", f"{100 * change:+.1f}", "points since the start")
    reward = run.evals[-1].get("eval/reward")
    if reward is not None:
        first = run.evals[0].get("eval/reward", reward)
        yield Tile("mean reward", f"{reward:.3g}", f"{first:.3g} at the start" if run.is_run else "held-out tasks")


def _cost_tiles(run: RunView) -> Iterator[Tile]:
    batches = run.batches
    if not batches:
        return
    last = batches[-1]
    yield Tile("rollouts", f"{last['cost/episodes']:,}", f"{last['cost/generated_tokens']:,} tokens generated")
    used, thrown = last["cost/optimizer_steps"], last["cost/discarded_steps"]
    per_batch = (used + thrown) / len(batches)
    yield Tile("gradients", f"{used + thrown:,}", f"{thrown:,} discarded; {per_batch:.1f} a batch")
    closed = sum(batch["learner/gate_closed"] for batch in batches)
    yield Tile("gate closed", f"{closed / len(batches):.0%}", f"{closed} of {len(batches)} batches")
    factors = rate_factors(run)[1]
    if factors:
        yield Tile("rate", f"{factors[-1]:.3g}", f"of {run.config['learner']['lr']:g}; set by the gate")
    seconds = sum(map(clock_seconds, batches))
    share = 1 - sum(batch["time/update_s"] for batch in batches) / max(1e-9, seconds)
    yield Tile("time", duration(seconds), f"{share:.0%} of it waiting for rollouts")


def run_charts(run: RunView) -> Iterator[Chart | Histogram]:
    """The charts of one run, most telling first."""
    onset = degradation_onset([record["eval/success"] for record in run.evals])
    marks = [] if onset is None else [(float(run.evals[onset]["step"]), "breaks down")]
    marks += [(float(step), code.replace("_", " ")) for step, code in found_causes(run)]
    yield _held_out_chart(run, "Success", "success", format_="percent", marks=marks)
    yield _held_out_chart(run, "Mean reward", "reward", format_="number", marks=marks)
    energies = [Series(f"k = {k}", *_of_updates(run, "head_energy", k), color=i) for i, k in enumerate((1, 2, 4, 8))]
    yield Chart("Gradient energy of the lm_head", [s for s in energies if s.x], format="log")
    yield Chart("Entropy of the policy", [_batch_series(run, "nats a token", "learner/entropy", 2)])
    shift = [("KL(rollout || now)", "kl", 4), ("share of clipped tokens", "clip_fraction", 3)]
    yield Chart(
        "Policy shift at the last use of a batch",
        [Series(name, *_of_updates(run, key, None), color=color) for name, key, color in shift],
    )
    yield from _learning_charts(run, marks)
    yield Chart("Turns per episode", [_batch_series(run, "turns", "rollout/turns", 5)])
    invalid = _batch_series(run, "invalid actions", "rollout/invalid_actions", 3)
    cut = _batch_series(run, "turns cut at the token limit", "rollout/cut_turns", 6)
    failed = _batch_series(run, "episodes that failed", "rollout/failed_share", 1)
    limited = _batch_series(run, "episodes that a limit ended", "health/truncated", 7)
    yield Chart("What goes wrong", [invalid, cut, limited, failed], format="percent")
    repeated = _batch_series(
        run, "share of answers that another one of the group repeats", "health/repeated_answers", 4
    )
    yield Chart("Repeated answers", [repeated], format="percent")
    told = _batch_series(run, "nats a word", "health/task_information", 5)
    yield Chart("What answers tell about their task", [told], note="Mutual information; 0: one template for all tasks.")
    mixed = [batch["batch/mixed_groups"] / max(1, batch["batch/groups"]) for batch in run.batches]
    teaching = Series("share of groups", [batch["step"] for batch in run.batches], mixed, color=7)
    yield Chart("Groups that teach (rewards differ)", [teaching], format="percent")
    seconds = [("rollouts", "time/rollout_s", 0), ("updates", "time/update_s", 1)]
    yield Chart("Seconds per batch", [_batch_series(run, *series) for series in seconds])
    yield from _waiting_charts(run)


def _waiting_charts(run: RunView) -> Iterator[Chart | Histogram]:
    """For whom a batch waits, in runs that have it on record."""
    timed = [batch for batch in run.batches if batch.get("time/whole_s")]
    if not timed:
        return
    seconds = [value for batch in timed for value in batch["time/episodes_s"]]
    yield Histogram("How long episodes take", seconds, "seconds", note="All training episodes; counts logarithmic.")
    steps = [batch["step"] for batch in timed]
    ends = [sorted(batch["time/whole_s"]) for batch in timed]
    parts = [("first", 0.0, 2), ("half of them", 0.5, 0), ("last", 1.0, 3)]
    series = [
        Series(name, steps, [times[round(share * (len(times) - 1))] for times in ends], color=color)
        for name, share, color in parts
    ]
    yield Chart("When the groups of a batch are whole, in seconds", series)


def _learning_charts(run: RunView, marks: list[tuple[float, str]]) -> Iterator[Chart]:
    """What only some runs have: a rate that the gate sets, masks, measured weight changes."""
    steps, factors = rate_factors(run)
    if factors:
        yield Chart("Learning rate", [Series("share that the gate leaves", steps, factors, color=6)])
    if any("masked" in update for batch in run.batches for update in batch["updates"]):
        ends = (("first use", 1, 0), ("last use", None, 3))
        masked = [Series(name, *_of_updates(run, "masked", k), color=color) for name, k, color in ends]
        yield Chart("Tokens that a mask leaves out", masked, format="percent")
    changes = [batch for batch in run.batches if "weight_change/lm_head" in batch or "weight_change/mlp" in batch]
    if changes:
        steps = [batch["step"] for batch in changes]
        groups = [key for key in changes[0] if key.startswith("weight_change/")]
        series = [
            Series(key.split("/")[1], steps, [batch[key] for batch in changes], color=i, style="dots")
            for i, key in enumerate(groups)
        ]
        yield Chart("Relative weight change per group of layers", series, marks=marks)


def _held_out_chart(run: RunView, title: str, key: str, *, format_: str, marks: list[tuple[float, str]]) -> Chart:
    """A number of the held-out tasks (with its interval, where it is recorded) and of the training batches."""
    evals = [record for record in run.evals if f"eval/{key}" in record]
    has_bounds = all(f"eval/{key}_low" in record for record in evals)
    low, high = ([record[f"eval/{key}_{end}"] for record in evals] if has_bounds else None for end in ("low", "high"))
    held_out = Series(
        "held out, with 95 % interval" if has_bounds else "held out",
        [record["step"] for record in evals],
        [record[f"eval/{key}"] for record in evals],
        low,
        high,
        style="dots",
    )
    steps = [batch["step"] for batch in run.batches]
    training = [batch[f"rollout/{key}"] for batch in run.batches]
    points = Series("training batch", steps, training, color=1, style="points")
    smooth = Series("training, mean of 5", steps, smoothed(training), color=1)
    return Chart(title, [points, smooth, held_out], format=format_, marks=marks)


def gate_timeline(run: RunView) -> Timeline:
    """What became of every gradient."""
    return Timeline("gate timeline", [[_verdict(batch["step"], u) for u in batch["updates"]] for batch in run.batches])


def decisions(run: RunView) -> Chart | None:
    """The number that the gate looks at, against its limit; None of gates that look at none."""
    settings = run.config["gate"]
    if settings["kind"] in ("dgg", "total_norm_z"):
        key, title, lines = "z_score", "z-score of every reuse step", {"tau": settings["tau"]}
    elif settings["kind"] == "kl_rate" and "target" in settings:
        target, stop = settings["target"], settings["threshold"]
        # A limit out of reach, as of a controller that never stops, would flatten the chart.
        apart = stop is not None and stop != target and stop <= 10 * target
        key, title, lines = "kl", "KL of every reuse step", {"target": target} | ({"stop": stop} if apart else {})
    else:
        return None
    tested = [(b["step"], u) for b in run.batches for u in b["updates"] if u["k"] > 1 and key in u]
    series = []
    for name, applied, color in (("applied", True, 2), ("discarded", False, 3)):
        pairs = [(step, update[key]) for step, update in tested if update["applied"] is applied]
        series.append(Series(name, *_unzip(pairs), color=color, style="points"))
    return Chart(title, series, lines=[(value, f"{name} = {value:g}") for name, value in lines.items()])


def categories(run: RunView) -> list[CategoryRow]:
    """Success per category at the start and now; none before the first evaluation."""
    if not run.evals:
        return []
    first, last = run.evals[0], run.evals[-1]
    names = [*(name for name in last["eval/counts"] if name != "all"), "all"]
    return [CategoryRow(name, success_interval(first, name), success_interval(last, name)) for name in names]


def accuracy(run: RunView) -> tuple[list[str], list[list[str]]]:
    """mean@k, pass@k and majority@k of an evaluation that played tasks several times: headings and rows."""
    table: dict[str, dict[str, Any]] = run.evals[-1].get("accuracy", {}) if run.evals else {}
    names = list(dict.fromkeys(key for row in table.values() for key in row if key != "problems"))
    rows = [
        [name, f"{row['problems']:,}", *(_estimate(row[key]) if key in row else "-" for key in names)]
        for name, row in table.items()
    ]
    return ["benchmark", "problems", *names], rows


def settings(run: RunView) -> dict[str, Any]:
    """Everything that is needed to repeat the run."""
    versions = {key: value for key, value in run.versions.items() if key not in ("command", "seed")}
    command = " ".join(["python -m agentrl.train", *run.versions.get("command", [])[1:]]) if run.is_run else ""
    return {"command": command, "config": list(leaves(run.config)), "versions": versions}


def _verdict(step: int, update: dict[str, Any]) -> tuple[str, str]:
    z = f", z = {update['z_score']:.2f}" if "z_score" in update else ""
    if not update["applied"]:
        return "discarded", f"batch {step}, k = {update['k']}: discarded ({update['reason']}){z}"
    kind = "scaled" if update["reason"] == "scaled" else "applied"
    return kind, f"batch {step}, k = {update['k']}: {kind}{z}, energy {update['head_energy']:.3g}"


def _estimate(values: list[float]) -> str:
    mean, low, high = (100 * value for value in values)
    return f"{mean:.1f} % [{low:.1f}, {high:.1f}]"


def _batch_series(run: RunView, name: str, key: str, color: int) -> Series:
    """A metric of the rollout batches that have it."""
    found = [(batch["step"], batch[key]) for batch in run.batches if key in batch]
    return Series(name, *_unzip(found), color=color)


def _of_updates(run: RunView, key: str, k: int | None) -> tuple[list[float], list[float]]:
    """(batch, value) at the k-th gradient of each batch, or at the last one."""
    pairs = []
    for batch in run.batches:
        updates = batch["updates"]
        if updates and (k is None or len(updates) >= k):
            pairs.append((batch["step"], updates[-1 if k is None else k - 1][key]))
    return _unzip(pairs)


def _unzip(pairs: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
    pairs = list(pairs)
    return [x for x, _ in pairs], [y for _, y in pairs]


def smoothed(values: list[float], width: int = 5) -> list[float]:
    """Each with the mean of the last few."""
    windows = [values[max(0, i - width + 1) : i + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def percent(value: float) -> str:
    """`61.0 %`."""
    return f"{100 * value:.1f} %"


def count(value: int, noun: str) -> str:
    """`1 batch`, `12 batches`."""
    plural = noun + ("es" if noun.endswith("ch") else "s")
    return f"{value:,} {noun if value == 1 else plural}"


def duration(seconds: float) -> str:
    """`90 s`, `12 min`, `3.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
