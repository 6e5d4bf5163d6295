"""Figures: runs of one setting share a line, every figure is drawn, and its numbers are the runs' own."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from agentrl.command.guard import main_guard
from agentrl.figures import collect_lines, main
from agentrl.report.plots import FIGURES, Line, learning_curves, monitors, weight_change
from agentrl.report.view import load_runs
from agentrl.runs.folder import read_metrics
from tests.agentrl.toy_runs import toy_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("figures")
    bounded = {"tracking__head_bound": "true", "train__steps": 4}
    return [
        toy_run(folder / "gated-0", **bounded),
        toy_run(folder / "gated-1", train__seed=1, **bounded),
        toy_run(folder / "single", gate__kind="fixed", **bounded),
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
    pytest.importorskip("matplotlib", reason="needs the extra figures")
    folders = [str(run) for run in runs]
    for out in (tmp_path / "a.svg", tmp_path / "b.svg", tmp_path / "a.png"):
        assert main([name, *folders, "--out", str(out)]) == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    ElementTree.parse(tmp_path / "a.svg")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_weight_change_when_performance_breaks_down_then_the_onset_is_marked() -> None:
    pytest.importorskip("matplotlib", reason="needs the extra figures")
    curve = [0.5] * 6 + [0.2] * 4
    steps = [float(10 * i) for i in range(10)]
    line = Line(
        "naive", [curve], steps=steps, weight_change={"lm_head": (steps, steps)}, monitors={"kl": (steps, curve)}
    )
    for figure in (weight_change([line]), monitors([line])):
        dashed = [mark for mark in figure.axes[0].lines if mark.get_linestyle() == "--"]
        assert [list(mark.get_xdata()) for mark in dashed] == [[60.0, 60.0]]


def test_learning_curves_when_single_use_is_among_them_then_its_level_is_the_mean_of_the_last_five() -> None:
    pytest.importorskip("matplotlib", reason="needs the extra figures")
    line = Line("single", [[0.1, 0.5, 0.6, 0.7, 0.8, 0.9]], {"rollouts": [list(range(6))]}, is_reference=True)
    dashed = [mark for mark in learning_curves([line]).axes[0].lines if mark.get_linestyle() == "--"]
    assert dashed[0].get_ydata()[0] == pytest.approx(70.0)


def test_bad_input_when_given_then_one_line_and_code_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_guard(lambda: main(["seeds", str(tmp_path), "--out", str(tmp_path / "x.bmp")])) == 2
    assert ".svg, .png or .pdf" in capsys.readouterr().err
