"""A study: what it plans, what it measures, what its tables say; one small study is really run."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentrl.analysis.speedup import format_difference, format_speedup
from agentrl.command.guard import main_guard
from agentrl.errors import ConfigError, UserError
from agentrl.study.__main__ import main
from agentrl.study.locks import acquire
from agentrl.study.pictures import draw_study
from agentrl.study.plan import as_words, load_study
from agentrl.study.results import COLUMNS, Results, compare
from agentrl.study.runner import Runner, lock_path
from agentrl.study.tables import study_tables, summary_table
from tests.toy import SMALL_CONFIG

ROOT = Path(__file__).resolve().parents[2]
OWN = ("collapse", "word_study")
"""Studies of environments that stand in `benchmarks/`."""
BASE = f"""{SMALL_CONFIG}[train]
steps = 2
groups_per_step = 2
group_size = 2
[eval]
tasks = 4
every = 1
"""
STUDY = """
title = "toy"
base = "base.toml"
results = "{folder}/results.json"
runs = "{folder}/runs"
reference = "single"
[set]
"tracking.trackers" = []
"checkpoint.every" = 0
[arms]
single = {{ label = "single use", set = {{ "gate.kind" = "fixed" }} }}
naive = {{ set = {{ "gate.kind" = "none" }} }}
matched = {{ set = {{ "gate.kind" = "random", "gate.stop_prob" = "stops of naive in main" }} }}
[stages.tune]
arms = ["single"]
seeds = [9]
axes = {{ "learner.lr" = [1e-3, 1e-2] }}
[stages.main]
arms = ["single", "naive"]
seeds = [0, 1]
axes = {{ "learner.lr" = "best of single in tune" }}
[stages.controls]
arms = ["matched"]
seeds = [0, 1]
axes = {{ "learner.lr" = "best of single in tune" }}
"""


def write_study(folder: Path, text: str = STUDY) -> Path:
    (folder / "base.toml").write_text(BASE)
    path = folder / "study.toml"
    path.write_text(text.format(folder=folder))
    return path


def test_load_study_when_paths_are_relative_then_to_the_file_and_of_a_shipped_one_to_the_working_directory(
    tmp_path: Path,
) -> None:
    own = load_study(write_study(tmp_path, STUDY.replace("{folder}/", ""))).config
    assert (own.results, own.runs) == (str(tmp_path / "results.json"), str(tmp_path / "runs"))
    assert load_study(write_study(tmp_path)).config.results == str(tmp_path / "results.json")
    assert load_study(ROOT / "configs" / "study" / "math.toml").config.results == "benchmarks/results/math.json"


def make_run(arm: str, seed: int, success: list[float], *, stage: str = "main", lr: float = 1e-3) -> dict[str, object]:
    reuse = 1 if arm == "single" else 4
    curve = [[i, y, 10 * i, 0, 0, reuse * i, 0, 1.0 * i, 1.0 * i] for i, y in enumerate(success)]
    return {
        "key": f"{arm}-{lr:g}-s{seed}", "arm": arm, "axes": {"learner.lr": lr}, "seed": seed, "stage": stage,
        "curve": curve, "run_cost": {"cpu_s": 5.0}, "reuse_steps": 10, "discarded_reuse_steps": 2,
        "rising_reuse_steps": 3, "closed_batches": 2, "machine": "an abacus",
    }  # fmt: skip


def results_of(folder: Path, runs: list[dict[str, object]]) -> Results:
    return Results(load_study(write_study(folder)).config.model_dump(), runs)


def test_cells_when_planned_then_arms_alternate_within_a_seed_and_wait_for_tuning(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path))
    nothing = results_of(tmp_path, [])
    assert study.cells("main", nothing.lookup) is None
    tuned = results_of(
        tmp_path, [make_run("single", 9, [y] * 6, stage="tune", lr=lr) for lr, y in ((1e-3, 0.2), (1e-2, 0.6))]
    )
    cells = study.cells("main", tuned.lookup)
    assert cells is not None
    assert [(cell.arm, cell.seed) for cell in cells] == [("single", 0), ("naive", 0), ("single", 1), ("naive", 1)]
    assert {dict(cell.overrides)["learner.lr"] for cell in cells} == {1e-2}
    assert len({cell.key for cell in cells}) == 4


def test_controls_when_matched_then_they_stop_as_often_as_the_gate_did(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path))
    runs = [make_run("single", 9, [0.5] * 6, stage="tune"), make_run("naive", 0, [0.5] * 6)]
    cells = study.cells("controls", results_of(tmp_path, runs).lookup)
    assert cells is not None
    assert dict(cells[0].overrides)["gate.stop_prob"] == 0.2


def test_compare_when_an_arm_is_twice_as_fast_with_four_gradients_then_time_counts_them(tmp_path: Path) -> None:
    slow = [0.2, 0.3, 0.4, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6]
    fast = [0.2, 0.4, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]
    row = compare(
        [make_run("naive", seed, fast) for seed in (0, 1)],
        [make_run("single", seed, slow) for seed in (0, 1)],
        rollout_share=0.8,
    )
    assert row["speedup"]["rollouts"].value == pytest.approx(2.0)
    # two batches with eight gradients against four batches with four: 4 / (0.8 * 2 + 0.2 * 8)
    assert row["speedup"]["time"].value == pytest.approx(4 / 3.2)
    assert row["difference"].mean == pytest.approx(0)
    assert (row["degraded"], row["steps_per_batch"], row["discarded"], row["rising"]) == (0, 4.0, 0.2, 0.3)


def test_tables_when_written_then_numbers_and_not_reached_stand_there(tmp_path: Path) -> None:
    runs = [make_run("single", s, [0.2, 0.4, 0.6, 0.6, 0.6, 0.6, 0.6]) for s in (0, 1)]
    runs += [make_run("naive", s, [0.2, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3]) for s in (0, 1)]
    path = tmp_path / "results.json"
    results = results_of(tmp_path, runs)
    results.write(path, command="x")
    text = study_tables(Results.read(path), source=path)
    assert "| single use (lr 0.001) | 60.0 % |" in text
    assert "| naive (lr 0.001) | 30.0 % | -30.0 [-30.0, -30.0] | not reached |" in text
    tree = json.loads(path.read_text())
    assert tree["columns"] == list(COLUMNS)
    assert tree["machine"]["cores"]


@pytest.mark.slow
def test_grid_when_two_axes_then_the_last_is_in_columns_and_speedups_are_over_earlier_single_use(
    tmp_path: Path,
) -> None:
    results = results_of(
        tmp_path,
        [make_run("single", 0, [0.2, 0.3, 0.4, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6]), *mapped_runs()],
    )
    results.study["stages"]["map"] = {"axes": {"learner.max_reuse": [2, 4], "learner.lr": [1e-3, 1e-2]}}
    text = study_tables(results, source=tmp_path / "results.json")
    assert "| map | lr 0.001 | lr 0.01 |" in text
    assert "| naive, max_reuse 2 | 60.0 (2.00x) | 30.0 (not reached) |" in text
    assert "| naive, max_reuse 4 | 60.0 (2.00x) | - |" in text
    assert "different warm starts" not in text
    assert text.endswith("measured on an abacus.")
    results.runs[0]["initial"] = "abc"
    assert "2 different warm starts" in study_tables(results, source=tmp_path / "results.json")


def test_map_when_drawn_then_every_arm_has_a_panel_with_its_numbers(tmp_path: Path) -> None:
    results = results_of(tmp_path, mapped_runs())
    results.study["stages"]["map"] = {"axes": {"learner.max_reuse": [2, 4], "learner.lr": [1e-3, 1e-2]}}
    (path,) = draw_study(results, tmp_path, name="toy")
    text = path.read_text()
    assert path.name == "toy_map.svg"
    assert all(f">{word}<" in text for word in ("naive", "60.0", "30.0", "learner.lr", "0.01"))


def mapped_runs() -> list[dict[str, object]]:
    fast = [0.2, 0.4, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]
    low = [0.2, *[0.3] * 8]
    values = (((2, 1e-3), fast), ((2, 1e-2), low), ((4, 1e-3), fast))
    return [
        {**make_run("naive", 0, curve, stage="map"), "axes": {"learner.max_reuse": k, "learner.lr": lr}}
        for (k, lr), curve in values
    ]


def test_summary_when_several_studies_then_a_row_per_stage_and_three_cells_per_arm(tmp_path: Path) -> None:
    runs = [make_run("single", s, [0.2, 0.4, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]) for s in (0, 1)]
    runs += [make_run("naive", s, [0.2, 0.6, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7], lr=1e-4) for s in (0, 1)]
    results = results_of(tmp_path, runs)
    lines = summary_table([results, results], ["naive"]).splitlines()
    assert len(lines) == 4
    assert lines[2] == lines[3]
    # the level, 60 %, after one batch instead of two; four gradients a batch: 2 / (0.8 + 0.2 * 4)
    assert (
        "main (lr 0.001) | 60.0 % | 2.00x [2.00, 2.00] (lr 0.0001) | 1.25x [1.25, 1.25] | +10.0 [10.0, 10.0] |"
        in lines[2]
    )
    with pytest.raises(UserError, match="no arm nobody"):
        summary_table([results], ["nobody"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('reference = "single"', 'reference = "double"', "reference must be one of"),
        ('arms = ["single", "naive"]', 'arms = ["single", "nave"]', "no arm 'nave'"),
        ('"gate.kind" = "none"', '"gate.kid" = "none"', "gate.kind"),
        ('"best of single in tune" }}\n[stages.controls]', '"best of single in main" }}\n[stages.controls]', "earlier"),
        ('title = "toy"', 'titel = "toy"', "titel"),
    ],
)
def test_study_file_when_wrong_then_one_clear_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in STUDY
    with pytest.raises(ConfigError, match=message):
        load_study(write_study(tmp_path, STUDY.replace(old, new)))


STUDIES = [
    *sorted((ROOT / "configs" / "study").glob("*.toml")),
    *(ROOT / "benchmarks" / f"{name}.toml" for name in OWN),
]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_studies_when_loaded_then_every_arm_is_a_valid_experiment(path: Path) -> None:
    if path.stem.endswith("_base"):
        pytest.skip("the experiment that a study shares")
    study = load_study(path)
    first = next(iter(study.config.stages))
    assert study.cells(first, lambda *_: None)


@pytest.mark.slow
def test_study_when_asked_to_end_then_its_runs_end_with_a_checkpoint(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    base = tmp_path / "base.toml"
    base.write_text(base.read_text().replace("steps = 2", "steps = 100000"))
    study = subprocess.Popen([sys.executable, "-m", "agentrl.study", str(path)], cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (metrics := list((tmp_path / "runs").glob("*/metrics.jsonl"))) or not metrics[0].read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    study.send_signal(signal.SIGTERM)
    assert "interrupted" in study.communicate(timeout=60)[1].decode()
    assert study.returncode == 143
    (log,) = (tmp_path / "runs").glob("*.log")
    assert "continue with: python -m agentrl.train --resume" in log.read_text()
    (folder,) = {path.parent for path in metrics}
    size = metrics[0].stat().st_size
    assert any((folder / "checkpoints").glob("step-*"))
    time.sleep(1)
    assert metrics[0].stat().st_size == size


def test_numbers_when_formatted_then_intervals_and_gaps_are_plain() -> None:
    run = [make_run("single", s, [0.2, 0.4, 0.6, 0.6, 0.6, 0.6, 0.6]) for s in (0, 1)]
    row = compare(run, run, rollout_share=0.8)
    assert format_speedup(row["speedup"]["rollouts"]) == "1.00x [1.00, 1.00]"
    assert format_difference(row["difference"]) == "+0.0 [0.0, 0.0]"
    assert as_words({"a.b": True, "c.d": 1e-3, "e.f": []}) == ["--a.b", "true", "--c.d", "0.001", "--e.f", "[]"]


@pytest.mark.slow
def test_study_when_run_interrupted_by_its_budget_and_run_again_then_it_goes_on_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    path = write_study(tmp_path)
    assert main([str(path), "--budget-s", "0.001"]) == 0  # one run, then the budget is spent
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert len(runs) == 1
    assert main([str(path)]) == 0
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [sum(run["stage"] == stage for run in runs) for stage in ("tune", "main", "controls")] == [2, 4, 2]
    assert all(run["run_cost"]["cpu_s"] > 0 and math.isfinite(run["run_cost"]["wall_s"]) for run in runs)
    assert all(len(run["curve"]) == 3 for run in runs)
    text = capsys.readouterr().out
    assert "### toy" in text
    assert "| single use" in text
    assert len({(run["seed"], run["initial"]) for run in runs}) == len({run["seed"] for run in runs})
    assert "different warm starts" not in text
    shutil.rmtree(tmp_path / "runs")  # the results file remembers what was measured
    assert main([str(path), "--plan"]) == 0
    assert " open " not in capsys.readouterr().out
    assert main([str(path), "--plan", "--stage", "tune"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {"tune"}
    assert main([str(path), "--figures", str(tmp_path / "figures")]) == 0
    assert json.loads((tmp_path / "results.json").read_text())["runs"] == runs
    assert sorted(file.name for file in (tmp_path / "figures").iterdir()) == [
        "results_controls.svg", "results_main.svg",
    ]  # fmt: skip
    assert main([str(path), "--plan", "--results", str(tmp_path / "anew.json")]) == 0
    assert " done " not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read as a study's results"),
        ("", "cannot be read as a study's results"),
        ('{"study": ', "cannot be read as a study's results"),
        ("{}", "is not the results of a study"),
        ("[1]", "is not the results of a study"),
        ('{"study": {}, "machine": {"processor": "p"}, "runs": []}', "is not the results of a study"),
        ('{"study": 3, "machine": "p", "runs": 4}', "is not the results of a study"),
    ],
)
def test_a_file_that_holds_no_results_is_told_in_one_line(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    assert main_guard(lambda: main([str(path)])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert str(path) in line


def finished_run(folder: Path, success: float) -> None:
    """The files of a finished run of one batch, as a run leaves them."""
    folder.mkdir(parents=True)
    costs = dict.fromkeys([f"cost/{name}" for name in COLUMNS[2:7]], 4)
    times = dict.fromkeys([f"time/{name}" for name in ("rollout_s", "rollout_cpu_s", "update_s", "update_cpu_s")], 0.5)
    update = {"k": 1, "applied": True, "head_energy": 1.0}
    batch = {"step": 1, "kind": "train", "rollout/success": success, "learner/gate_closed": False, "updates": [update]}
    records = [{**batch, **costs, **times}, {"step": 1, "kind": "eval", "eval/success": success, "final": True}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    cost = {"cpu_s": 2.0, "wall_s": 3.0, "processor": "a loom"}
    folder.with_suffix(".cost.jsonl").write_text(json.dumps(cost) + "\n")


def test_finished_runs_when_collected_again_then_their_folders_are_not_read_again(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path))
    cells = study.cells("tune", lambda *_: None)
    assert cells is not None
    finished_run(tmp_path / "runs" / cells[0].key, 0.25)
    measured: dict[str, dict[str, object]] = {}
    (run,) = Results.collect(study, {"tune": cells}, measured).runs
    assert (run["curve"][0][1], run["machine"], run["run_cost"]["cpu_s"]) == (0.25, "a loom", 2.0)
    shutil.rmtree(tmp_path / "runs")
    finished_run(tmp_path / "runs" / cells[1].key, 0.5)  # of another machine, say
    found = Results.collect(study, {"tune": cells, "again": cells}, measured).runs
    assert [(r["stage"], r["curve"][0][1]) for r in found] == [
        ("tune", 0.25), ("tune", 0.5), ("again", 0.25), ("again", 0.5),
    ]  # fmt: skip


def test_runner_when_others_work_then_it_takes_what_is_free_and_leaves_what_they_ended(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, STUDY.replace("seeds = [9]", "seeds = [7, 8, 9]")))
    cells = study.cells("tune", lambda *_: None)
    assert cells is not None
    runner, waiting = Runner(study), list(cells)
    finished_run(runner.folder(cells[0]), 0.5)
    assert acquire(lock_path(runner.folder(cells[1])))
    assert runner._next(waiting) == cells[2]
    assert waiting == [cells[1], *cells[3:]]
    for cell in cells[3:]:
        finished_run(runner.folder(cell), 0.5)
    assert runner._next(waiting) is None
    assert waiting == [cells[1]]


@pytest.mark.slow
def test_study_when_two_commands_work_on_it_then_every_run_is_made_once(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    command = [sys.executable, "-m", "agentrl.study", str(path), "--jobs", "2"]
    with subprocess.Popen(command, cwd=ROOT) as first, subprocess.Popen(command, cwd=ROOT) as second:
        assert [first.wait(), second.wait()] == [0, 0]
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert len({run["key"] for run in runs}) == 8
    assert all(len(file.read_text().splitlines()) == 1 for file in (tmp_path / "runs").glob("*.cost.jsonl"))
    assert len(list((tmp_path / "runs").glob("*.cost.jsonl"))) == 8
    assert not list((tmp_path / "runs").glob("*.lock*"))
    assert not list(tmp_path.glob("*.writing"))


def test_command_when_another_reference_is_named_then_arms_are_measured_against_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make_run("single", s, [0.2, *[0.4] * 6]) for s in (0, 1)]
    runs += [make_run("naive", s, [0.2, *[0.5] * 6]) for s in (0, 1)]
    path = tmp_path / "results.json"
    results_of(tmp_path, runs).write(path, command="x")
    assert main_guard(lambda: main([str(path), "--reference", "naive"])) == 0
    text = capsys.readouterr().out
    assert "minus naive" in text
    assert "| single use (lr 0.001) | 40.0 % | -10.0 [-10.0, -10.0] | not reached |" in text
    assert main_guard(lambda: main([str(path), "--reference", "nobody"])) == 2
    assert "there are single, naive" in capsys.readouterr().err


def test_command_when_the_results_file_holds_runs_of_another_base_then_it_does_not_write_over_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_study(tmp_path)
    runs = [{**make_run("single", 9, [0.5] * 6, stage="tune"), "key": "single-of-old-s9"}]
    results_of(tmp_path, runs).write(tmp_path / "results.json", command="x")
    before = (tmp_path / "results.json").read_bytes()
    assert main_guard(lambda: main([str(path), "--budget-s", "0"])) == 2
    assert "holds 1 runs that the study as it stands does not ask for" in capsys.readouterr().err
    assert (tmp_path / "results.json").read_bytes() == before


def test_command_when_told_nonsense_then_code_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_study(tmp_path)
    assert main_guard(lambda: main([str(path), "--stage", "nope"])) == 2
    assert "there are tune, main, controls" in capsys.readouterr().err
