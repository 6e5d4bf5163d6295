"""Figures of a study, computed from its results file: curves of every comparison, a map of every grid of two axes."""

from pathlib import Path
from typing import Any

from agentrl.report.plots import Line, Spec, learning_curves, reuse_map, save
from agentrl.study.results import Results, Run, column, describe_axes, mean_final
from agentrl.study.tables import is_grid

_COSTS = {"rollouts": "episodes", "CPU seconds of rollouts and updates": "cpu_s"}


def draw_study(results: Results, folder: Path, *, name: str) -> list[Path]:
    """Write `NAME_STAGE.svg` for every stage that compares arms or maps two axes; the files, in the study's order."""
    written = []
    for stage in results.study["stages"]:
        settings = results.settings(stage)
        axes: dict[str, Any] = next((runs[0]["axes"] for runs in settings.values()), {})
        if settings and not is_grid(results, stage):
            figure = learning_curves([_line(results, arm, runs) for (arm, _), runs in settings.items()])
        elif len(axes) == 2:
            figure = _map(results, list(settings.items()))
        else:
            continue
        path = folder / f"{name}_{stage}.svg"
        save(figure, path)
        written.append(path)
    return written


def _line(results: Results, arm: str, runs: list[Run]) -> Line:
    return Line(
        f"{results.label(arm)}, {describe_axes(runs[0]['axes'])}",
        success=[column(run, "success") for run in runs],
        costs={title: [column(run, name) for run in runs] for title, name in _COSTS.items()},
        is_reference=arm == results.study["reference"],
    )


def _map(results: Results, settings: list[tuple[tuple[str, str], list[Run]]]) -> Spec:
    axes = list(settings[0][1][0]["axes"])
    rows, columns = (sorted({runs[0]["axes"][axis] for _, runs in settings}) for axis in axes)
    success: dict[str, list[list[float]]] = {}
    for (arm, _), runs in settings:
        table = success.setdefault(results.label(arm), [[float("nan")] * len(columns) for _ in rows])
        place = rows.index(runs[0]["axes"][axes[0]]), columns.index(runs[0]["axes"][axes[1]])
        table[place[0]][place[1]] = mean_final(runs)
    return reuse_map(success, rows=(axes[0], rows), columns=(axes[1], columns))
