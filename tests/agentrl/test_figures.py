"""Figures: runs of one setting share a line, every figure is drawn, and its numbers are the runs' own."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from agentrl.command.guard import main_guard
from agentrl.errors import UserError
from agentrl.figures import collect_lines, main
from agentrl.report.plots import FIGURES, Line, learning_curves, monitors, weight_change
from agentrl.report.view import load_runs
from agentrl.runs.folder import read_metrics
from tests.agentrl.toy_runs import toy_run

_BOUNDED = {"tracking__head_bound": "true", "train__steps": 4}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("figures")
    return [
        toy_run(folder / "gated-0", **_BOUNDED),
        toy_run(folder / "gated-1", train__seed=1, **_BOUNDED),
        toy_run(folder / "single", gate__kind="fixed", **_BOUNDED),
    ]


@pytest.mark.slow
def test_lines_when_runs_differ_in_their_seed_only_then_they_are_one(runs: list[Path]) -> None:
    lines = collect_lines(load_runs(runs))
    assert [len(line.success) for line in lines] == [2, 1]
    assert [line.is_reference for line in lines] == [False, True]
    evals = [record for record in read_metrics(runs[0]) if record["kind"] == "eval"]
    assert lines[0].success[0] == [record["eval/success"] for record in evals]
    assert lines[0].steps == [0, 2, 4]
    assert lines[0].costs["rollouts"][0] == [0, 32, 64]
    assert "DGG, tau -1.5" in lines[0].label


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FIGURES))
def test_every_figure_when_drawn_then_it_is_a_picture_and_repeats_bit_by_bit(
    name: str, runs: list[Path], tmp_path: Path
) -> None:
    folders = [str(run) for run in runs]
    if name == "sensitivity":  # something must differ
        folders = [str(run) for run in (*runs, toy_run(tmp_path / "other", gate__tau=-1.0, **_BOUNDED))]
    for out in (tmp_path / "a.svg", tmp_path / "b.svg", tmp_path / "a.png", tmp_path / "a.pdf"):
        assert main([name, *folders, "--out", str(out)]) == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    ElementTree.parse(tmp_path / "a.svg")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def rules(figure: dict[str, Any], axis: str) -> list[float]:
    """Where the dashed lines of the first panel are."""
    layers = figure["vconcat"][0]["hconcat"][0]["layer"]
    marks = [layer["encoding"][axis] for layer in layers if layer["mark"] != "rect" and layer["mark"]["type"] == "rule"]
    return [mark["datum"] for mark in marks]


def test_weight_change_when_performance_breaks_down_then_the_onset_is_marked() -> None:
    curve = [0.5] * 6 + [0.2] * 4
    steps = [float(10 * i) for i in range(10)]
    line = Line(
        "naive", [curve], steps=steps, weight_change={"lm_head": (steps, steps)}, monitors={"kl": (steps, curve)}
    )
    for figure in (weight_change([line]), monitors([line])):
        assert rules(figure, "x") == [60.0]


def test_learning_curves_when_single_use_is_among_them_then_its_level_is_the_mean_of_the_last_five() -> None:
    line = Line("single", [[0.1, 0.5, 0.6, 0.7, 0.8, 0.9]], {"rollouts": [list(range(6))]}, is_reference=True)
    assert rules(learning_curves([line]), "y") == [pytest.approx(70.0)]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("seeds", "no run was evaluated twice"),
        ("weight-change", "tracking.divergence_every above 0"),
        ("monitors", "the runs logged no gradient"),
        ("sensitivity", "neither tau nor K differs"),
        ("theorem2", "tracking.head_bound true"),
    ],
)
def test_figure_when_there_is_nothing_to_draw_then_it_is_refused_with_the_remedy(name: str, reason: str) -> None:
    line = Line("begun", [[0.1]], {"rollouts": [[0]]}, steps=[0.0], bounds={"a": ([], [])}, monitors={"kl": ([], [])})
    with pytest.raises(UserError, match=f"nothing to draw: .*{reason}"):
        FIGURES[name]([line])


def test_bad_input_when_given_then_one_line_and_code_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_guard(lambda: main(["seeds", str(tmp_path), "--out", str(tmp_path / "x.bmp")])) == 2
    assert ".svg, .png or .pdf" in capsys.readouterr().err
