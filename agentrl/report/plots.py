"""The paper's figures as functions of plain curves: Vega-Lite specifications, which vl-convert writes as files.

A `Line` is what the figures know of a setting: its label and its curves over seeds. Every function returns a
specification that `save` writes as SVG, PNG or PDF, and refuses to draw nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agentrl.analysis.speedup import converged, degradation_onset
from agentrl.errors import UserError
from agentrl.report.charts import SCHEMA, Spec

COLORS = ("#1f6feb", "#e07b00", "#12855c", "#d1242f", "#8250df", "#0891a5", "#b35900", "#5b6876", "#d63384", "#6a8f00")
_BATCHES = "rollout batches"
_ENDINGS = (".svg", ".png", ".pdf")
_DASHED: Spec = {"type": "rule", "strokeDash": [4, 3], "color": COLORS[7]}
_CONFIG: Spec = {
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {"gridColor": "#e3e8ee", "titleFontWeight": 400, "titleFontSize": 11, "labelFontSize": 10},
    "title": {"fontSize": 12, "fontWeight": 400},
    "legend": {
        "orient": "bottom",
        "title": None,
        "labelLimit": 0,
        "columns": 4,
        "symbolOpacity": 1,
        "labelFontSize": 11,
    },
    "range": {"category": COLORS},
}
Points = tuple[list[float], list[float]]
"""x and y of a curve."""


@dataclass
class Line:
    """One setting, on some seeds. Shapes: S seeds, E evaluations, B batches, U gradients."""

    label: str
    success: list[list[float]]
    """Held-out success, [S][E]."""
    costs: dict[str, list[list[float]]] = field(default_factory=dict)
    """Cost name -> cumulative cost at each evaluation, [S][E]."""
    steps: list[float] = field(default_factory=list)
    """Rollout batches at each evaluation, [E]."""
    monitors: dict[str, Points] = field(default_factory=dict)
    """Of the first seed: monitor name -> (rollout batch, value) at each gradient."""
    bounds: dict[str, Points] = field(default_factory=dict)
    """Of the first seed: the two sides of Theorem 2 -> (rollout batch, value) at each gradient."""
    weight_change: dict[str, Points] = field(default_factory=dict)
    """Of the first seed: group of layers -> (rollout batch, relative weight change)."""
    values: dict[str, float] = field(default_factory=dict)
    """Settings that a figure may have on its axis (`tau`, `K`)."""
    is_reference: bool = False
    """Whether this is the single-use arm."""


def learning_curves(lines: Sequence[Line]) -> Spec:
    """Figures 2, 4 and 9: success against rollouts and against time, mean and standard deviation over seeds.

    The dashed line is the single-use arm's converged performance (mean of its last five evaluations).
    """
    _require(any(len(curve) > 1 for line in lines for curve in line.success), "no run was evaluated twice")
    panels = []
    for name in dict.fromkeys(name for line in lines for name in line.costs):
        rows = []
        for line in lines:
            success = 100 * np.asarray(line.success, dtype=np.float64)
            mean, std = success.mean(axis=0), _deviation(success)
            x, label = np.mean(line.costs[name], axis=0), f"{line.label} ({len(line.success)} seeds)"
            rows += [
                {"x": float(a), "y": float(m), "low": float(m - s), "high": float(m + s), "line": label}
                for a, m, s in zip(x, mean, std, strict=True)
            ]
        level = [100 * converged(np.mean(line.success, axis=0).tolist()) for line in lines if line.is_reference]
        y = {"type": "quantitative", "title": "held-out success, %", "scale": {"zero": False}}
        shared = {"x": _x(name), "color": _color(rows)}
        edges = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
        band = {"mark": {"type": "area", "opacity": 0.13}, "encoding": {**shared, **edges}}
        curve = {"mark": {"type": "line", "strokeWidth": 1.8}, "encoding": {**shared, "y": {**y, "field": "y"}}}
        panels.append(panel([band, curve, *_across(level)], rows, width=380))
    return figure([panels])


def weight_change(lines: Sequence[Line]) -> Spec:
    """Figures 1, 7, 8 and 10: success above, relative weight change per group of layers below, onset marked in red."""
    measured = [line for line in lines if line.weight_change]
    _require(measured, "the runs measured no weight change: train with tracking.divergence_every above 0")
    top = 1.05 * max(max(y, default=0.0) for line in measured for _, y in line.weight_change.values())
    above, below = [], []
    for line in measured:
        success = (line.steps, [100 * value for value in line.success[0]])
        curve = _curve("held-out success, %", color={"value": COLORS[0]})
        above.append(panel([curve, *_onset(line)], _points({"success": success}), title=line.label))
        rows = _points(line.weight_change)
        curve = _curve("relative weight change", color=_color(rows), scale={"domain": [0, top]})
        below.append(panel([curve, *_onset(line)], rows))
    return figure([above, below])


def monitors(lines: Sequence[Line]) -> Spec:
    """Figure 3: KL, clipped share, global gradient norm and lm_head gradient norm, with the onset of degradation."""
    _require(any(x for line in lines for x, _ in line.monitors.values()), "the runs logged no gradient")
    panels = []
    for name in dict.fromkeys(name for line in lines for name in line.monitors):
        rows = _points({line.label: line.monitors[name] for line in lines if name in line.monitors})
        curve = _curve(None, color=_color(rows), width=0.9)
        marks = [mark for i, line in enumerate(lines) for mark in _onset(line, color=COLORS[i % len(COLORS)])]
        panels.append(panel([curve, *marks], rows, title=name, width=260))
    return figure([panels])


def sensitivity(lines: Sequence[Line]) -> Spec:
    """Figure 5: final success over tau and over K, single use as a dashed line."""
    names = [name for name in ("tau", "K") if len({line.values.get(name) for line in lines if name in line.values}) > 1]
    _require(names, "neither tau nor K differs between the runs")
    level = [100 * float(np.mean([converged(c) for c in line.success])) for line in lines if line.is_reference]
    panels = []
    for name in names:
        points: dict[float, list[float]] = {}
        for line in lines:
            if name in line.values and not line.is_reference:
                points.setdefault(line.values[name], []).extend(100 * converged(curve) for curve in line.success)
        rows = []
        for value, finals in sorted(points.items()):
            mean, std = float(np.mean(finals)), float(_deviation(np.array(finals)))
            rows.append({"x": value, "y": mean, "low": mean - std, "high": mean + std})
        y = {"type": "quantitative", "title": "success, mean of last 5, %", "scale": {"zero": False}}
        curve = _curve(str(y["title"]), x=name, color={"value": COLORS[0]}, dots=True)
        edges = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
        bars = {"mark": {"type": "errorbar", "ticks": True, "color": COLORS[0]}, "encoding": {"x": _x(name), **edges}}
        panels.append(panel([bars, curve, *_across(level)], rows))
    return figure([panels])


def theorem2(lines: Sequence[Line]) -> Spec:
    """Theorem 2 at every gradient: measured chi-square (plus one) against its lower bound, head energy over c_max."""
    measured = [line for line in lines if any(x for x, _ in line.bounds.values())]
    _require(measured, "the runs did not log c_max: train with tracking.head_bound true")
    panels = []
    for line in measured:
        rows = _points(line.bounds)
        curve = _curve(None, color=_color(rows), width=0.9, scale={"type": "log"})
        panels.append(panel([curve], rows, title=line.label))
    return figure([panels])


def constants_over_training(lines: Sequence[Line]) -> Spec:
    """Figure 6: median and 95th percentile of C_struct over training."""
    rows = [
        {**row, "line": line.label, "quantile": name}
        for line in lines
        for name in ("95th percentile", "median")
        for row in _points({name: line.monitors[name]})
    ]
    curve = _curve("C_struct", color=_color(rows), scale={"type": "log"}, dots=True)
    curve["encoding"]["strokeDash"] = {"field": "quantile", "type": "nominal"}
    return figure([[panel([curve], rows, width=380)]])


FIGURES: dict[str, Callable[[Sequence[Line]], Spec]] = {
    "learning-curves": learning_curves,
    "fixed-vs-adaptive": learning_curves,
    "seeds": learning_curves,
    "weight-change": weight_change,
    "monitors": monitors,
    "sensitivity": sensitivity,
    "theorem2": theorem2,
}
"""Name -> function; what each shows is in `agentrl.command.parsers.FIGURES`."""


def require_picture(path: Path, option: str) -> None:
    """Refuse a file name that no picture can have, before the work.

    Raises:
        UserError: another ending than .svg, .png or .pdf.
    """
    if path.suffix not in _ENDINGS:
        raise UserError(f"{option} must end in {', '.join(_ENDINGS[:-1])} or {_ENDINGS[-1]}, got {path}.")


def save(figure: Spec, path: Path) -> None:
    """Write SVG, PNG or PDF, by the ending; the same curves give the same bytes."""
    import vl_convert

    if path.suffix == ".svg":
        path.write_text(vl_convert.vegalite_to_svg(figure), encoding="utf-8")
    else:
        convert = vl_convert.vegalite_to_pdf if path.suffix == ".pdf" else vl_convert.vegalite_to_png
        path.write_bytes(convert(figure, scale=1 if path.suffix == ".pdf" else 2))


def _require(something: object, otherwise: str) -> None:
    if not something:
        raise UserError(f"there is nothing to draw: {otherwise}.")


def figure(rows: list[list[Spec]], *, share_color: bool = True) -> Spec:
    """Panels in rows under each other, with one legend for all."""
    shared = {"resolve": {"scale": {"color": "shared"}}} if share_color else {}
    return {
        "$schema": SCHEMA, "background": "white", "config": _CONFIG, **shared,
        "vconcat": [{"hconcat": row, **shared} for row in rows],
    }  # fmt: skip


def panel(layers: list[Spec], rows: list[Spec], *, title: str = "", width: int = 300) -> Spec:
    """Layers over the same rows of data; at most 200 pixels high."""
    return {"title": title, "width": width, "height": min(width, 200), "data": {"values": rows}, "layer": layers}


def _curve(
    y: str | None, *, color: Spec, x: str = _BATCHES, scale: Spec | None = None, width: float = 1.8, dots: bool = False
) -> Spec:
    return {
        "mark": {"type": "line", "strokeWidth": width, "point": dots},
        "encoding": {
            "x": _x(x),
            "y": {"field": "y", "type": "quantitative", "title": y, "scale": scale or {"zero": False}},
            "color": color,
        },
    }


def _x(title: str) -> Spec:
    return {"field": "x", "type": "quantitative", "title": title, "scale": {"zero": False, "nice": False}}


def _color(rows: Iterable[Spec]) -> Spec:
    """Colours in the order in which the names come."""
    return {"field": "line", "type": "nominal", "scale": {"domain": list(dict.fromkeys(row["line"] for row in rows))}}


def _points(curves: Mapping[str, Points]) -> list[Spec]:
    return [
        {"x": a, "y": b, "line": name}
        for name, (x, y) in curves.items()
        for a, b in zip(x, y, strict=True)
        if np.isfinite(b)
    ]


def _across(levels: Iterable[float]) -> list[Spec]:
    return [{"data": {"values": [{}]}, "mark": _DASHED, "encoding": {"y": {"datum": level}}} for level in levels]


def _onset(line: Line, *, color: str = COLORS[3]) -> list[Spec]:
    onset = degradation_onset(line.success[0])
    places = [] if onset is None else [{"x": {"datum": line.steps[onset]}}]
    return [{"data": {"values": [{}]}, "mark": {**_DASHED, "color": color}, "encoding": place} for place in places]


def _deviation(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sample standard deviation over the first axis; 0 of a single value."""
    return values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1:])
