"""Markdown tables of a study, computed from its results file."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from agentrl.analysis.speedup import format_difference, format_speedup
from agentrl.errors import UserError
from agentrl.study.results import Results, Run, compare, describe_axes, mean_final, require_arms


def study_tables(results: Results, *, source: Path, stages: Iterable[str] | None = None) -> str:
    """All tables of a study: one a stage, a table of arms where seeds are compared, a grid where values are mapped."""
    study = results.study
    parts = [f"### {study['title']}"]
    for stage in study["stages"] if stages is None else stages:
        settings = results.settings(stage)
        if not settings:
            continue
        parts.append(_grid(results, stage) if results.is_grid(stage) else _comparison(results, stage))
    starts: dict[int, set[str | None]] = {}
    for run in results.runs:
        starts.setdefault(run["seed"], set()).add(run.get("initial"))
    everything = set().union(*starts.values())
    # One warm start for all, or random weights of each seed's own; anything else comes from several machines.
    if any(len(own) > 1 for own in starts.values()) or 1 < len(everything) < len(starts):
        parts.append(f"**Mind:** these runs started from {len(everything)} different warm starts.")
    machines = " and ".join(sorted({run["machine"] for run in results.runs}))
    source_line = f"Computed from `{source}` by `python -m agentrl.study {source}`; measured on {machines}."
    return "\n\n".join([*parts, source_line])


def summary_table(studies: Sequence[Results], arms: Sequence[str], *, stages: Iterable[str] | None = None) -> str:
    """One table over studies: each stage that compares arms in a row, what `arms` gain over single use in columns.

    Raises:
        UserError: an arm that no study has.
    """
    require_arms(studies, arms)
    labels = [next(r.label(arm) for r in studies if arm in r.study["arms"]) for arm in arms]
    share = studies[0].study["rollout_share"]
    columns = [f"{label}: {what}" for label in labels for what in ("rollouts", f"time at {share:.0%}", "end")]
    lines = [
        f"| study, stage | {studies[0].label(studies[0].study['reference'])} ends at | {' | '.join(columns)} |",
        "|" + " --- |" + " ---: |" * (1 + len(columns)),
    ]
    for results in studies:
        for stage in results.study["stages"] if stages is None else stages:
            found = {arm: (axes, runs) for (arm, axes), runs in results.settings(stage).items()}
            axes, reference = found.get(results.study["reference"], ("", []))
            if not reference or results.is_grid(stage) or not set(arms) & set(found):
                continue
            cells = [f"{results.study['title']}, {stage} ({axes})", f"{100 * mean_final(reference):.1f} %"]
            for arm in arms:
                cells += _gains(*found.get(arm, (axes, [])), reference, axes, share)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def by_k_table(studies: Sequence[Results], arms: Sequence[str], *, stages: Iterable[str] | None = None) -> str:
    """What happens at the second, third ... use of a batch: k in columns, settings in rows, seeds together.

    Raises:
        UserError: an arm that no study has, or results that do not hold it.
    """
    require_arms(studies, arms)
    rows: dict[str, dict[int, str]] = {}
    for results in studies:
        for stage in results.study["stages"] if stages is None else stages:
            for (arm, axes), runs in results.settings(stage).items():
                if arm in arms:
                    name = f"{results.study['title']}, {stage}: {results.label(arm)} ({axes})"
                    rows[name] = _by_k(runs)
    columns = sorted({k for row in rows.values() for k in row})
    if not columns:
        raise UserError(
            "these results do not say what happened at which k: they are older than that, or no batch was used twice."
        )
    lines = [f"| rises / discarded / KL | {' | '.join(f'k = {k}' for k in columns)} |"]
    lines.append("|" + " --- |" + " ---: |" * len(columns))
    lines += [f"| {name} | {' | '.join(row.get(k, '') for k in columns)} |" for name, row in rows.items()]
    note = "Share of the gradients at which the head's energy rose, share discarded, median KL to the first pass."
    return "\n".join([*lines, "", note])


def _by_k(runs: Sequence[Run]) -> dict[int, str]:
    found = {}
    for k in {k for run in runs for k in run.get("by_k", {})}:
        steps = [run["by_k"][k] for run in runs if k in run.get("by_k", {})]
        count = sum(step["gradients"] for step in steps)
        rises, discarded = (sum(step[key] for step in steps) / count for key in ("rises", "discarded"))
        kl = float(np.median([step["kl"] for step in steps]))
        found[int(k)] = f"{100 * rises:.0f} % / {100 * discarded:.0f} % / {kl:.2g}"
    return found


def _gains(axes: str, runs: list[Run], reference: list[Run], reference_axes: str, share: float) -> list[str]:
    """Speedup in rollouts and in time, and the difference at the end; empty without a seed in common."""
    row = compare(runs, reference, rollout_share=share) if runs else {"seeds": []}
    if not row["seeds"]:
        return ["", "", ""]
    rollouts, time = (format_speedup(row["speedup"][key]) for key in ("rollouts", "time"))
    own_setting = "" if axes == reference_axes else f" ({axes})"
    return [rollouts + own_setting, time, format_difference(row["difference"])]


def _comparison(results: Results, stage: str) -> str:
    """Arms in rows: where they end, how much cheaper they get there."""
    settings = results.settings(stage)
    reference = next((runs for (arm, _), runs in settings.items() if arm == results.study["reference"]), None)
    if reference is None:  # a stage of controls is measured against the single-use runs of an earlier one
        reference = results.earlier_reference()
    if reference is None:
        return f"**{stage}**: no run of the arm {results.study['reference']!r} yet."
    share = results.study["rollout_share"]
    header = (
        f"| {stage} | end (last 5) | minus {results.label(results.study['reference'])} | rollouts "
        f"| time at {share:.0%} rollouts | CPU time here | gradients a batch | energy rises | discarded | broke down "
        "| CPU-s a run |"
    )
    lines = [header, "|" + " --- |" + " ---: |" * 10]
    for (arm, axes), runs in settings.items():
        row = compare(runs, reference, rollout_share=share)
        if not row["seeds"]:
            continue
        name = results.label(arm) + (f" ({axes})" if axes else "")
        is_reference = runs is reference
        cells = [
            name,
            f"{100 * row['final']:.1f} %",
            "" if is_reference else format_difference(row["difference"]),
            *("1" if is_reference else format_speedup(row["speedup"][key]) for key in ("rollouts", "time", "cpu")),
            f"{row['steps_per_batch']:.1f}",
            *("" if np.isnan(row[key]) else f"{100 * row[key]:.0f} %" for key in ("rising", "discarded")),
            f"{row['degraded']} of {len(row['seeds'])}",
            f"{row['cpu_s']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    seeds = sorted({run["seed"] for runs in settings.values() for run in runs})
    note = f"Seeds {', '.join(map(str, seeds))}; brackets are 95 % intervals over seeds, paired by seed."
    return "\n".join([*lines, "", note])


def _grid(results: Results, stage: str) -> str:
    """Final success and rollout speedup: arms and all axes but the last in rows, the last axis in columns."""
    table: dict[str, dict[str, list[Run]]] = {}
    for (arm, _), runs in results.settings(stage).items():
        *others, last = runs[0]["axes"].items()
        row = ", ".join(filter(None, (results.label(arm), describe_axes(dict(others)))))
        table.setdefault(row, {})[describe_axes(dict([last]))] = runs
    columns = list(dict.fromkeys(name for row in table.values() for name in row))
    seeds = sorted({run["seed"] for row in table.values() for runs in row.values() for run in runs})
    baseline = results.reference_for(stage, seeds)
    where = "of this table" if results.best_reference(stage) else "measured before"
    lines = [f"| {stage} | {' | '.join(columns)} |", "|" + " --- |" + " ---: |" * len(columns)]
    for row, found in table.items():
        lines.append(f"| {row} | {' | '.join(_grid_cell(found.get(name), baseline) for name in columns)} |")
    note = f"Mean of the last five evaluations, in %; seeds {', '.join(map(str, seeds))}."
    if baseline:
        note += f" Behind it: rollout speedup over the best single-use setting {where}."
    return "\n".join([*lines, "", note])


def _grid_cell(runs: list[Run] | None, baseline: list[Run] | None) -> str:
    if not runs:
        return "-"
    text = f"{100 * mean_final(runs):.1f}"
    if baseline and {r["seed"] for r in runs} <= {r["seed"] for r in baseline}:
        value = compare(runs, baseline, rollout_share=0.8)["speedup"]["rollouts"].value
        text += " (not reached)" if value is None else f" ({value:.2f}x)"
    return text
