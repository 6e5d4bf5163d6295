"""Two results: whether they can be compared, and what the comparison says."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.common.data_source import PLACES
from agentrl.comparison.paired import PairedDifference, paired_difference
from agentrl.errors import UserError
from agentrl.evaluation.document import ResultDocument, TaskOutcomes, read_document


@dataclass(frozen=True)
class Measured:
    """A result and its folder."""

    name: str
    """How tables call it."""
    folder: Path
    document: ResultDocument

    @property
    def tasks(self) -> dict[str, TaskOutcomes]:
        """By key."""
        return {task.task: task for task in self.document.tasks}


@dataclass(frozen=True)
class Comparison:
    """B against A."""

    first: Measured
    second: Measured
    by_category: dict[str, PairedDifference]
    """And `all`."""
    gained: list[str]
    """Tasks in which B does better."""
    lost: list[str]
    """Tasks in which it does worse."""
    other_protocol: list[str]
    """Keys of the protocol that differ; empty unless that was allowed."""


def read_results(paths: list[Path]) -> list[Measured]:
    """Results under names that differ."""
    documents = [read_document(path) for path in paths]
    names = [path.name if path.is_dir() else path.parent.name for path in map(Path.resolve, paths)]
    names = [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
    folders = [path if path.is_dir() else path.parent for path in paths]
    return [Measured(*each) for each in zip(names, folders, documents, strict=True)]


def compare_results(first: Measured, second: Measured, *, allow_other_protocol: bool = False) -> Comparison:
    """The paired comparison.

    Raises:
        UserError: they cannot be compared; the message names every reason.
    """
    reasons, protocol = reasons_against(first.document, second.document)
    if not allow_other_protocol:
        reasons += protocol
    if reasons:
        hint = " (--allow-other-protocol compares across protocols)" if reasons == protocol else ""
        raise UserError(f"{first.name} and {second.name} cannot be compared: {'; '.join(reasons)}{hint}.")
    one, two = first.tasks, second.tasks
    groups: dict[str, list[str]] = {}
    for key, task in one.items():
        if task.category:
            groups.setdefault(task.category, []).append(key)
    value = {key: (success_of(one[key]), success_of(two[key])) for key in one}
    groups = {**dict(sorted(groups.items())), "all": list(one)}
    return Comparison(
        first, second,
        {name: paired_difference(*zip(*(value[key] for key in keys), strict=True)) for name, keys in groups.items()},
        [key for key, (a, b) in value.items() if b > a],
        [key for key, (a, b) in value.items() if b < a],
        protocol,
    )  # fmt: skip


def reasons_against(first: ResultDocument, second: ResultDocument) -> tuple[list[str], list[str]]:
    """(why two results cannot be compared at all, in what their protocols differ)."""
    reasons = []
    for key in ("id", "split"):
        reasons += _differing(f"environment.{key}", first.environment[key], second.environment[key])
    options = [
        {key: value for key, value in document.environment["options"].items() if key not in PLACES}
        for document in (first, second)
    ]
    reasons += _differing("environment.options", *options)
    names = [document.panel.name if document.panel else None for document in (first, second)]
    if all(names):
        reasons += _differing("panel", *names)
    tasks = [{task.task for task in document.tasks} for document in (first, second)]
    if tasks[0] != tasks[1]:
        common = len(tasks[0] & tasks[1])
        reasons.append(f"different tasks: {len(tasks[0])} and {len(tasks[1])}, of which {common} are the same")
    protocol = []
    for key in sorted(first.protocol.keys() | second.protocol.keys()):
        protocol += _differing(f"protocol.{key}", first.protocol.get(key), second.protocol.get(key))
    return reasons, protocol


def success_of(task: TaskOutcomes) -> float:
    """Share of successful samples; one that failed counts as none."""
    return sum(sample.success for sample in task.samples) / len(task.samples)


def _differing(name: str, one: Any, other: Any) -> list[str]:
    return [] if one == other else [f"{name} is {one!r} in one and {other!r} in the other"]
