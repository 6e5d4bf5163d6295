"""Figures of studies, computed from their results: curves of every comparison, maps of grids, what announces a fall."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from agentrl.errors import UserError
from agentrl.report.plots import COLORS, Line, Spec, figure, learning_curves, panel, save
from agentrl.study.alarms import Alarms, by_strength
from agentrl.study.maps import draw_maps, stage_maps
from agentrl.study.results import Results, Run, column, describe_axes

_COSTS = {"rollouts": "episodes", "CPU seconds of rollouts and updates": "cpu_s"}


def draw_study(results: Results, folder: Path, *, name: str, stages: Iterable[str] | None = None) -> list[Path]:
    """Write `NAME_STAGE.svg` for every stage that compares arms or maps axes; the files, in the study's order."""
    written = []
    for stage in results.study["stages"] if stages is None else stages:
        settings = results.settings(stage)
        if not settings:
            continue
        if not results.is_grid(stage):
            spec = learning_curves([_line(results, arm, runs) for (arm, _), runs in settings.items()])
        elif maps := stage_maps(results, stage):
            spec = draw_maps(maps)
        else:
            continue
        path = folder / f"{name}_{stage}.svg"
        save(spec, path)
        written.append(path)
    return written


def draw_safe_regions(studies: Sequence[Results], stage: str, path: Path) -> None:
    """One picture of a stage of several studies: rules of reuse in rows, the range of rates in columns.

    Raises:
        UserError: no study has runs in that stage.
    """
    maps = [found for results in studies for found in stage_maps(results, stage)]
    if not maps:
        raise UserError(f"there is nothing to draw: no run of stage {stage}, or none that maps an axis.")
    save(draw_maps(maps, across=2), path)


def draw_alarms(found: Sequence[Alarms], path: Path) -> None:
    """One picture: monitors in rows, a panel for every study, AUC with its interval, 0.5 dashed."""
    names = by_strength(found)
    save(figure([[_alarms_panel(study, names, is_first=study is found[0]) for study in found]]), path)


def _alarms_panel(study: Alarms, names: list[str], *, is_first: bool) -> Spec:
    kinds = {"moments of one run (when)": study.when, "of all runs (when and where)": study.when_and_where}
    rows = [
        {"monitor": name, "kind": kind, "value": auc.value, "low": auc.low, "high": auc.high}
        for kind, aucs in kinds.items()
        for name, auc in aucs.items()
    ]
    axis = {"labels": is_first, "ticks": is_first, "domain": False, "labelLimit": 0, "grid": True}
    scale = {"domain": [0, 1]}
    shared = {
        "y": {"field": "monitor", "type": "nominal", "title": None, "scale": {"domain": names}, "axis": axis},
        "yOffset": {"field": "kind", "type": "nominal", "scale": {"domain": list(kinds)}},
        "color": {"field": "kind", "type": "nominal", "scale": {"domain": list(kinds)}},
    }
    low = {"field": "low", "type": "quantitative", "scale": scale, "title": "AUC; 0.5 says nothing"}
    layers: list[Spec] = [
        {"mark": {"type": "rule", "strokeWidth": 1.5}, "encoding": {**shared, "x": low, "x2": {"field": "high"}}},
        {"mark": {"type": "point", "filled": True, "size": 30}, "encoding": {**shared, "x": {**low, "field": "value"}}},
        {
            "data": {"values": [{}]},
            "mark": {"type": "rule", "strokeDash": [4, 3], "color": COLORS[7]},
            "encoding": {"x": {"datum": 0.5}},
        },
    ]
    return {**panel(layers, rows, title=study.title, width=220), "height": 18 * len(names)}


def _line(results: Results, arm: str, runs: list[Run]) -> Line:
    return Line(
        f"{results.label(arm)}, {describe_axes(runs[0]['axes'])}",
        success=[column(run, "success") for run in runs],
        costs={title: [column(run, name) for run in runs] for title, name in _COSTS.items()},
        is_reference=arm == results.study["reference"],
    )
