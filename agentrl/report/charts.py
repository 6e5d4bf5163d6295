"""Small charts as inline SVG: lines with bands, the gate's timeline. No dependency, colours from the page's CSS."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 36
_MAX_POINTS = 400
"""Longer curves are drawn as means of equal stretches."""


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
    """Number of the colour, 0 to 7 (`.c0` ... in the style sheet)."""
    style: str = "line"
    """`line`, `dots` (line with a mark at each value), or `points` (faint marks only)."""


@dataclass
class Chart:
    """A figure with a caption."""

    title: str
    series: list[Series]
    x_label: str = "rollout batches"
    format: str = "number"
    """`percent`, `number`, or `log` (logarithmic, powers of ten)."""
    lines: list[tuple[float, str]] = field(default_factory=list)
    """Horizontal dashed lines: (value, label)."""
    marks: list[tuple[float, str]] = field(default_factory=list)
    """Vertical dashed lines: (value, label)."""
    note: str = ""
    """A sentence under the figure."""


def draw(chart: Chart) -> str:
    """A `<figure>` with legend and SVG; text is escaped."""
    series = [_thinned(s) for s in chart.series if len(s.x)]
    names = [s for s in series if s.name and s.style != "points"]
    legend = (
        "".join(f'<span class="c{s.color}"><i></i>{escape(s.name)}</span>' for s in names) if len(names) > 1 else ""
    )
    note = f"<p>{escape(chart.note)}</p>" if chart.note else ""
    legend = f'<span class="legend">{legend}</span>' if legend else ""
    head = f"<figcaption><b>{escape(chart.title)}</b>{legend}</figcaption>"
    body = _svg(chart, series) if series else '<p class="none">nothing measured yet</p>'
    return f'<figure class="chart">{head}{body}{note}</figure>'


def _svg(chart: Chart, series: list[Series]) -> str:
    log = chart.format == "log"
    values = [v for s in series for part in (s.y, s.low, s.high) if part is not None for v in part if _usable(v, log)]
    values += [value for value, _ in chart.lines if _usable(value, log)]
    values = values or [1.0]
    xs = [x for s in series for x in s.x] + [x for x, _ in chart.marks]
    y_low, y_high, y_ticks = _axis(min(values), max(values), chart.format)
    x_low, x_high, x_ticks = _axis(min(xs), max(xs), "x")
    place_x = _scale(x_low, x_high, _LEFT, WIDTH - _RIGHT)
    place_y = _scale(y_low, y_high, HEIGHT - _BOTTOM, _TOP, log=log)
    parts = [_grid(x_ticks, y_ticks, place_x, place_y, chart)]
    for value, label in chart.lines:
        y = place_y(value)
        parts.append(f'<line class="rule" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="rule" x="{WIDTH - _RIGHT}" y="{y - 4:.1f}" text-anchor="end">{escape(label)}</text>'
        )
    for value, label in chart.marks:
        x = place_x(value)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text class="mark" x="{x + 4:.1f}" y="{_TOP + 9}">{escape(label)}</text>')
    parts += [_draw_series(s, place_x, place_y, log=log, format_=chart.format) for s in series]
    label = escape(chart.title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _draw_series(
    s: Series, place_x: Callable[[float], float], place_y: Callable[[float], float], *, log: bool, format_: str
) -> str:
    points = [(place_x(x), place_y(y), x, y) for x, y in zip(s.x, s.y, strict=True) if _usable(y, log)]
    parts = []
    if s.low is not None and s.high is not None:
        rows = [
            (place_x(x), place_y(lo), place_y(hi))
            for x, lo, hi in zip(s.x, s.low, s.high, strict=True)
            if _usable(lo, log) and _usable(hi, log)
        ]
        edge = [f"{x:.1f},{hi:.1f}" for x, _, hi in rows] + [f"{x:.1f},{lo:.1f}" for x, lo, _ in reversed(rows)]
        parts.append(f'<polygon class="band" points="{" ".join(edge)}"/>')
    if s.style != "points":
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in points)
        parts.append(f'<polyline class="curve" points="{path}"/>')
    radius = {"line": 6, "dots": 2.6, "points": 1.7}[s.style]
    kind = {"line": "hit", "dots": "dot", "points": "point"}[s.style]
    for x, y, raw_x, raw_y in points:
        title = f"{s.name}: {format_value(raw_y, format_)} at {raw_x:,.6g}"
        parts.append(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>{escape(title)}</title></circle>'
        )
    return f'<g class="c{s.color}">{"".join(parts)}</g>'


def _grid(
    x_ticks: list[float],
    y_ticks: list[float],
    place_x: Callable[[float], float],
    place_y: Callable[[float], float],
    chart: Chart,
) -> str:
    parts = []
    for tick in y_ticks:
        y = place_y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        text = escape(format_value(tick, chart.format))
        parts.append(f'<text x="{_LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>')
    for tick in x_ticks:
        parts.append(
            f'<text x="{place_x(tick):.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">{tick:,.6g}</text>'
        )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="axis" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(chart.x_label)}</text>'
    )
    return "".join(parts)


def gate_timeline(verdicts: list[list[tuple[str, str]]], max_reuse: int) -> str:
    """One column a rollout batch, one square a gradient: what the gate did with it.

    Args:
        verdicts: per batch and gradient, (`applied` | `discarded` | `scaled`, text for the tooltip).
        max_reuse: K, the number of rows.
    """
    step = max(1, math.ceil(len(verdicts) / 480))
    columns = [_merged(verdicts[i : i + step]) for i in range(0, len(verdicts), step)]
    cell = max(3.0, min(16.0, (WIDTH * 2 - 60) / max(1, len(columns))))
    height, left = 14.0, 44
    width = left + cell * len(columns) + 4
    parts = []
    for k in range(max_reuse):
        y = (max_reuse - 1 - k) * height
        parts.append(f'<text x="{left - 8}" y="{y + 11:.1f}" text-anchor="end">k = {k + 1}</text>')
    for i, column in enumerate(columns):
        for k, (kind, title) in enumerate(column[:max_reuse]):
            x, y = left + i * cell, (max_reuse - 1 - k) * height
            parts.append(
                f'<rect class="{escape(kind)}" x="{x:.1f}" y="{y:.1f}" width="{cell - min(1.5, cell / 4):.1f}" '
                f'height="{height - 2:.1f}" rx="2"><title>{escape(title)}</title></rect>'
            )
    for tick in _axis(1, max(2, len(verdicts)), "x")[2]:
        if 1 <= tick <= len(verdicts):
            x = left + ((tick - 1) // step + 0.5) * cell
            parts.append(f'<text x="{x:.1f}" y="{max_reuse * height + 14:.1f}" text-anchor="middle">{tick:g}</text>')
    total = max_reuse * height + 20
    return (
        f'<svg class="timeline" viewBox="0 0 {width:.0f} {total:.0f}" style="min-width:{min(width, 640):.0f}px;'
        f'max-width:{width:.0f}px" role="img" aria-label="gate timeline">{"".join(parts)}</svg>'
    )


def _merged(batches: list[list[tuple[str, str]]]) -> list[tuple[str, str]]:
    """The gradients of several batches as one column: a discarded one shows through."""
    column: list[tuple[str, str]] = []
    for k in range(max((len(batch) for batch in batches), default=0)):
        here = [batch[k] for batch in batches if len(batch) > k]
        column.append(next((verdict for verdict in here if verdict[0] != "applied"), here[0]))
    return column


def format_value(value: float, format_: str) -> str:
    """A number as an axis shows it."""
    if format_ == "percent":
        return f"{100 * value:.3g} %"
    if format_ == "log" or (value and not 1e-3 <= abs(value) < 1e5):
        return f"{value:.3g}"
    return f"{value:,.4g}"


def _axis(low: float, high: float, format_: str) -> tuple[float, float, list[float]]:
    """(lowest, highest, ticks) of an axis that holds the values."""
    if format_ == "log":
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        last = max(last, first + 1)
        step = max(1, (last - first) // 5)
        return 10.0**first, 10.0**last, [10.0**p for p in range(first, last + 1, step)]
    if format_ == "percent":
        low, high = max(0.0, low), min(1.0, high)
    if high - low < 1e-12:
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    raw = (high - low) / 5
    size = 10 ** math.floor(math.log10(raw))
    step_size = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw * 0.999)
    first, last = math.floor(low / step_size + 1e-9), math.ceil(high / step_size - 1e-9)
    ticks = [i * step_size for i in range(first, last + 1)]
    if format_ == "x":
        return low, high, [tick for tick in ticks if low - 1e-9 <= tick <= high + 1e-9]
    return ticks[0], ticks[-1], ticks


def _scale(low: float, high: float, start: float, end: float, *, log: bool = False) -> Callable[[float], float]:
    if log:
        low, high = math.log10(low), math.log10(high)

    def place(value: float) -> float:
        value = math.log10(max(value, 1e-300)) if log else value
        share = (value - low) / ((high - low) or 1.0)
        return start + min(1.05, max(-0.05, share)) * (end - start)

    return place


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
