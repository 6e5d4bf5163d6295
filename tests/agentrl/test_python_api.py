"""Environments, rewards, callbacks as objects; what a run gives back; mixtures; the documentation's notebooks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import agentrl
from agentrl.common.plugins import HERE, find_object, name_object
from agentrl.config.read import load_config
from agentrl.environment.given import load_given
from agentrl.environment.reward import OwnRewards
from agentrl.errors import ConfigError, UserError
from agentrl.report.__main__ import main as report
from agentrl.rollout.tasks import MixedSampler, TaskSampler
from agentrl.runs.folder import RunRecord
from agentrl.runs.metrics import environment_metrics, reward_metrics
from agentrl.types import Status, Task, Trajectory, Turn
from tests.agentrl.test_api import TINY
from tests.toy import ColourEnv

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.py"))
WITHOUT_ENV = {key: value for key, value in TINY.items() if not key.startswith("env.")} | {
    "tracking.trajectories_every": 1
}
MIXED = [
    {"id": "tests.toy:ColourEnv", "eval_split": "test", "weight": 2},
    {"id": "tests.toy:NoExpertEnv", "eval_split": "test"},
]


def episode(*rewards: float, environment: str = "", success: bool = False) -> Trajectory:
    turns = [Turn(0, i, i + 1, "hello", "next", reward) for i, reward in enumerate(rewards)]
    task = Task("toy", "train", 0, environment=environment)
    return Trajectory(task, 0, [], turns, "begin", Status.TERMINATED, success=success)


def length(trajectory: Trajectory) -> float:
    return float(len(trajectory.turns))


def half(trajectory: Trajectory) -> float:
    return 0.5


def same(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if not key.startswith("time/")}


def test_several_rewards_are_added_with_their_weights_and_kept_under_their_names() -> None:
    judged = episode(1.0, 2.0)
    OwnRewards({"environment": 2.0, f"{__name__}:length": 0.25, f"{__name__}:half": -1.0}).give(judged)
    assert judged.rewards == {"environment": 3.0, "length": 2.0, "half": 0.5}
    assert [turn.reward for turn in judged.turns] == [0.0, 2 * 3.0 + 0.25 * 2 - 0.5]
    assert reward_metrics([judged, episode(1.0)]) == {
        "reward/environment": 3.0, "reward/length": 2.0, "reward/half": 0.5,
    }  # fmt: skip
    never_asked = episode()
    OwnRewards(f"{__name__}:half").give(never_asked)
    assert (never_asked.reward, never_asked.rewards) == (0.0, {})
    with pytest.raises(UserError, match="empty table"):
        OwnRewards({})


def test_a_trajectory_is_a_conversation_too() -> None:
    roles = [(message["role"], message["content"]) for message in episode(0.0).messages]
    assert roles == [("user", "begin"), ("assistant", "hello"), ("user", "next")]


def test_objects_are_named_as_imports_find_them_and_others_are_kept_for_this_process() -> None:
    assert name_object(ColourEnv) == "tests.toy:ColourEnv"

    class Inside(ColourEnv):
        pass

    path = name_object(Inside)
    assert path.startswith(HERE)
    assert find_object(path, "env.id") is Inside
    with pytest.raises(UserError, match=r"is of the script or notebook that started the run"):
        find_object(f"{HERE}Elsewhere", "env.id")


def test_rewards_and_environments_as_objects_become_names_in_the_config(capsys: pytest.CaptureFixture[str]) -> None:
    config = load_given(None, {"env.options.flag": "x"}, env=ColourEnv, reward=[length, half])
    assert (config.env.id, config.env.options, config.rollout.env_workers) == ("tests.toy:ColourEnv", {"flag": "x"}, 2)
    assert config.env.reward == {f"{__name__}:length": 1.0, f"{__name__}:half": 1.0}
    assert load_given(None, ["--train.steps", "3"], env="tests.toy:ColourEnv").env.id == "tests.toy:ColourEnv"
    local = load_given(None, {"rollout.env_workers": 2}, env=lambda: ColourEnv(), reward={length: 0.5})
    assert (local.rollout.env_workers, local.env.reward) == (0, {f"{__name__}:length": 0.5})
    assert "is of this script or notebook: played in this process" in capsys.readouterr().err
    with pytest.raises(UserError, match="two are called"):
        load_given(None, None, reward=[lambda t: 1.0, lambda t: 2.0])
    with pytest.raises(UserError, match="env must be a class or a function, or a name, got int"):
        load_given(None, None, env=3)  # type: ignore[arg-type]


def test_a_run_ends_as_done_when_the_callback_has_seen_enough_and_goes_on_when_resumed(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def enough(record: dict[str, Any], groups: list[agentrl.Trajectory]) -> bool:
        seen.append((record["step"], len(groups)))
        return record["step"] < 2

    settings = {**WITHOUT_ENV, "train.steps": 4, "rollout.env_workers": 0}
    run = agentrl.train(env=ColourEnv, overrides=settings, reward=half, on_batch=enough, run_dir=tmp_path / "stopped")
    assert seen == [(1, 2), (2, 2)]
    assert [(r["kind"], r["step"], r.get("final")) for r in run.records if r["kind"] == "eval"][-1] == ("eval", 2, True)
    assert run.best_checkpoint == run.folder / "checkpoints" / "step-000002"
    resumed = agentrl.train(resume=run.folder)
    whole = agentrl.train(None, settings, env=ColourEnv, reward=half, run_dir=tmp_path / "whole")
    ours, theirs = ([same(r) for r in each.batches] for each in (resumed, whole))
    assert ours == theirs
    assert ours[0]["reward/half"] == 0.5


def test_a_run_gives_back_a_table_episodes_and_its_best_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="needs the extra notebook")
    run = agentrl.train(None, {**TINY, "tracking.trajectories_every": 1}, run_dir=tmp_path / "run")
    table = run.metrics
    assert list(table.index) == [0, 1]
    assert table.loc[1, "rollout/reward"] == run.batches[0]["rollout/reward"]
    assert table.loc[1, "eval/success"] == run.success
    assert np.isnan(table.loc[0, "rollout/reward"])
    stored = list(run.episodes())
    assert {e["source"] for e in stored} == {"eval-000000", "step-000001", "eval-000001"}
    assert run.reward == run.evaluations[-1]["eval/reward"]


def test_the_best_checkpoint_has_most_success_then_reward_then_is_the_later_one(tmp_path: Path) -> None:
    config = load_config(None)
    results = {0: (0.5, 1.0), 1: (0.5, 2.0), 2: (0.5, 2.0), 3: (0.1, 9.0)}
    records = [{"kind": "eval", "step": s, "eval/success": a, "eval/reward": b} for s, (a, b) in results.items()]
    run = RunRecord(tmp_path, config, records)
    assert run.best_checkpoint is None
    for step in (0, 1, 2, 3, 4):
        (tmp_path / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    assert run.best_checkpoint == tmp_path / "checkpoints" / "step-000002"


SCRIPT = """
import gymnasium, sys, agentrl
from gymnasium.spaces import Text

class Mine(gymnasium.Env):
    observation_space = action_space = Text(1000)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return "Say yes.", {}
    def step(self, action):
        return "", 0.4, True, False, {}

def short(episode):
    return -len(episode.turns[-1].action)

print("started")
settings = SETTINGS
run = agentrl.train(env=Mine, reward=short, overrides=settings, run_dir=sys.argv[1])
print("workers", run.config.rollout.env_workers, "success", run.success, run.config.env.id)
other = agentrl.train(env="my_env:MyEnv", overrides=settings, run_dir=sys.argv[1] + "-2")
print("workers", other.config.rollout.env_workers)
"""


@pytest.mark.slow
def test_a_script_without_a_main_guard_plays_its_own_environment_and_one_of_a_file(tmp_path: Path) -> None:
    settings = {key: value for key, value in WITHOUT_ENV.items() if key != "rollout.env_workers"}
    (tmp_path / "script.py").write_text(SCRIPT.replace("SETTINGS", repr(settings)))
    (tmp_path / "my_env.py").write_text((ROOT / "tests" / "examples" / "my_env.py").read_text())
    done = subprocess.run(
        [sys.executable, "script.py", "out"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("started") == 1  # worker processes do not run the script again
    assert "workers 0 success 0.0 __main__:Mine" in done.stdout
    assert "workers 2" in done.stdout
    assert "gives no info['success']: an episode whose return is at least 1" in done.stderr


def test_an_environment_without_success_succeeds_from_a_stated_return(tmp_path: Path) -> None:
    class Graded(ColourEnv):
        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            text, _, terminated, truncated, info = super().step(action)
            return text, 0.4, terminated, truncated, {k: v for k, v in info.items() if k != "success"}

    settings = {**WITHOUT_ENV, "rollout.env_workers": 0}
    for threshold, success in ((1.0, 0.0), (0.8, 1.0)):
        overrides = {**settings, "env.success_threshold": threshold}
        run = agentrl.train(None, overrides, env=Graded, run_dir=tmp_path / str(threshold))
        assert (run.success, run.reward) == (success, pytest.approx(0.8))


def test_tasks_of_a_mixture_come_in_proportion_and_go_on_where_they_stood() -> None:
    def sampler() -> MixedSampler:
        streams = {name: TaskSampler(name, "train", indices=list(range(5)), seed=3) for name in "AB"}
        return MixedSampler(streams, {"A": 2.0, "B": 1.0})

    whole = sampler()
    tasks = whole.take(9)
    assert "".join(task.environment for task in tasks) == "ABAABAABA"
    assert [task.position for task in tasks] == list(range(9))
    alone = TaskSampler("A", "train", indices=list(range(5)), seed=3).take(6)
    assert [(t.index, t.seed) for t in tasks if t.environment == "A"] == [(t.index, t.seed) for t in alone]
    first, second = sampler(), sampler()
    first.take(4)
    assert first.fork().take(5) == tasks[4:]  # which moves nobody
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.take(5) == tasks[4:]


def test_numbers_of_a_mixture_are_told_for_each_environment() -> None:
    played = [episode(1.0, environment="A", success=True), episode(0.0, environment="A"), episode(0.5, environment="B")]
    assert environment_metrics("rollout", played) == {
        "rollout/episodes/A": 2, "rollout/success/A": 0.5, "rollout/reward/A": 0.5,
        "rollout/episodes/B": 1, "rollout/success/B": 0.0, "rollout/reward/B": 0.5,
    }  # fmt: skip
    assert environment_metrics("rollout", [episode(1.0)]) == {}


def test_a_config_of_several_environments_is_read_overridden_and_stored_as_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "two.toml"
    file.write_text('[[env]]\nid = "tests.toy:ColourEnv"\n[[env]]\nid = "tests.toy:ColourEnv"\nweight = 2\n')
    config = load_config(file, ["--env.1.options.size", "3"])
    assert list(config.environments()) == ["ColourEnv#1", "ColourEnv#2"]
    assert [member.env.options for member in config.environments().values()] == [{}, {"size": 3}]
    assert load_config(json.loads(json.dumps(config.model_dump()))) == config
    assert load_config(config, {"train.steps": 1}).mixture == config.mixture
    for words, message in (
        (["--env.id", "x"], r"there are 2 environments; say of which, --env\.0\.id or --env\.1\.id"),
        (["--env.1.weight", "0"], r"env\.1\.weight must be > 0, got 0"),
        (["--env.0.idd", "x"], r"unknown key env\.0\.idd \(command line\)"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            load_config(file, words)
        assert "\n" not in str(caught.value)
    alone = load_config({"env": [{"id": "tests.toy:ColourEnv"}]})
    assert (alone.env.id, alone.mixture) == ("tests.toy:ColourEnv", [])


@pytest.mark.slow
def test_a_mixture_is_trained_resumed_evaluated_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {**WITHOUT_ENV, "train.groups_per_step": 3, "eval.tasks": 2, "train.steps": 2, "checkpoint.every": 1}
    config = load_config({"env": MIXED}, settings)
    whole = agentrl.train(config, run_dir="whole")
    first = agentrl.train(config, {"train.steps": 1}, run_dir="half")
    resumed = agentrl.train(resume=first.folder, overrides={"train.steps": 2})
    assert [same(r) for r in resumed.batches] == [same(r) for r in whole.batches]
    batch, evaluation = whole.batches[-1], whole.evaluations[-1]
    assert (batch["rollout/episodes/ColourEnv"], batch["rollout/episodes/NoExpertEnv"]) == (4, 2)
    assert evaluation["eval/counts"]["ColourEnv"][1] == evaluation["eval/counts"]["NoExpertEnv"][1] == 2
    groups: dict[int, set[str]] = {}
    for stored in whole.episodes():
        if stored["source"].startswith("step"):
            groups.setdefault(stored["task"]["position"], set()).add(stored["task"]["environment"])
            assert stored["advantage"] is not None
    assert all(len(names) == 1 for names in groups.values())
    capsys.readouterr()
    result = agentrl.evaluate("whole")
    assert {"ColourEnv", "NoExpertEnv", "all"} <= set(result.rates)
    shown = capsys.readouterr().out
    assert "mean reward" in shown
    (folder,) = Path("runs").glob("eval-step-*")
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 4
    assert report([str(folder), "--out", "page.html"]) == 0
    assert report(["whole", "--out", "run.html"]) == 0
    assert "NoExpertEnv" in Path("run.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_of_the_documentation_runs_in_jupyter(path: Path, tmp_path: Path) -> None:
    """With a running event loop, and an environment in a cell: what `jupytext --execute` does."""
    pytest.importorskip("ipykernel", reason="needs the extra dev")
    jupytext, nbclient = pytest.importorskip("jupytext"), pytest.importorskip("nbclient")
    notebook = jupytext.read(path)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=env)
    printed = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    assert printed  # a cell that raises ends the execution


def test_an_environment_may_be_registered_with_gymnasium_by_the_script() -> None:
    gymnasium.register("test_python_api/Colour-v0", entry_point=ColourEnv)
    config = load_given(None, None, env="test_python_api/Colour-v0")
    assert config.env.id == "test_python_api/Colour-v0"
