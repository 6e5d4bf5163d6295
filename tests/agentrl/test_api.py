"""`import agentrl` in scripts, notebooks and threads; gates, losses, engines and rewards of one's own."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import agentrl
from agentrl.config.read import build_config, load_config
from agentrl.config.schema import RolloutConfig
from agentrl.environment.reward import OwnRewards
from agentrl.errors import ConfigError, RunError, UserError
from agentrl.learner.gates import StepSignal, make_gate
from agentrl.rollout.engines.factory import make_engine
from agentrl.rollout.engines.local import LocalEngine
from agentrl.runs.interruption import Interruption
from agentrl.types import Status, Task, Trajectory, Turn
from tests.agentrl.engines import MODULE, TOKENIZER
from tests.agentrl.helpers import gate_config, loss_config
from tests.agentrl.test_faults import SMALL

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "tests" / "examples"
TINY = {**SMALL, "train.steps": 1, "env.id": "tests.toy:ColourEnv", "rollout.env_workers": 0, "tracking.trackers": []}


@pytest.mark.slow
def test_import_agentrl_loads_nothing_heavy_and_offers_every_public_name() -> None:
    script = (
        "import sys, agentrl\n"
        "assert not {'torch', 'numpy', 'pydantic', 'gymnasium'} & set(sys.modules), 'heavy'\n"
        "for name in agentrl.__all__: getattr(agentrl, name)\n"
        "assert set(agentrl.__all__) <= set(dir(agentrl))\n"
        "assert callable(agentrl.train) and callable(agentrl.evaluate) and agentrl.train.main\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        agentrl.trian  # noqa: B018


@pytest.mark.slow
def test_the_documented_script_runs_from_another_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "my_script.py"), str(tmp_path / "mine")],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 batches, success" in done.stdout
    run = agentrl.read_run(tmp_path / "mine")
    assert {len(batch["updates"]) for batch in run.batches if batch["batch/mixed_groups"]} <= {3}
    assert run.config.gate.kind == "my_script:EveryOther"
    assert [update["reason"] for batch in run.batches for update in batch["updates"]].count("reuse") == 0


def test_train_and_evaluate_work_under_a_running_event_loop_and_leave_its_signals_alone(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)

    async def cell() -> Any:
        run = agentrl.train(agentrl.load_config(None, TINY), run_dir=tmp_path / "run")
        return run, agentrl.evaluate(run.folder, {"eval.tasks": 2})

    run, result = asyncio.run(cell())
    assert [record["kind"] for record in run.records] == ["eval", "train", "eval"]
    assert run.success == run.evaluations[-1]["eval/success"]
    assert result.total.count == 2
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_in_a_thread_gives_the_same_numbers_as_one_outside(tmp_path: Path) -> None:
    runs: list[Any] = []

    def work() -> None:
        runs.append(agentrl.train(None, TINY, run_dir=tmp_path / "thread"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    runs.append(agentrl.train(None, TINY, run_dir=tmp_path / "main"))
    ours, theirs = ([{k: v for k, v in r.items() if not k.startswith("time/")} for r in run.records] for run in runs)
    assert ours == theirs


def test_signals_are_left_alone_in_threads_and_under_nohup(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []

    def work() -> None:
        with Interruption() as interruption:
            found.append(dict(interruption._before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [{}]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGUSR1) not in (signal.SIG_DFL, signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGHUP, before)


class Halves:
    """A gate that halves every gradient."""

    def __init__(self, factor: float = 0.5) -> None:
        self.factor = factor

    def judge(self, signal: StepSignal) -> agentrl.Verdict:
        return agentrl.Verdict(apply=True, stop=False, scale=self.factor, reason="reuse")

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.factor = state["factor"]


class Judgeless:
    """No gate."""

    def state_dict(self) -> dict[str, Any]:
        return {}


def doubled(
    logprobs: torch.Tensor,
    old: torch.Tensor,
    behaviour: torch.Tensor,
    advantages: torch.Tensor,
    row_index: torch.Tensor,
    by: float = 2.0,
) -> torch.Tensor:
    return -by * advantages * logprobs


def own_engine(**parts: Any) -> LocalEngine:
    assert set(parts) == {"module", "tokenizer", "config", "rank", "count"}
    return LocalEngine(parts["module"], parts["tokenizer"], max_concurrent=3, max_context_tokens=64)


def test_a_gate_of_ones_own_judges_behind_the_guard_and_keeps_its_state() -> None:
    config = build_config({"gate": {"kind": f"{__name__}:Halves", "options": {"factor": 0.25}}}).gate
    gate = make_gate(config)
    assert gate.judge(StepSignal(1, 2.0)).scale == 0.25
    assert not gate.judge(StepSignal(1, float("nan"))).apply
    again = make_gate(gate_config(kind=f"{__name__}:Halves"))  # type: ignore[arg-type]
    again.load_state_dict(gate.state_dict())
    assert again.judge(StepSignal(1, 2.0)).scale == 0.25


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("Judgeless", {}, "makes a Judgeless without judge"),
        ("Halfs", {}, "has no 'Halfs'. Did you mean Halves?"),
        ("Halves", {"faktor": 1}, "called with faktor, raised TypeError"),
        ("ROOT", {}, "a class or a function is needed"),
    ],
)
def test_a_gate_that_cannot_be_used_is_told_in_one_line(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=r"gate\.kind: ") as caught:
        make_gate(gate_config(kind=f"{__name__}:{kind}", options=options))  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelt_kind_is_still_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match=r"gate.kind must be one of dgg, total_norm_z") as caught:
        load_config(None, {"gate.kind": "dgx"})
    assert len(str(caught.value).splitlines()) == 1


def test_a_loss_of_ones_own_gets_its_options() -> None:
    loss = loss_config(kind=f"{__name__}:doubled", options={"by": 3.0}).policy_loss()  # type: ignore[arg-type]
    ones = torch.ones(2)
    assert loss(ones, ones, ones, ones, torch.zeros(2, dtype=torch.long)).tolist() == [-3.0, -3.0]


def test_an_engine_of_ones_own_is_made_with_the_learners_model() -> None:
    engine = make_engine(RolloutConfig(engine=f"{__name__}:own_engine"), MODULE, TOKENIZER)  # type: ignore[arg-type]
    assert isinstance(engine, LocalEngine)
    assert engine.module is MODULE


def fails(trajectory: Trajectory) -> float:
    return 1 / 0


def infinite(trajectory: Trajectory) -> float:
    return float("inf")


def two(trajectory: Trajectory) -> float:
    return 2.0


def test_a_reward_of_ones_own_is_the_return_of_the_episode(tmp_path: Path) -> None:
    run = agentrl.train(None, {**TINY, "env.reward": f"{__name__}:two"}, run_dir=tmp_path / "run")
    assert run.batches[0]["rollout/reward"] == 2.0
    assert run.batches[0]["batch/mixed_groups"] == 0


@pytest.mark.parametrize(
    ("name", "message"), [("fails", "raised ZeroDivisionError"), ("infinite", "must give a finite number, got inf")]
)
def test_a_reward_that_fails_ends_the_run_with_its_name(name: str, message: str) -> None:
    turn = Turn(0, 0, 1, "red", "", 1.0)
    episode = Trajectory(Task("toy", "train", 0), 0, [], [turn], "", Status.TERMINATED)
    with pytest.raises(RunError, match=message):
        OwnRewards(f"{__name__}:{name}").give(episode)
    with pytest.raises(UserError, match=r"env\.reward"):
        OwnRewards(f"{__name__}:{name}s")


def test_load_config_takes_names_paths_configs_and_mappings(tmp_path: Path) -> None:
    shipped = load_config("quickstart", {"train.steps": 3})
    assert (shipped.env.id, shipped.train.steps) == ("agentrl/ALFWorld-v0", 3)
    again = load_config(shipped, {"train.seed": 4})
    assert (again.train.steps, again.train.seed) == (3, 4)
    (tmp_path / "quickstart.toml").write_text("[train]\nsteps = 1\n")
    assert load_config(str(tmp_path / "quickstart.toml")).train.steps == 1
