"""Figures of a study, computed from its results file: curves of every comparison, a map of every grid."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from agentrl.errors import UserError
from agentrl.report.plots import Line, learning_curves, save
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


def _line(results: Results, arm: str, runs: list[Run]) -> Line:
    return Line(
        f"{results.label(arm)}, {describe_axes(runs[0]['axes'])}",
        success=[column(run, "success") for run in runs],
        costs={title: [column(run, name) for run in runs] for title, name in _COSTS.items()},
        is_reference=arm == results.study["reference"],
    )
