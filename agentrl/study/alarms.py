"""How well each monitor announces a fall of held-out success, and the table of that."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean

from agentrl.analysis.early_warning import DROP, WITHIN, Auc, auc, falls
from agentrl.errors import UserError
from agentrl.study.results import Results, Run, column, require_arms
from agentrl.study.run_monitors import HIGHEST, OF_BATCHES, OF_UPDATES

_SUCCESS = "success"
_NAMES = {_SUCCESS: "held-out success itself", **HIGHEST, **OF_UPDATES, **OF_BATCHES}


@dataclass(frozen=True)
class Alarms:
    """How well each monitor announces a fall in one study; monitor -> AUC, those that cannot be told left out."""

    title: str
    when: dict[str, Auc]
    """Moments of the same run compared."""
    when_and_where: dict[str, Auc]
    """Moments of different runs too."""
    counts: str
    """How many falls there were, in words."""


def find_alarms(
    studies: Sequence[Results],
    arms: Sequence[str],
    *,
    stages: Sequence[str] | None = None,
    drop: float = DROP,
    within: float = WITHIN,
) -> list[Alarms]:
    """AUC of every monitor for "held-out success falls soon", for each study.

    Args:
        studies: results with monitors.
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
    return [_find(results, arms, stages, drop=drop, within=within) for results in studies]


def _find(results: Results, arms: Sequence[str], stages: Sequence[str] | None, *, drop: float, within: float) -> Alarms:
    title = results.study["title"]
    chosen = (run for run in results.runs if run["arm"] in arms and (stages is None or run["stage"] in stages))
    runs = list({run["key"]: run for run in chosen}.values())  # a run may belong to several stages
    if not any(run.get("monitors") for run in runs):
        where = f" in {', '.join(stages)}" if stages else ""
        raise UserError(
            f"{title}: its results hold no monitors of {', '.join(arms)}{where}: they are older than that, or have no "
            "such run."
        )
    moments = {key: [_moments(run, key, drop=drop, within=within) for run in runs] for key in _NAMES}
    when, both = (
        {_NAMES[key]: known for key, own in moments.items() if isfinite((known := auc(own, same_run=same)).value)}
        for same in (True, False)
    )
    labels = [fell for fells, _ in moments[_SUCCESS] for fell in fells]
    return Alarms(title, when, both, f"{sum(labels)} falls in {len(labels)} moments of {len(runs)} runs")


def alarms_table(found: Sequence[Alarms], *, drop: float = DROP, within: float = WITHIN) -> str:
    """Monitors in rows, the most telling first; two columns for every study.

    Args:
        found: of each study.
        drop: what counted as a fall, 0..1.
        within: rollout batches in which it was to happen.
    """
    heads = [f"{study.title}, {what}" for study in found for what in ("when", "when and where")]
    lines = [f"| monitor | {' | '.join(heads)} |", "|" + " --- |" + " ---: |" * len(heads)]
    for name in by_strength(found):
        cells = [_format(column.get(name)) for study in found for column in (study.when, study.when_and_where)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    note = (
        f"AUC for a fall of held-out success by {100 * drop:g} points within {within:g} batches, at evaluations of "
        f"{200 * drop:g} % or more: 0.5 says nothing, below it a low value announces. *When* compares moments of the "
        "same run only. 95 % intervals, a bootstrap over runs. "
    )
    counts = "; ".join(f"{study.title}: {study.counts}" for study in found)
    return "\n".join([*lines, "", f"{note}{counts}."])


def by_strength(found: Sequence[Alarms]) -> list[str]:
    """The monitors, first those that are furthest from saying nothing within runs, on average over studies."""

    def strength(name: str) -> float:
        known = [abs(study.when[name].value - 0.5) for study in found if name in study.when]
        return fmean(known) if known else 0.0

    names = dict.fromkeys(name for name in _NAMES.values() for study in found if name in study.when_and_where)
    return sorted(names, key=lambda name: -strength(name))


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


def _format(found: Auc | None) -> str:
    return "" if found is None else f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
