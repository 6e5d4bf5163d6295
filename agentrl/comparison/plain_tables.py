"""Comparisons as tables, for a terminal, as Markdown and in the page."""

from dataclasses import dataclass

from rich.table import Table

from agentrl.comparison.comparable import Comparison, Measured

_FLIPPED = 30
"""Tasks that flipped and are named in the terminal and in Markdown; the page has all."""


@dataclass(frozen=True)
class PlainTable:
    """Words in rows and columns."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    """A line below it."""


def overview(results: list[Measured]) -> PlainTable:
    """What each result says by itself."""
    rows = []
    for each in results:
        document = each.document
        value, low, high = document.intervals["all"]
        panel = document.panel.name if document.panel else "-"
        player = document.player
        who = str(player.get("model") or player["policy"])
        counts = document.counts
        rows.append(
            [each.name, who, panel, str(len(document.tasks)), str(document.protocol["samples"]),
             f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
             str(counts.get("failed", 0)), str(counts["truncated"]), str(counts["refused"])]
        )  # fmt: skip
    columns = ["result", "player", "panel", "tasks", "samples", "success, %", "failed", "truncated", "refused"]
    return PlainTable("Results", columns, rows, _about_panels(results))


def differences(comparison: Comparison) -> PlainTable:
    """B minus A, by category."""
    rows = [
        [name, str(pair.count), f"{100 * pair.first:.1f}", f"{100 * pair.second:.1f}",
         f"{100 * pair.difference:+.1f} [{100 * pair.low:+.1f}, {100 * pair.high:+.1f}]",
         f"{pair.better} / {pair.worse}", f"{pair.p_value:.3g}"]
        for name, pair in comparison.by_category.items()
    ]  # fmt: skip
    columns = ["category", "tasks", "A, %", "B, %", "B - A, points, 95 %", "better / worse", "p (sign test)"]
    note = "95 % intervals for the same tasks; categories are not corrected for their number."
    if comparison.other_protocol:
        note = f"OTHER PROTOCOL: {'; '.join(comparison.other_protocol)}. {note}"
    return PlainTable(f"B = {comparison.second.name} against A = {comparison.first.name}", columns, rows, note)


def flipped(comparison: Comparison, *, most: int | None = _FLIPPED) -> PlainTable:
    """Tasks whose outcome differs."""
    told = [[key, "B better"] for key in comparison.gained] + [[key, "B worse"] for key in comparison.lost]
    note = "" if most is None or len(told) <= most else f"{len(told) - most} more are in the page (--html)."
    return PlainTable("Tasks that flipped", ["task", "change"], told[:most], note)


def as_markdown(table: PlainTable) -> str:
    """A Markdown table with its title."""
    lines = [f"### {table.title}", "", "| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table.rows]
    return "\n".join([*lines, *(["", table.note] if table.note else []), ""])


def as_view(table: PlainTable) -> Table:
    """For the terminal."""
    view = Table(
        title=table.title, title_justify="left", caption=table.note or None, caption_justify="left", box=None,
        pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for number, column in enumerate(table.columns):
        view.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in table.rows:
        view.add_row(*row)
    return view


def _about_panels(results: list[Measured]) -> str:
    lines = []
    for each in results:
        panel = each.document.panel
        if panel and panel.differences:
            lines.append(f"{each.name} was not measured on the panel's data: {'; '.join(panel.differences[:5])}.")
    return " ".join(lines)
