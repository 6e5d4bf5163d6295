"""Charts of the page as Vega-Lite specifications, which vega-embed draws in the browser: lines with bands, the gate.

Colours are the style sheet's variables, so that one specification serves light, dark and print. Dragging moves a chart
along its x axis, Ctrl and the wheel zoom, a double click goes back; a crosshair tells all values at an x.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

Spec = dict[str, Any]
"""A Vega-Lite specification."""
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_MAX_POINTS = 1000
"""Longer curves are drawn as means of equal stretches."""
_CONFIG = {
    "background": "transparent",
    "font": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--soft)", "titleColor": "var(--faint)", "gridColor": "var(--line)", "titleFontWeight": 400,
        "domain": False, "ticks": False, "labelPadding": 6, "titlePadding": 6, "labelFontSize": 11, "titleFontSize": 11,
    },
    "legend": {
        "orient": "top", "title": None, "labelColor": "var(--soft)", "labelFontSize": 12, "labelLimit": 0,
        "symbolStrokeWidth": 3, "symbolOpacity": 1, "columns": {"expr": "width < 400 ? 1 : 3"},
    },
}  # fmt: skip
_ZOOM = {
    "name": "zoom",
    "select": {
        "type": "interval",
        "encodings": ["x"],
        "zoom": "wheel![event.ctrlKey]",
        # A finger scrolls the page.
        "translate": "[pointerdown[event.pointerType == 'mouse'], window:pointerup] > window:pointermove!",
    },
    "bind": "scales",
}
_HOVER = {
    "name": "hover",
    "select": {"type": "point", "encodings": ["x"], "nearest": True, "on": "pointermove", "clear": "pointerout"},
}


_AXES: dict[str, Spec] = {
    "percent": {"axis": {"title": None, "format": "~%"}, "scale": {"zero": False}},
    "number": {"axis": {"title": None}, "scale": {"zero": False}},
    "log": {"axis": {"title": None, "format": "~g", "tickCount": 5}, "scale": {"type": "log"}},
}
_BARS = 40
"""Of a histogram."""
_ONE: Spec = {"data": {"values": [{}]}}
"""Data of a mark that stands for itself."""


@dataclass
class Series:
    """One curve."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    """Lower edge of a band."""
    high: Sequence[float] | None = None
    """Upper edge of a band."""
    color: int = 0
    """Number of the colour, 0 to 7 (`--c0` ... in the style sheet)."""
    style: str = "line"
    """`line`, `dots` (line with a mark at each value), or `points` (faint marks only)."""


@dataclass
class Chart:
    """Curves over one x axis."""

    title: str
    series: list[Series]
    x_label: str = "rollout batches"
    format: str = "number"
    """`percent`, `number`, or `log` (logarithmic)."""
    lines: list[tuple[float, str]] = field(default_factory=list)
    """Horizontal dashed lines: (value, label)."""
    marks: list[tuple[float, str]] = field(default_factory=list)
    """Vertical dashed lines: (value, label)."""
    note: str = ""
    """A sentence under the figure."""

    def spec(self) -> Spec | None:
        """Its specification; None where nothing was measured."""
        log = self.format == "log"
        rows = [_rows(_thinned(series), log=log) for series in self.series]
        drawn = [(series, found) for series, found in zip(self.series, rows, strict=True) if found]
        if not drawn:
            return None
        names = {series.name: f"var(--c{series.color})" for series, _ in drawn}
        color = {
            "type": "nominal",
            "scale": {"domain": list(names), "range": list(names.values())},
            **({} if len(names) > 1 else {"legend": None}),
        }
        x = {"type": "quantitative", "title": self.x_label, "scale": {"zero": False, "nice": False}}
        y = {"type": "quantitative", **_AXES[self.format]}
        layers = [
            layer
            for i, (series, found) in enumerate(drawn)
            for layer in _layers(f"series{i}", series, has_band="low" in found[0], x=x, y=y, color=color)
        ]
        layers[0]["params"] = [_ZOOM]
        return {
            "$schema": SCHEMA,
            "description": self.title,
            "width": "container",
            "height": 220,
            "datasets": {f"series{i}": found for i, (_, found) in enumerate(drawn)}
            | {"values": _values(drawn, self.x_label, self.format)},
            "layer": [*layers, *_rules(self.lines, self.marks), _crosshair({**x, "field": self.x_label})],
            "config": _CONFIG,
        }


@dataclass
class Histogram:
    """How many values lie where; counts on a logarithmic axis that begins at 0, so that a long tail is seen."""

    title: str
    values: Sequence[float]
    x_label: str
    note: str = ""

    def bars(self) -> list[Spec]:
        """Equal stretches from 0 to the largest value, with how many values lie in each; those without any left out."""
        counts, edges = np.histogram(self.values, bins=_BARS, range=(0.0, max(self.values)))
        return [
            {"x": _short(edges[i]), "to": _short(edges[i + 1]), "count": int(count)}
            for i, count in enumerate(counts)
            if count
        ]

    def spec(self) -> Spec | None:
        """Its specification; None where nothing was measured."""
        if not any(self.values):
            return None
        encoding = {
            "x": {"field": "x", "type": "quantitative", "title": self.x_label, "scale": {"nice": False}},
            "x2": {"field": "to"},
            "y": {
                "field": "count",
                "type": "quantitative",
                "axis": {"title": None, "format": "~s", "tickCount": 5},
                "scale": {"type": "symlog"},
            },
            "tooltip": [{"field": "count", "title": "how many"}, {"field": "x", "title": "from"}, {"field": "to"}],
        }
        return {
            "$schema": SCHEMA,
            "description": self.title,
            "width": "container",
            "height": 220,
            "datasets": {"bars": self.bars()},
            "data": {"name": "bars"},
            "params": [_ZOOM],
            "mark": {"type": "bar", "color": "var(--c0)", "clip": True},
            "encoding": encoding,
            "config": _CONFIG,
        }


@dataclass
class Timeline:
    """One column a rollout batch, one square a gradient: what the gate did with it."""

    title: str
    verdicts: list[list[tuple[str, str]]]
    """Per batch and gradient: `applied`, `discarded` or `scaled`, and a text for the tooltip."""
    note: str = ""

    def kinds(self) -> list[tuple[str, str]]:
        """What happened at all: (kind, its name)."""
        names = {"applied": "applied", "discarded": "discarded", "scaled": "scaled down"}
        found = {kind for batch in self.verdicts for kind, _ in batch}
        return [(kind, name) for kind, name in names.items() if kind in found]

    def spec(self) -> Spec | None:
        """Its specification; None before the first gradient."""
        rows = [
            {"x": i + 0.5, "to": i + 1.5, "k": f"k = {k + 1}", "kind": kind, "text": text}
            for i, batch in enumerate(self.verdicts)
            for k, (kind, text) in enumerate(batch)
        ]
        if not rows:
            return None
        # Where squares are thinner than a pixel, those behind an outline are seen: the discarded ones are drawn last.
        rows.sort(key=lambda row: row["kind"] != "applied")
        height = max(len(batch) for batch in self.verdicts)
        colors = {"applied": "var(--c2)", "discarded": "var(--c3)", "scaled": "var(--c1)"}
        scale = {"domain": list(colors), "range": list(colors.values())}
        span = {"domain": [0.5, len(self.verdicts) + 0.5], "nice": False, "zero": False}
        return {
            "$schema": SCHEMA,
            "description": self.title,
            "width": "container",
            "height": 16 * height,
            "datasets": {"verdicts": rows},
            "data": {"name": "verdicts"},
            "params": [_ZOOM],
            "mark": {"type": "rect", "clip": True, "strokeWidth": 1, "cornerRadius": 1},
            "encoding": {
                "x": {"field": "x", "type": "quantitative", "title": "rollout batches", "scale": span,
                      "axis": {"grid": False, "tickMinStep": 1}},
                "x2": {"field": "to"},
                "y": {"field": "k", "type": "ordinal", "title": None, "scale": {"padding": 0.1},
                      "sort": [f"k = {k}" for k in range(height, 0, -1)]},
                "fill": {"field": "kind", "type": "nominal", "scale": scale, "legend": None},
                "stroke": {
                    "condition": {"test": "datum.kind != 'applied'", "field": "kind", "scale": scale, "legend": None},
                    "value": None,
                },
                "tooltip": {"field": "text"},
            },
            "config": _CONFIG,
        }  # fmt: skip


@cache
def script() -> str:
    """JavaScript that puts Vega, Vega-Lite and vega-embed into a page, as `vegaEmbed`; takes two seconds once."""
    import vl_convert  # 33 MB that only a page needs: training does without

    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return f"(() => {{{bundle}\n}})();"  # its names of one letter are its own


def format_value(value: float, format_: str) -> str:
    """A number as the crosshair shows it."""
    if format_ == "percent":
        return f"{100 * value:.3g} %"
    if format_ == "log" or (value and not 1e-3 <= abs(value) < 1e5):
        return f"{value:.3g}"
    return f"{value:,.4g}"


def _layers(name: str, series: Series, *, has_band: bool, x: Spec, y: Spec, color: Spec) -> list[Spec]:
    marks: list[Spec] = []
    if has_band:
        marks.append({"type": "area", "opacity": 0.14})
    if series.style != "points":
        marks.append({"type": "line", "strokeWidth": 2.2, "strokeCap": "round"})
    if series.style == "dots":
        marks.append({"type": "point", "size": 28, "fill": "var(--card)", "strokeWidth": 2})
    if series.style == "points":
        marks.append({"type": "circle", "size": 14, "opacity": 0.45})
    line = {"y": {**y, "field": "y"}}
    band = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
    return [
        {
            "data": {"name": name},
            "mark": {**mark, "clip": True},
            "encoding": {
                "x": {**x, "field": "x"},
                **(band if mark["type"] == "area" else line),
                "color": {"datum": series.name, **color},
            },
        }
        for mark in marks
    ]


def _rules(lines: list[tuple[float, str]], marks: list[tuple[float, str]]) -> list[Spec]:
    """Dashed lines across and upright, with their labels."""
    found: list[Spec] = []
    for value, label in lines:
        text = {"type": "text", "text": label, "color": "var(--soft)", "align": "right", "dy": -6}
        found.append(_dashed({"y": {"datum": value}}, "var(--soft)"))
        found.append({**_ONE, "mark": text, "encoding": {"y": {"datum": value}, "x": {"value": "width"}}})
    for value, label in marks:
        text = {"type": "text", "text": label, "color": "var(--bad)", "align": "left", "dx": 4}
        found.append(_dashed({"x": {"datum": value}}, "var(--bad)"))
        found.append({**_ONE, "mark": text, "encoding": {"x": {"datum": value}, "y": {"value": 8}}})
    return found


def _dashed(encoding: Spec, color: str) -> Spec:
    return {**_ONE, "mark": {"type": "rule", "strokeDash": [5, 4], "color": color, "clip": True}, "encoding": encoding}


def _crosshair(x: Spec) -> Spec:
    """A rule at the x next to the pointer, with all that is measured there."""
    return {
        "data": {"name": "values"},
        "mark": {"type": "rule", "color": "var(--faint)", "clip": True, "tooltip": {"content": "data"}},
        "params": [_HOVER],
        "encoding": {"x": x, "opacity": {"condition": {"param": "hover", "empty": False, "value": 1}, "value": 0}},
    }


def _rows(series: Series, *, log: bool) -> list[Spec]:
    """Points that can be drawn, with the edges of the band where it has any."""
    rows = []
    for i, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
        edges = [] if series.low is None or series.high is None else [series.low[i], series.high[i]]
        if all(_usable(value, log) for value in (y, *edges)):
            rows.append({"x": x, "y": _short(y)} | dict(zip(("low", "high"), map(_short, edges), strict=False)))
    return rows


def _values(drawn: list[tuple[Series, list[Spec]]], x_label: str, format_: str) -> list[Spec]:
    """What the crosshair tells at each x: series -> value in words."""
    found: dict[float, Spec] = {}
    for series, rows in drawn:
        for row in rows:
            text = format_value(row["y"], format_)
            if "low" in row:
                text += f" [{format_value(row['low'], format_)}, {format_value(row['high'], format_)}]"
            found.setdefault(row["x"], {x_label: row["x"]})[series.name] = text
    return [found[x] for x in sorted(found)]


def _thinned(s: Series) -> Series:
    size = math.ceil(len(s.x) / _MAX_POINTS)
    if size <= 1:
        return s

    def means(values: Sequence[float]) -> list[float]:
        pieces = [values[i : i + size] for i in range(0, len(values), size)]
        return [sum(piece) / len(piece) for piece in pieces]

    low, high = (None if edge is None else means(edge) for edge in (s.low, s.high))
    return Series(s.name, means(s.x), means(s.y), low, high, s.color, s.style)


def _usable(value: float | None, log: bool) -> bool:
    return value is not None and math.isfinite(value) and (not log or value > 0)


def _short(value: float) -> float:
    """Five digits: more than a screen shows."""
    return float(f"{value:.5g}")
