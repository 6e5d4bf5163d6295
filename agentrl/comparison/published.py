"""What papers and public threads report, kept as data with its sources and never mixed with what was measured."""

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from agentrl.comparison.plain_tables import PlainTable
from agentrl.errors import UserError
from agentrl.evaluation.document import ResultDocument


class PublishedNumber(BaseModel):
    """One number of somebody else's."""

    model_config = ConfigDict(extra="forbid")

    benchmark: str
    method: str
    model: str
    value: float
    """%."""
    metric: str
    protocol: str
    """How it was played, as far as is known."""
    tasks: str
    """On how many, and which."""
    source: str
    """Paper (arXiv number) or thread."""
    kind: str
    """`paper`, `cited` (read in a later paper, not in its own), or `thread` (a reproduction in public)."""
    panel: str | None
    """Name of the panel with this protocol; None where we have none, or do not know enough."""


def read_published() -> list[PublishedNumber]:
    """All of them."""
    path = Path(__file__).parent / "published.json"
    return [PublishedNumber(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]


def published_table(
    numbers: Sequence[PublishedNumber], benchmark: str | None, measured: Sequence[ResultDocument]
) -> PlainTable:
    """Published numbers of one benchmark (or all), those marked whose protocol is not that of the results.

    Raises:
        UserError: there is no such benchmark.
    """
    known = sorted({number.benchmark for number in numbers})
    if benchmark is not None and benchmark not in known:
        raise UserError(f"--published: nothing about {benchmark!r}. There is: {', '.join(known)}.")
    chosen = [number for number in numbers if benchmark in (None, number.benchmark)]
    panels = [document.panel for document in measured]
    ours = {panel.name.partition("@")[0] for panel in panels if panel is not None and not panel.differences}
    rows = [
        [n.benchmark, n.method, n.model, f"{n.value:g}{'' if not measured or n.panel in ours else ' ≠'}", n.metric,
         n.protocol, n.tasks, f"{n.source} ({n.kind})"]
        for n in chosen
    ]  # fmt: skip
    note = "Claims of their authors, not measured here: check the source before quoting."
    if measured:
        note = f"≠: protocol or tasks are not those of the results above. {note}"
    columns = ["benchmark", "method", "model", "%", "metric", "protocol", "tasks", "source"]
    return PlainTable("Published by others", columns, rows, note)
