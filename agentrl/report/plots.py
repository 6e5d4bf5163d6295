"""The paper's figures as functions of plain curves; matplotlib (extra `figures`) draws them.

A `Line` is what the figures know of a setting: its label and its curves over seeds. Every function returns a matplotlib
figure that `save` writes as SVG or PNG.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agentrl.analysis.speedup import converged, degradation_onset
from agentrl.common.extras import MissingExtraError

COLORS = ("#1f6feb", "#e07b00", "#12855c", "#d1242f", "#8250df", "#0891a5", "#b35900", "#5b6876")
_GRID = {"color": "#e3e8ee", "linewidth": 0.8}


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
    monitors: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    """Of the first seed: monitor name -> (rollout batch, value) at each gradient."""
    bounds: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    """Of the first seed: the two sides of Theorem 2 -> (rollout batch, value) at each gradient."""
    weight_change: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    """Of the first seed: group of layers -> (rollout batch, relative weight change)."""
    values: dict[str, float] = field(default_factory=dict)
    """Settings that a figure may have on its axis (`tau`, `K`)."""
    is_reference: bool = False
    """Whether this is the single-use arm."""


def learning_curves(lines: Sequence[Line], **_: Any) -> Any:
    """Figures 2, 4 and 9: success against rollouts and against time, mean and standard deviation over seeds.

    The dashed line is the single-use arm's converged performance (mean of its last five evaluations).
    """
    names = list(dict.fromkeys(name for line in lines for name in line.costs))
    figure, axes = _grid_of(1, len(names), width=5.0)
    for axis, name in zip(axes, names, strict=True):
        for i, line in enumerate(lines):
            x = _mean(line.costs[name])
            mean, std = _mean(line.success), _std(line.success)
            axis.plot(x, 100 * mean, color=_color(i), label=f"{line.label} ({len(line.success)} seeds)", linewidth=1.8)
            axis.fill_between(x, 100 * (mean - std), 100 * (mean + std), color=_color(i), alpha=0.13, linewidth=0)
        for line in lines:
            if line.is_reference:
                level = 100 * converged(_mean(line.success).tolist())
                axis.axhline(level, color="#5b6876", linestyle="--", linewidth=1)
        axis.set_xlabel(name)
    axes[0].set_ylabel("held-out success, %")
    _legend(figure, axes[0])
    return figure


def weight_change(lines: Sequence[Line], **_: Any) -> Any:
    """Figures 1, 7, 8 and 10: success above, relative weight change per group of layers below, onset marked in red."""
    figure, axes = _grid_of(2, len(lines), width=3.6, height=2.5)
    top = max((max(y, default=0) for line in lines for _, y in line.weight_change.values()), default=1.0)
    for column, line in enumerate(lines):
        above, below = axes[column], axes[len(lines) + column]
        above.plot(line.steps, 100 * np.asarray(line.success[0]), color=COLORS[0], linewidth=1.8)
        above.set_title(line.label, fontsize=10)
        for i, (group, (x, y)) in enumerate(line.weight_change.items()):
            below.plot(x, y, color=_color(i), label=group, linewidth=1.6)
        below.set_ylim(0, 1.05 * top)
        below.set_xlabel("rollout batches")
        _mark_onset(line, (above, below))
    axes[0].set_ylabel("held-out success, %")
    axes[len(lines)].set_ylabel("relative weight change")
    _legend(figure, axes[len(lines)])
    return figure


def monitors(lines: Sequence[Line], **_: Any) -> Any:
    """Figure 3: KL, clipped share, global gradient norm and lm_head gradient norm, with the onset of degradation."""
    names = list(dict.fromkeys(name for line in lines for name in line.monitors))
    figure, axes = _grid_of(1, len(names), width=3.4, height=2.6)
    for axis, name in zip(axes, names, strict=True):
        for i, line in enumerate(lines):
            x, y = line.monitors[name]
            axis.plot(x, y, color=_color(i), label=line.label, linewidth=0.9, alpha=0.85)
            _mark_onset(line, (axis,), color=_color(i))
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("rollout batches")
    _legend(figure, axes[0])
    return figure


def sensitivity(lines: Sequence[Line], **_: Any) -> Any:
    """Figure 5: final success over tau and over K, single use as a dashed line."""
    names = [name for name in ("tau", "K") if len({line.values.get(name) for line in lines if name in line.values}) > 1]
    figure, axes = _grid_of(1, max(1, len(names)), width=4.2)
    for axis, name in zip(axes, names or [""], strict=True):
        points: dict[float, list[float]] = {}
        for line in lines:
            if name in line.values and not line.is_reference:
                points.setdefault(line.values[name], []).extend(100 * converged(curve) for curve in line.success)
        x = sorted(points)
        means = [float(np.mean(points[value])) for value in x]
        stds = [float(np.std(points[value], ddof=1)) if len(points[value]) > 1 else 0.0 for value in x]
        axis.errorbar(x, means, yerr=stds, color=COLORS[0], marker="o", capsize=3, linewidth=1.6)
        for line in lines:
            if line.is_reference:
                level = 100 * float(np.mean([converged(curve) for curve in line.success]))
                axis.axhline(level, color="#5b6876", linestyle="--", linewidth=1, label=line.label)
        axis.set_xlabel(name or "nothing varies in these runs")
    axes[0].set_ylabel("success, mean of last 5, %")
    _legend(figure, axes[0])
    return figure


def theorem2(lines: Sequence[Line], **_: Any) -> Any:
    """Theorem 2 at every gradient: measured chi-square (plus one) against its lower bound, head energy over c_max."""
    figure, axes = _grid_of(1, len(lines), width=4.2)
    for axis, line in zip(axes, lines, strict=True):
        for i, (name, (x, y)) in enumerate(line.bounds.items()):
            axis.plot(x, y, color=_color(i), label=name, linewidth=0.9)
        axis.set_yscale("log")
        axis.set_title(line.label, fontsize=10)
        axis.set_xlabel("rollout batches")
    _legend(figure, axes[0])
    return figure


def structure(lines: Sequence[Line], **_: Any) -> Any:
    """Figure 6: median and 95th percentile of C_struct over training."""
    figure, axes = _grid_of(1, 1, width=5.0)
    for i, line in enumerate(lines):
        for style, name in (("-", "95th percentile"), (":", "median")):
            x, y = line.monitors[name]
            axes[0].plot(
                x, y, color=_color(i), linestyle=style, marker="o", markersize=3, label=f"{line.label}, {name}"
            )
    axes[0].set_yscale("log")
    axes[0].set_xlabel("rollout batches")
    axes[0].set_ylabel("C_struct")
    _legend(figure, axes[0])
    return figure


def reuse_map(
    success: Mapping[str, Sequence[Sequence[float]]],
    *,
    rows: tuple[str, Sequence[float]],
    columns: tuple[str, Sequence[float]],
) -> Any:
    """Final success over two settings, one panel an arm: where reuse is safe.

    Args:
        success: arm -> success rates 0..1, [R][C]; NaN where nothing was measured.
        rows: name and values of the vertical axis, [R].
        columns: name and values of the horizontal axis, [C].
    """
    figure, axes = _grid_of(1, len(success), width=2.6, height=2.4)
    data = {arm: 100 * np.asarray(table, dtype=np.float64) for arm, table in success.items()}
    low, high = (f([f(table) for table in data.values()]) for f in (np.nanmin, np.nanmax))
    for axis, (arm, table) in zip(axes, data.items(), strict=True):
        axis.imshow(table, cmap="viridis", vmin=low, vmax=high, aspect="auto", origin="lower")
        for (row, column), value in np.ndenumerate(table):
            dark = value < (low + high) / 2
            axis.text(column, row, f"{value:.0f}", ha="center", va="center", color="white" if dark else "black")
        axis.grid(visible=False)
        axis.set_xticks(range(len(columns[1])), [f"{value:g}" for value in columns[1]], rotation=30)
        axis.set_yticks(range(len(rows[1])), [f"{value:g}" for value in rows[1]])
        axis.set_title(arm, fontsize=9)
        axis.set_xlabel(columns[0])
    axes[0].set_ylabel(rows[0])
    return figure


FIGURES: dict[str, Callable[..., Any]] = {
    "learning-curves": learning_curves,
    "fixed-vs-adaptive": learning_curves,
    "seeds": learning_curves,
    "weight-change": weight_change,
    "monitors": monitors,
    "sensitivity": sensitivity,
    "theorem2": theorem2,
}
"""Name -> function; what each shows is in `agentrl.command.parsers.FIGURES`."""


def require_matplotlib() -> None:
    """Say which extra draws figures, where it is not installed.

    Raises:
        MissingExtraError: there is no matplotlib.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "figures", "drawing figures")


def save(figure: Any, path: Path) -> None:
    """Write SVG, PNG or PDF, by the ending; the same curves give the same bytes."""
    no_date = {"Date": None} if path.suffix == ".svg" else {"CreationDate": None} if path.suffix == ".pdf" else {}
    figure.savefig(path, dpi=160, bbox_inches="tight", metadata=no_date)


def _grid_of(rows: int, columns: int, *, width: float, height: float = 3.0) -> tuple[Any, list[Any]]:
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.hashsalt": "agentrl", "svg.fonttype": "none", "font.size": 9})
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).flatten().tolist()
    for axis in axes:
        axis.grid(**_GRID)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return figure, axes


def _legend(figure: Any, axis: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if len(labels) > 0:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)


def _mark_onset(line: Line, axes: Sequence[Any], *, color: str = COLORS[3]) -> None:
    onset = degradation_onset(line.success[0])
    if onset is not None:
        for axis in axes:
            axis.axvline(line.steps[onset], color=color, linestyle="--", linewidth=1)


def _mean(curves: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    return np.asarray(curves, dtype=np.float64).mean(axis=0)


def _std(curves: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    data = np.asarray(curves, dtype=np.float64)
    return data.std(axis=0, ddof=1) if len(data) > 1 else np.zeros(data.shape[1])


def _color(i: int) -> str:
    return COLORS[i % len(COLORS)]
