"""A map of a study as a picture: success over two settings, the region in which reuse is safe outlined."""

from collections.abc import Sequence
from dataclasses import dataclass

from agentrl.analysis.findings import at_least
from agentrl.analysis.speedup import Difference, format_difference, paired_difference
from agentrl.report.plots import Spec, figure, panel
from agentrl.study.results import Results, Run, axes_order, describe_value, final_success, mean_final, on_shared_seeds

CELL = (92, 34)
"""Width and height of a cell, in pixels."""
_FULL = 10
"""Points from single use at which a colour is full."""
_CAPTION = (
    "Below each number: minus the best single use, with a 95 % interval over seeds (t, paired by seed). Outlined: "
    "safe, that is, the whole interval lies at or above 0."
)


@dataclass(frozen=True)
class MapCell:
    """What a map knows of one setting."""

    row: str
    column: str
    end: float
    """Success at the end, 0..1."""
    difference: Difference | None = None
    """Minus the best single use; None where that was not measured on these seeds."""

    @property
    def is_safe(self) -> bool:
        """Whether it is shown to end not below the best single use."""
        found = self.difference
        return found is not None and at_least(0, low=found.low, high=found.high) == "shown"


@dataclass(frozen=True)
class StageMap:
    """One panel."""

    title: str
    rows: str
    """Name of the vertical axis."""
    columns: str
    """Name of the horizontal axis."""
    cells: list[MapCell]
    """In the order of the axes: the first row is the lowest, the first column on the left."""


def stage_maps(results: Results, stage: str) -> list[StageMap]:
    """A map of every arm over a stage's two axes, or one of all arms over its single axis; none for other stages."""
    settings = sorted(results.settings(stage).items(), key=lambda item: axes_order(item[1]))
    if not settings or not results.is_grid(stage):
        return []
    axes = list(settings[0][1][0]["axes"])
    if len(axes) == 1:
        order = list(results.study["arms"])
        settings.sort(key=lambda item: -order.index(item[0][0]))  # as in the study, from the top
        cells = [_cell(results, stage, results.label(arm), runs) for (arm, _), runs in settings]
        return [StageMap(results.study["title"], "", axes[0], cells)] if len({c.row for c in cells}) > 1 else []
    if len(axes) != 2:
        return []
    by_arm: dict[str, list[MapCell]] = {}
    for (arm, _), runs in settings:
        cell = _cell(results, stage, describe_value(runs[0]["axes"][axes[0]]), runs)
        by_arm.setdefault(results.label(arm), []).append(cell)
    return [StageMap(label, axes[0], axes[1], cells) for label, cells in by_arm.items()]


def _cell(results: Results, stage: str, row: str, runs: list[Run]) -> MapCell:
    best = results.reference_for(stage, [run["seed"] for run in runs])
    own, reference = on_shared_seeds(runs, best or [])
    ends = [[final_success(run) for run in group] for group in (own, reference)]
    difference = paired_difference(*ends) if own else None
    return MapCell(row, describe_value(list(runs[0]["axes"].values())[-1]), mean_final(runs), difference)


def draw_maps(maps: Sequence[StageMap], *, across: int = 3) -> Spec:
    """Panels, a few beside each other: each cell's success in %, its difference to single use, the safe ones outlined.

    Args:
        maps: at least one.
        across: panels in a row.
    """
    panels = [_panel(found) for found in maps]
    rows = [panels[i : i + across] for i in range(0, len(panels), across)]
    spec = figure(rows, share_color=False)
    return {**spec, "title": {"text": _CAPTION, "anchor": "start", "fontSize": 11, "color": "#5b6876"}}


def _panel(found: StageMap) -> Spec:
    rows, columns = (list(dict.fromkeys(getattr(cell, axis) for cell in found.cells)) for axis in ("row", "column"))
    values = [
        {
            "row": cell.row,
            "column": cell.column,
            "end": f"{100 * cell.end:.1f}",
            "points": 100 * cell.difference.mean if cell.difference else 0,
            "note": format_difference(cell.difference) if cell.difference else "",
            "safe": cell.is_safe,
        }
        for cell in found.cells
    ]
    title = {"labelLimit": 0, "labelAngle": 0}
    place = {
        "x": {"field": "column", "type": "ordinal", "title": found.columns, "sort": columns, "axis": title},
        "y": {"field": "row", "type": "ordinal", "title": found.rows, "sort": rows[::-1], "axis": title},
    }
    scale = {"scheme": "redblue", "domain": [-_FULL, 0, _FULL], "clamp": True}
    shade = {"field": "points", "type": "quantitative", "legend": None, "scale": scale}
    ink = {"condition": {"test": f"abs(datum.points) > {0.7 * _FULL}", "value": "white"}, "value": "black"}
    outline = {"type": "rect", "fill": None, "stroke": "black", "strokeWidth": 2.5}
    layers: list[Spec] = [
        {"mark": "rect", "encoding": {**place, "color": shade}},
        {"mark": outline, "transform": [{"filter": "datum.safe"}], "encoding": place},
    ]
    for name, dy, size in (("end", -6, 12), ("note", 8, 9)):
        mark = {"type": "text", "dy": dy, "fontSize": size}
        layers.append({"mark": mark, "encoding": {**place, "text": {"field": name}, "color": ink}})
    width, height = CELL[0] * len(columns), CELL[1] * len(rows)
    return {**panel(layers, values, title=found.title), "width": width, "height": height}
