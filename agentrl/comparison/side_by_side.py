"""One HTML page: the tables, and episodes of A and B on the same task side by side. It needs no network."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from agentrl.comparison.comparable import Comparison, Measured
from agentrl.comparison.plain_tables import PlainTable
from agentrl.evaluation.document import task_key
from agentrl.evaluation.samples import read_samples
from agentrl.types import Trajectory

_MOST = 400
"""Tasks whose episodes are in the page: those that flipped first."""


def render_page(tables: list[PlainTable], comparisons: list[Comparison]) -> str:
    """The page's text."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    pairs = [_pair(comparison) for comparison in comparisons]
    title = "Comparison: " + ", ".join(dict.fromkeys(name for p in pairs for name in (p["first"], p["second"])))
    return templates.get_template("page.html.jinja").render(title=title, tables=tables, pairs=pairs)


def _pair(comparison: Comparison) -> dict[str, Any]:
    episodes = [_read_episodes(side) for side in (comparison.first, comparison.second)]
    flipped = dict.fromkeys(comparison.gained, "B better") | dict.fromkeys(comparison.lost, "B worse")
    chosen = {**flipped, **{key: "equal" for key in comparison.first.tasks if key not in flipped}}
    keys = list(chosen)[:_MOST]
    note = "" if len(keys) == len(chosen) else f"{len(keys)} of {len(chosen)} tasks, those that flipped first."
    tasks = [
        {"key": key, "change": chosen[key], "sides": [side.get(key, []) for side in episodes]} for key in keys
    ]  # fmt: skip
    return {"first": comparison.first.name, "second": comparison.second.name, "note": note, "tasks": tasks}


def _read_episodes(result: Measured) -> dict[str, list[dict[str, Any]]]:
    """Stored episodes by the key of their task; none where the folder has no samples.jsonl."""
    path = result.folder / "samples.jsonl"
    if not path.is_file():
        return {}
    by_task: dict[int, list[Trajectory]] = {}
    with path.open(encoding="utf-8") as file:
        for trajectory in read_samples(file):
            by_task.setdefault(trajectory.task.position, []).append(trajectory)
    return {
        task_key(members): [_episode(result.name, t) for t in sorted(members, key=lambda t: t.member)]
        for members in by_task.values()
    }


def _episode(name: str, trajectory: Trajectory) -> dict[str, Any]:
    outcome = f"{'success' if trajectory.success else 'no success'}, {trajectory.status.value}"
    turns = [{"said": turn.action, "seen": turn.observation} for turn in trajectory.turns]
    return {
        "name": name, "sample": trajectory.member, "outcome": f"{outcome}, reward {trajectory.reward:g}",
        "prompt": trajectory.first_observation, "turns": turns,
    }  # fmt: skip
