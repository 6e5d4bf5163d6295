"""What a stage over several rates shows: is reuse safe over the whole range, and does it save rollouts there?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from agentrl.analysis.findings import Finding, at_least, holds_in
from agentrl.analysis.speedup import (
    Difference,
    Speedup,
    format_difference,
    format_speedup,
    paired_difference,
    speedup,
)
from agentrl.study.results import (
    Results,
    Run,
    axes_order,
    column,
    describe_axes,
    final_success,
    mean_final,
    on_shared_seeds,
)

WORTHWHILE = 1.5
"""Times fewer rollouts that count as worth it."""
MOST_TASKS = 3
"""Tasks on which they are to be saved."""


@dataclass(frozen=True, kw_only=True)
class RuleOverRange:
    """One rule of reuse on one task, at R settings (learning rates, say), from low to high."""

    arm: str
    label: str
    settings: list[str]
    """[R] in words."""
    ends: list[float]
    """[R] success, mean of the last five evaluations and of seeds, 0..1."""
    differences: list[Difference]
    """[R] the same minus single use at the setting where it ends highest, paired by seed."""
    speedups: list[Speedup]
    """[R] rollouts of that best single use over this rule's, both to the level at which the former ends."""
    num_missing: int = 0
    """Settings of the stage that were not measured yet."""

    @property
    def lowest(self) -> Difference:
        """The difference at the setting where the rule ends lowest."""
        return min(self.differences, key=lambda difference: difference.mean)

    def safe_at(self) -> list[Finding]:
        """[R] whether it ends not below the best single use."""
        return [at_least(0, low=found.low, high=found.high) for found in self.differences]

    @property
    def is_safe(self) -> Finding:
        """Whether it does so at every setting."""
        return self._everywhere(self.safe_at())

    @property
    def is_worthwhile(self) -> Finding:
        """Whether it reaches the level of the best single use with 1.5x fewer rollouts at every setting."""
        return self._everywhere(
            [at_least(WORTHWHILE, low=found.low or 0, high=found.high or 0) for found in self.speedups]
        )

    def _everywhere(self, findings: list[Finding]) -> Finding:
        missing: list[Finding] = ["open"] * self.num_missing
        return holds_in(findings + missing, len(findings) + len(missing))


def rules_over_range(results: Results, stage: str) -> list[RuleOverRange]:
    """Every arm of a stage over all its settings, single use first where the study has it first; empty without runs."""
    best = results.reference_for(stage)
    if best is None:
        return []
    by_arm: dict[str, list[list[Run]]] = {}
    for (arm, _), runs in results.settings(stage).items():
        by_arm.setdefault(arm, []).append(runs)
    axes = results.study["stages"][stage]["axes"].values()
    num_settings = math.prod(len(values) if isinstance(values, list) else 1 for values in axes)
    return [_rule(results, arm, settings, best, num_settings) for arm, settings in by_arm.items()]


def _rule(results: Results, arm: str, settings: list[list[Run]], best: list[Run], num_settings: int) -> RuleOverRange:
    settings = sorted(settings, key=axes_order)
    pairs = [pair for pair in (on_shared_seeds(best, runs) for runs in settings) if pair[0]]
    curves = [
        [([column(run, "episodes") for run in runs], [column(run, "success") for run in runs]) for runs in pair]
        for pair in pairs
    ]
    return RuleOverRange(
        arm=arm,
        label=results.label(arm),
        settings=[describe_axes(runs[0]["axes"]) for _, runs in pairs],
        ends=[mean_final(runs) for _, runs in pairs],
        differences=[paired_difference(*([final_success(r) for r in runs] for runs in pair[::-1])) for pair in pairs],
        speedups=[speedup(reference, own) for reference, own in curves],
        num_missing=num_settings - len(pairs),
    )


def claims_table(studies: Sequence[Results], stage: str) -> str:
    """A table of every rule on every task, and what that says of several tasks; one without runs counts as open."""
    found = [rules_over_range(results, stage) for results in studies]
    header = (
        "| task, rule | ends, % | the lowest minus single use's best | never below it | rollouts of single use's best "
        f"/ of the rule | at least {WORTHWHILE}x everywhere |"
    )
    lines = [header, "| --- | ---: | ---: | --- | ---: | --- |"]
    for results, rules in zip(studies, found, strict=True):
        seeds = sorted({run["seed"] for run in results.runs if run["stage"] == stage})
        where = f"{'; '.join(rules[0].settings)}; seeds {', '.join(map(str, seeds))}" if rules else "not measured"
        lines += [f"| **{results.study['title']}** ({where}) | | | | | |", *(_row(rule) for rule in rules)]
    if len(studies) == 1:
        return "\n".join(lines)
    names = {rule.arm: rule.label for rules in found for rule in rules}
    for results in studies:
        names.pop(results.study["reference"], None)
    count = min(MOST_TASKS, len(studies))
    summary = [
        f"| rule | never below single use's best, on each of {len(studies)} tasks "
        f"| at least {WORTHWHILE}x fewer rollouts at every setting, on at least {count} of them |",
        "| --- | --- | --- |",
    ]
    for arm, label in names.items():
        own = [next((rule for rule in rules if rule.arm == arm), None) for rules in found]
        safe: list[Finding] = [rule.is_safe if rule else "open" for rule in own]
        worthwhile: list[Finding] = [rule.is_worthwhile if rule else "open" for rule in own]
        summary.append(f"| {label} | {_counted(safe, len(own))} | {_counted(worthwhile, count)} |")
    return "\n".join([*lines, "", *summary])


def _row(rule: RuleOverRange) -> str:
    ends = " / ".join(f"{100 * end:.1f}" for end in rule.ends)
    speedups = " / ".join(map(format_speedup, rule.speedups))
    lowest = format_difference(rule.lowest) if rule.differences else ""
    return f"| {rule.label} | {ends} | {lowest} | {rule.is_safe} | {speedups} | {rule.is_worthwhile} |"


def _counted(findings: list[Finding], count: int) -> str:
    """`**open** (shown 1, refuted 0, open 3)`."""
    each = ", ".join(f"{name} {findings.count(name)}" for name in get_args(Finding))
    return f"**{holds_in(findings, count)}** ({each})"
