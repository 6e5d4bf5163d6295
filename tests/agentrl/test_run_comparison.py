"""Several runs side by side: seeds of one arm, what a level cost, refusals; written-out records, numbers by hand."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from agentrl.command.guard import main_guard
from agentrl.config.read import build_config
from agentrl.errors import UserError
from agentrl.report.__main__ import main
from agentrl.report.arm_sections import compare_runs
from agentrl.report.arms import common_level, cost_of_level, end_against, find_arms, over_seeds
from agentrl.report.view import RunView, load_runs
from agentrl.types import Metrics

NAIVE = {"gate": {"kind": "none"}}


def evaluation(step: int, success: float, *, tasks: int = 10, split: str = "test") -> Metrics:
    wins = round(success * tasks)
    return {
        "step": step, "kind": "eval", "eval/success": success, "eval/reward": 2 * success, "eval/split": split,
        "eval/success_low": success, "eval/success_high": success, "eval/counts": {"all": [wins, tasks]},
    }  # fmt: skip


def batch(step: int, *, seconds: float) -> Metrics:
    """100 episodes and two gradients, the second discarded in even batches."""
    closed = step % 2 == 0
    updates = [
        {"k": 1, "applied": True, "reason": "", "head_energy": 1.0, "kl": 0.0, "clip_fraction": 0.0},
        {"k": 2, "applied": not closed, "reason": "surge", "head_energy": 2.0, "kl": 0.1, "clip_fraction": 0.0},
    ]
    return {
        "step": step, "kind": "train", "rollout/success": 0.5, "rollout/reward": 1.0, "rollout/turns": 1.0,
        "rollout/invalid_actions": 0.0, "rollout/cut_turns": 0.0, "batch/mixed_groups": 1, "batch/groups": 2,
        "learner/steps": 1 if closed else 2, "learner/gate_closed": closed, "learner/entropy": 1.0,
        "cost/episodes": 100 * step, "cost/generated_tokens": 1000 * step, "cost/optimizer_steps": step,
        "cost/discarded_steps": step // 2, "time/rollout_s": seconds, "time/update_s": seconds, "updates": updates,
        "time/rollout_cpu_s": seconds / 2, "time/update_cpu_s": seconds / 2,
    }  # fmt: skip


def write_run(
    folder: Path, curve: list[float], *, seed: int = 0, seconds: float = 5.0, tasks: int = 10, split: str = "test",
    **tables: Any,
) -> Path:  # fmt: skip
    """A run of one batch between two evaluations."""
    records = [evaluation(0, curve[0], tasks=tasks, split=split)]
    for step, success in enumerate(curve[1:], start=1):
        records += [batch(step, seconds=seconds), evaluation(step, success, tasks=tasks, split=split)]
    tree = {"env": {"id": "tests.toy:ColourEnv"}, "train": {"seed": seed, "steps": len(curve) - 1}, **tables}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(build_config(tree).model_dump()))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[RunView]:
    """Two seeds of DGG, two of naive reuse that gets there in half the batches and a tenth of the time."""
    folders = [
        write_run(tmp_path / "d0", [0.2, 0.4, 0.6, 0.6, 0.6, 0.6, 0.6]),
        write_run(tmp_path / "d1", [0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8], seed=1),
        write_run(tmp_path / "n1", [0.2, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8], seed=1, seconds=1, **NAIVE),
        write_run(tmp_path / "n0", [0.2, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6], seconds=1, **NAIVE),
    ]
    return load_runs(folders)


def test_runs_that_differ_in_their_seed_alone_are_one_arm_in_the_order_of_the_seeds(runs: list[RunView]) -> None:
    dgg, naive = find_arms(runs)
    assert (dgg.seeds, naive.seeds) == ([0, 1], [0, 1])
    assert [run.name for run in naive.runs] == ["n0", "n1"]
    assert dgg.label.startswith("DGG")
    assert naive.label.startswith("naive reuse")
    assert naive.scores("success")[1][1] == 0.8
    assert dgg.costs("rollouts")[0] == [0, 100, 200, 300, 400, 500, 600]
    assert dgg.costs("seconds")[0][:3] == [0, 10, 20]


def test_a_level_is_where_the_first_arm_ends_and_its_cost_is_read_off_the_mean_curve(runs: list[RunView]) -> None:
    dgg, naive = find_arms(runs)
    # The last five of seed 0 are 0.6; of seed 1 0.6, 0.8, 0.8, 0.8, 0.8: 0.76. Their mean is 0.68.
    assert dgg.ends() == pytest.approx([0.6, 0.76])
    level = common_level([dgg, naive])
    assert level == pytest.approx(0.68)
    # The mean curve of DGG: 0.2 0.4 0.6 0.7: from 0.6 at 200 rollouts to 0.7 at 300, 0.68 lies at 280, or 28 s.
    own = cost_of_level(dgg, dgg, 0.68)
    assert own.costs == pytest.approx({"rollouts": 280, "seconds": 28})
    assert (own.num_runs, own.speedup) == (1, None)
    # Naive: 0.2, 0.7: 0.68 lies at 96 rollouts, of 2 s a batch.
    other = cost_of_level(naive, dgg, 0.68)
    assert other.costs == pytest.approx({"rollouts": 96, "seconds": 1.92})
    assert other.speedup is not None
    assert other.speedup.value == pytest.approx(280 / 96)
    # 0.6 is reached on each seed, after 200 and 100, 200 and 2/3 of 100: no resample lies outside of 2 and 3.
    gain = cost_of_level(naive, dgg, 0.6).speedup
    assert gain is not None
    assert (gain.low, gain.high, gain.reached) == (pytest.approx(2), pytest.approx(3), 1.0)
    assert cost_of_level(naive, dgg, 0.9).costs == {"rollouts": None, "seconds": None}
    assert common_level([dgg, naive], 0.9) == 0.9


def test_ends_are_compared_by_seed_with_the_interval_of_student(runs: list[RunView]) -> None:
    dgg, naive = find_arms(runs)
    difference = end_against(naive, dgg)  # 0.6 - 0.6 and 0.8 - 0.76: mean 0.02, deviation 0.02 sqrt 2
    assert difference is not None
    half = 12.706 * 0.02 * math.sqrt(2) / math.sqrt(2)
    assert (difference.mean, difference.high - difference.mean) == (pytest.approx(0.02), pytest.approx(half))
    assert end_against(dgg, dgg) is None
    ends = over_seeds([0.5, 0.7])
    assert (ends.mean, ends.low) == (pytest.approx(0.6), pytest.approx(0.6 - 12.706 * 0.1))


def test_arms_without_a_seed_in_common_are_not_paired(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", [0.0, 0.5])
    other = write_run(tmp_path / "b", [0.0, 0.5], seed=3, **NAIVE)
    arms = find_arms(load_runs([first, other]))
    assert end_against(arms[1], arms[0]) is None
    assert cost_of_level(arms[1], arms[0], 0.5).speedup is None
    (costs, *_) = compare_runs(load_runs([first, other])).tables
    assert "no seed in common" in costs.rows[1]


def test_tables_tell_costs_verdicts_and_settings(runs: list[RunView]) -> None:
    costs, gates, settings, every = compare_runs(runs, 0.6).tables
    assert costs.rows[0][1:4] == ["2", "68.0 [-33.6, 169.6]", ""]
    assert costs.rows[1][5:] == ["80", "2", "2.50x [2.00, 3.00]"]
    assert "as given" in costs.note
    # Six batches, of which three stop at k = 2, on each of two seeds.
    assert gates.rows[0][1:] == ["1.50", "12", "6 (50.0 %)", "50.0 % of 12 batches"]
    assert ["gate.kind", "dgg", "none"] in settings.rows
    assert "train.seed" not in [row[0] for row in settings.rows]
    assert [row[2] for row in every.rows] == ["60.0 %", "80.0 %", "80.0 %", "60.0 %"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"env": {"id": "tests.toy:NoExpertEnv"}}, "env.id is 'tests.toy:ColourEnv' in a and 'tests.toy:NoExpertEnv'"),
        ({"env": {"id": "tests.toy:ColourEnv", "options": {"size": 3}}}, "env.options is {} in a and {'size': 3} in b"),
        ({"split": "train"}, "evaluation is 'test' in a and 'train' in b"),
        ({"tasks": 20}, "number of held-out tasks by category is {'all': 10} in a and {'all': 20} in b"),
    ],
)
def test_runs_of_other_environments_or_held_out_tasks_are_refused_with_the_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [write_run(tmp_path / "a", [0.0, 0.5]), write_run(tmp_path / "b", [0.0, 0.5], **changes)]
    with pytest.raises(UserError, match=re.escape(reason)):
        find_arms(load_runs(folders))
    assert main_guard(lambda: main([*map(str, folders), "--out", str(tmp_path / "page.html")])) == 2
    assert "cannot be compared" in capsys.readouterr().err


def test_options_that_say_where_data_lie_make_no_other_environment(tmp_path: Path) -> None:
    env = {"id": "tests.toy:ColourEnv", "options": {"data": "elsewhere"}}
    folders = [write_run(tmp_path / "a", [0.0, 0.5]), write_run(tmp_path / "b", [0.0, 0.5], env=env)]
    assert len(find_arms(load_runs(folders))) == 2


def test_the_command_prints_a_table_and_writes_one_page_with_every_run(
    runs: list[RunView], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*(str(run.folder) for run in runs), "--out", str(tmp_path / "page.html"), "--level", "0.6"]
    assert main(words) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "to 60.0 %" in printed
    assert "2.50x" in printed
    page = (tmp_path / "page.html").read_text()
    assert page.count('<div class="panel"') == page.count('role="tab"') == 4
    for title in ("against rollouts", "against time", "Training success", "Gradients applied per batch"):
        assert title in page
    assert "<h3>Settings that differ</h3>" in page
    assert main_guard(lambda: main([*words[:-1], "60"])) == 2
    assert "--level is a share" in capsys.readouterr().err
