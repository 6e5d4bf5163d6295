"""The parts of the page as HTML text. All text that comes from a run is escaped here."""

from collections.abc import Iterable
from html import escape
from typing import Any

from agentrl.analysis.speedup import degradation_onset
from agentrl.report.charts import Chart, Series, draw, gate_timeline
from agentrl.report.view import RunView, name_policy, rate_factors, success_interval


def headline(run: RunView) -> str:
    """Title and one sentence: what was learned, at what cost."""
    env, batches, evals = run.config["env"], run.batches, run.evals
    state = "" if run.is_finished else ' <span class="badge live">running</span>'
    sentence = "No evaluation yet."
    if evals:
        first, last = success_interval(evals[0]), success_interval(evals[-1])
        episodes = run.episodes_at(evals[-1]["step"])
        sentence = (
            f"Success on <b>{last[3]}</b> held-out tasks went from <b>{_percent(first[0])}</b> to "
            f"<b>{_percent(last[0])}</b> in {_count(episodes, 'training episode')} "
            f"({_count(evals[-1]['step'], 'rollout batch')})."
        )
    gate = f"{describe_policy(run.config)}; {len(batches)} of {run.config['train']['steps']} rollout batches"
    return (
        f"<h1>{escape(env['id'])}{state}</h1><p class=lead>{sentence}</p>"
        f'<p class="sub">{escape(run.name)} · {escape(gate)}</p>'
    )


def describe_policy(config: dict[str, Any]) -> str:
    """Reuse policy and learning rate of an experiment in words."""
    return f"{name_policy(config)}, learning rate {config['learner']['lr']:g}"


def tiles(run: RunView) -> str:
    """The numbers one looks for first."""
    batches, evals = run.batches, run.evals
    cells = []
    if evals:
        rate, low, high, count = success_interval(evals[-1])
        cells.append(("success now", _percent(rate), f"{_percent(low)} to {_percent(high)}, {_count(count, 'task')}"))
        change = rate - success_interval(evals[0])[0]
        cells.append(("change", f"{100 * change:+.1f}", "points since the start"))
    if batches:
        last = batches[-1]
        cells.append(("rollouts", f"{last['cost/episodes']:,}", f"{last['cost/generated_tokens']:,} tokens generated"))
        used, thrown = last["cost/optimizer_steps"], last["cost/discarded_steps"]
        per_batch = (used + thrown) / len(batches)
        cells.append(("gradients", f"{used + thrown:,}", f"{thrown:,} discarded; {per_batch:.1f} a batch"))
        closed = sum(batch["learner/gate_closed"] for batch in batches)
        cells.append(("gate closed", f"{closed / len(batches):.0%}", f"{closed} of {len(batches)} batches"))
        factors = rate_factors(run)[1]
        if factors:
            cells.append(("rate", f"{factors[-1]:.3g}", f"of {run.config['learner']['lr']:g}; set by the gate"))
        rollout = sum(batch["time/rollout_s"] for batch in batches)
        update = sum(batch["time/update_s"] for batch in batches)
        share = rollout / max(1e-9, rollout + update)
        cells.append(("time", _duration(rollout + update), f"{share:.0%} of it rollouts"))
    items = "".join(
        f"<div><dt>{escape(a)}</dt><dd>{escape(b)}</dd><small>{escape(c)}</small></div>" for a, b, c in cells
    )
    return f'<dl class="tiles">{items}</dl>'


def curves(run: RunView) -> str:
    """Held-out success first, then what explains it."""
    return f'<div class="charts">{"".join(draw(chart) for chart in run_charts(run))}</div>'


def run_charts(run: RunView) -> Iterable[Chart]:
    """The charts of one run, most telling first."""
    onset = degradation_onset([record["eval/success"] for record in run.evals])
    marks = [] if onset is None else [(float(run.evals[onset]["step"]), "breaks down")]
    yield _success_chart(run, marks)
    energies = [Series(f"k = {k}", *_of_updates(run, "head_energy", k), color=i) for i, k in enumerate((1, 2, 4, 8))]
    yield Chart("Gradient energy of the lm_head", [s for s in energies if s.x], format="log")
    yield Chart("Entropy of the policy", [_batch_series(run, "nats a token", "learner/entropy", 2)])
    shift = [("KL(rollout || now)", "kl", 4), ("share of clipped tokens", "clip_fraction", 3)]
    yield Chart(
        "Policy shift at the last use of a batch",
        [Series(name, *_of_updates(run, key, None), color=color) for name, key, color in shift],
    )
    steps, factors = rate_factors(run)
    if factors:
        yield Chart("Learning rate", [Series("share that the gate leaves", steps, factors, color=6)])
    if any("masked" in update for batch in run.batches for update in batch["updates"]):
        masked = [Series(name, *_of_updates(run, "masked", k), color=c) for name, k, c in _FIRST_AND_LAST]
        yield Chart("Tokens that a mask leaves out", masked, format="percent")
    changes = [batch for batch in run.batches if "weight_change/lm_head" in batch or "weight_change/mlp" in batch]
    if changes:
        steps = [batch["step"] for batch in changes]
        groups = [key for key in changes[0] if key.startswith("weight_change/")]
        yield Chart(
            "Relative weight change per group of layers",
            [
                Series(key.split("/")[1], steps, [batch[key] for batch in changes], color=i, style="dots")
                for i, key in enumerate(groups)
            ],
            marks=marks,
        )
    yield Chart("Turns per episode", [_batch_series(run, "turns", "rollout/turns", 5)])
    invalid = _batch_series(run, "invalid actions", "rollout/invalid_actions", 3)
    cut = _batch_series(run, "turns cut at the token limit", "rollout/cut_turns", 6)
    yield Chart("What goes wrong", [invalid, cut], format="percent")
    mixed = [batch["batch/mixed_groups"] / max(1, batch["batch/groups"]) for batch in run.batches]
    teaching = Series("share of groups", [batch["step"] for batch in run.batches], mixed, color=7)
    yield Chart("Groups that teach (rewards differ)", [teaching], format="percent")
    seconds = [("rollouts", "time/rollout_s", 0), ("updates", "time/update_s", 1)]
    yield Chart("Seconds per batch", [_batch_series(run, *series) for series in seconds])


_FIRST_AND_LAST = (("first use", 1, 0), ("last use", None, 3))
"""Name, k and color of a batch's ends."""


def _success_chart(run: RunView, marks: list[tuple[float, str]]) -> Chart:
    evals = run.evals
    held_out = Series(
        "held out, with 95 % interval",
        [record["step"] for record in evals],
        [record["eval/success"] for record in evals],
        [record["eval/success_low"] for record in evals],
        [record["eval/success_high"] for record in evals],
        style="dots",
    )
    steps = [batch["step"] for batch in run.batches]
    training = [batch["rollout/success"] for batch in run.batches]
    points = Series("training batch", steps, training, color=1, style="points")
    smooth = Series("training, mean of 5", steps, _smooth(training), color=1)
    return Chart("Success", [points, smooth, held_out], format="percent", marks=marks)


def gate(run: RunView) -> str:
    """Timeline of verdicts, and the numbers behind them."""
    verdicts = [[_verdict(batch["step"], update) for update in batch["updates"]] for batch in run.batches]
    if not any(verdicts):
        return '<p class="none">no gradient yet</p>'
    max_reuse = max(len(batch) for batch in verdicts)
    kinds = [kind for batch in verdicts for kind, _ in batch]
    names = [("applied", "applied"), ("discarded", "discarded"), ("scaled", "scaled down")]
    keys = "".join(f'<span class="key"><i class="{kind}"></i>{name}</span>' for kind, name in names if kind in kinds)
    return (
        f"<p>Every column is a rollout batch, every square a gradient on it, the first use at the bottom. {keys}</p>"
        f'<div class="scroll">{gate_timeline(verdicts, max_reuse)}</div>{_decisions(run)}'
    )


def _decisions(run: RunView) -> str:
    settings = run.config["gate"]
    if settings["kind"] in ("dgg", "total_norm_z"):
        key, title, lines = "z_score", "z-score of every reuse step", {"tau": settings["tau"]}
    elif settings["kind"] == "kl_rate":
        target, stop = settings["target"], settings["threshold"]
        # A limit out of reach, as of a controller that never stops, would flatten the chart.
        apart = stop is not None and stop != target and stop <= 10 * target
        key, title, lines = "kl", "KL of every reuse step", {"target": target} | ({"stop": stop} if apart else {})
    else:
        return ""
    tested = [(b["step"], u) for b in run.batches for u in b["updates"] if u["k"] > 1 and key in u]
    series = []
    for name, applied, color in (("applied", True, 2), ("discarded", False, 3)):
        pairs = [(step, update[key]) for step, update in tested if update["applied"] is applied]
        series.append(Series(name, *_unzip(pairs), color=color, style="points"))
    chart = Chart(title, series, lines=[(value, f"{name} = {value:g}") for name, value in lines.items()])
    return f'<div class="charts">{draw(chart)}</div>'


def categories(run: RunView) -> str:
    """Success per category at the start and now, with intervals."""
    if not run.evals:
        return '<p class="none">no evaluation yet</p>'
    first, last = run.evals[0], run.evals[-1]
    names = [name for name in last["eval/counts"] if name != "all"]
    rows = []
    for name in [*names, "all"]:
        before, now = success_interval(first, name), success_interval(last, name)
        change = 100 * (now[0] - before[0])
        kind = "up" if change > 0 else "down" if change < 0 else "even"
        rows.append(
            f'<tr class="{"total" if name == "all" else "one"}"><th>{escape(name)}</th><td>{_percent(before[0])}</td>'
            f'<td>{_percent(now[0])}</td><td class="{kind}">{change:+.1f}</td>'
            f'<td class="wide">{_bar(before, now)}</td><td>{now[3]}</td></tr>'
        )
    head = _head_row("category", "start", "now", "points", "with 95 % interval", "tasks")
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'


def comparison(runs: list[RunView]) -> str:
    """Runs side by side: curves against rollouts and time, and one row each."""
    rollouts, times = [], []
    for i, run in enumerate(runs):
        success = [record["eval/success"] for record in run.evals]
        steps = [record["step"] for record in run.evals]
        rollouts.append(
            Series(run.label, [run.episodes_at(step) for step in steps], success, color=i % 8, style="dots")
        )
        times.append(Series(run.label, [run.seconds_at(step) for step in steps], success, color=i % 8, style="dots"))
    charts = [
        Chart("Held-out success against rollouts", rollouts, "training episodes", "percent"),
        Chart("Held-out success against time", times, "CPU seconds of rollouts and updates", "percent"),
    ]
    head = _head_row("run", "start", "end", "rollouts", "gradients", "discarded", "CPU time")
    rows = "".join(_comparison_row(run) for run in runs)
    return (
        f'<div class="charts">{"".join(map(draw, charts))}</div><div class="scroll"><table>{head}{rows}</table></div>'
    )


def settings(run: RunView) -> str:
    """Everything that is needed to repeat the run."""
    versions = {key: value for key, value in run.versions.items() if key not in ("command", "seed")}
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(str(value))}</td></tr>" for key, value in versions.items())
    leaves = "".join(_config_rows(run.config))
    command = " ".join(["python -m agentrl.train", *run.versions.get("command", [])[1:]])
    return (
        f"<p>Command</p><pre>{escape(command)}</pre>"
        f'<div class="two"><div><p>Configuration</p><table class="plain">{leaves}</table></div>'
        f'<div><p>Software</p><table class="plain">{rows}</table></div></div>'
    )


def _config_rows(tree: dict[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _config_rows(value, f"{prefix}{key}.")
        else:
            yield f"<tr><th>{escape(prefix + key)}</th><td>{escape(str(value))}</td></tr>"


def _comparison_row(run: RunView) -> str:
    rates = [_percent(record["eval/success"]) for record in run.evals] or ["-"]
    cost = run.batches[-1] if run.batches else {}
    costs = [f"{cost.get(f'cost/{name}', 0):,}" for name in ("episodes", "optimizer_steps", "discarded_steps")]
    cells = [rates[0], rates[-1], *costs, _duration(run.seconds_at(cost.get("step", 0)))]
    return f"<tr><th>{escape(run.label)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _head_row(*names: str) -> str:
    cells = [f"<th{' class=wide' if 'interval' in name else ''}>{escape(name)}</th>" for name in names]
    return f"<tr>{''.join(cells)}</tr>"


def _verdict(step: int, update: dict[str, Any]) -> tuple[str, str]:
    z = f", z = {update['z_score']:.2f}" if "z_score" in update else ""
    if not update["applied"]:
        return "discarded", f"batch {step}, k = {update['k']}: discarded ({update['reason']}){z}"
    kind = "scaled" if update["reason"] == "scaled" else "applied"
    return kind, f"batch {step}, k = {update['k']}: {kind}{z}, energy {update['head_energy']:.3g}"


def _bar(before: tuple[float, ...], now: tuple[float, ...]) -> str:
    return (
        '<svg class="bar" viewBox="0 0 200 16" preserveAspectRatio="none">'
        f'<rect class="track" x="0" y="6" width="200" height="4" rx="2"/>'
        f'<rect class="range" x="{200 * now[1]:.1f}" y="3" width="{200 * (now[2] - now[1]):.1f}" height="10" rx="3"/>'
        f'<rect class="before" x="{200 * before[0] - 1:.1f}" y="1" width="2" height="14"/>'
        f'<rect class="now" x="{200 * now[0] - 1.5:.1f}" y="1" width="3" height="14" rx="1"/></svg>'
    )


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


def _unzip(pairs: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]


def _smooth(values: list[float], width: int = 5) -> list[float]:
    return [
        sum(values[max(0, i - width + 1) : i + 1]) / len(values[max(0, i - width + 1) : i + 1])
        for i in range(len(values))
    ]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _count(value: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("ch") else "s")
    return f"{value:,} {noun if value == 1 else plural}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
