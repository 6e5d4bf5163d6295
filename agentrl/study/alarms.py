"""How well each monitor announces a fall of held-out success, as a table."""

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from agentrl.analysis.early_warning import DROP, WITHIN, Auc, auc, falls
from agentrl.errors import UserError
from agentrl.study.results import Results, Run, column, require_arms
from agentrl.study.run_monitors import HIGHEST, OF_BATCHES, OF_UPDATES

_SUCCESS = "success"
_NAMES = {_SUCCESS: "held-out success itself", **HIGHEST, **OF_UPDATES, **OF_BATCHES}


def alarms_table(
    studies: Sequence[Results],
    arms: Sequence[str],
    *,
    stages: Sequence[str] | None = None,
    drop: float = DROP,
    within: float = WITHIN,
) -> str:
    """AUC of every monitor for "held-out success falls soon": monitors in rows, the most telling first.

    Args:
        studies: each of which has columns of its own.
        arms: whose runs are looked at.
        stages: in which they are; None: all.
        drop: what counts as a fall, 0..1.
        within: rollout batches in which it is to happen.

    Raises:
        UserError: an arm that no study has, results without monitors, or a limit that is none.
    """
    if not 0 < drop < 1 or not within > 0:
        raise UserError(
            f"--drop must lie between 0 and 100 points and --within above 0, got {100 * drop:g}, {within:g}."
        )
    require_arms(studies, arms)
    columns: list[dict[str, Auc]] = []
    counts = []
    for results in studies:
        chosen = (run for run in results.runs if run["arm"] in arms and (stages is None or run["stage"] in stages))
        runs = list({run["key"]: run for run in chosen}.values())  # a run may belong to several stages
        if not any(run.get("monitors") for run in runs):
            where = f" in {', '.join(stages)}" if stages else ""
            raise UserError(
                f"{results.study['title']}: its results hold no monitors of {', '.join(arms)}{where}: they are older "
                "than that, or have no such run."
            )
        found = {key: [_moments(run, key, drop=drop, within=within) for run in runs] for key in _NAMES}
        columns += [{key: auc(own, same_run=same) for key, own in found.items()} for same in (True, False)]
        labels = [fell for fells, _ in found[_SUCCESS] for fell in fells]
        counts.append(f"{results.study['title']}: {sum(labels)} falls in {len(labels)} moments of {len(runs)} runs")
    heads = [f"{results.study['title']}, {what}" for results in studies for what in ("when", "when and where")]
    lines = [f"| monitor | {' | '.join(heads)} |", "|" + " --- |" + " ---: |" * len(heads)]
    rows = {key: [column[key] for column in columns] for key in _NAMES}
    lines += [
        f"| {_NAMES[key]} | {' | '.join(map(_format, rows[key]))} |"
        for key in sorted(rows, key=lambda key: -_strength(rows[key]))
        if any(np.isfinite(found.value) for found in rows[key])
    ]
    note = (
        f"AUC for a fall of held-out success by {100 * drop:g} points within {within:g} batches, at evaluations of "
        f"{200 * drop:g} % or more: 0.5 says nothing, below it a low value announces. *When* compares moments of the "
        "same run only. 95 % intervals, a bootstrap over runs. "
    )
    return "\n".join([*lines, "", note + "; ".join(counts) + "."])


def _moments(run: Run, key: str, *, drop: float, within: float) -> tuple[list[bool], list[float]]:
    """Whether a fall follows, and the monitor's value, at the evaluations behind training where both are known."""
    steps, scores = column(run, "step"), column(run, "success")
    values = scores if key == _SUCCESS else run.get("monitors", {}).get(key, [None] * len(scores))
    known = [
        (fell, value)
        for step, fell, value in zip(steps, falls(steps, scores, drop=drop, within=within), values, strict=True)
        if step and fell is not None and value is not None
    ]
    return [fell for fell, _ in known], [value for _, value in known]


def _strength(row: Sequence[Auc]) -> float:
    """How far from saying nothing within runs, on average over studies."""
    known = [abs(found.value - 0.5) for found in row[::2] if np.isfinite(found.value)]
    return fmean(known) if known else 0.0


def _format(found: Auc) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]" if np.isfinite(found.value) else ""
