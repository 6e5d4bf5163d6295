"""An environment of one's own: one file, one command, no CONFIG, and environments from elsewhere."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.envs.registration import register, registry

from agentrl import train
from agentrl.cli import main_guard
from agentrl.config import load_config
from agentrl.errors import UserError
from agentrl.model import build_tokenizer
from agentrl.rollout.chat import Chat
from agentrl.rollout.play import Rollout
from agentrl.rollout.workers import EnvPool, EnvSpec, count_tasks
from agentrl.tracking import read_metrics
from agentrl.types import Task
from envs.spaces import FreeText
from tests.toy import NoExpertEnv

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "tests" / "examples" / "my_env.py"
COMMAND = ["-m", "agentrl.train", "--env.id", "my_env:MyEnv", "--run-dir", "run"]


def start(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The README's command in a folder that holds nothing but the example."""
    (folder / "my_env.py").write_text(EXAMPLE.read_text())
    command = [sys.executable, *COMMAND, *words]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )


def small(*words: str) -> list[str]:
    return [
        "--train.steps",
        "1",
        "--train.groups_per_step",
        "2",
        "--train.group_size",
        "2",
        "--eval.tasks",
        "2",
        *words,
    ]


def test_the_readme_example_has_twenty_lines_and_is_the_file_that_is_tested() -> None:
    code = [line for line in EXAMPLE.read_text().splitlines() if line.strip()]
    assert len(code) <= 20
    readme = (ROOT / "README.md").read_text()
    if "class MyEnv" in readme:
        assert EXAMPLE.read_text() in readme


def test_an_environment_in_one_file_trains_without_a_config_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_env.py").write_text(EXAMPLE.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    words = [*COMMAND[2:], *small("--warmstart.episodes", "5", "--rollout.env_workers", "0")]
    assert main_guard(lambda: train.main(words)) == 0
    assert "warm start skipped: my_env:MyEnv offers no expert" in capsys.readouterr().out
    assert [record["kind"] for record in read_metrics(tmp_path / "run")] == ["eval", "train", "eval"]


@pytest.mark.slow
def test_the_readme_command_learns_the_environment_with_all_defaults(tmp_path: Path) -> None:
    done = start(tmp_path, "--train.steps", "70")
    assert done.returncode == 0, done.stderr
    rates = [record["eval/success"] for record in read_metrics(tmp_path / "run") if record["kind"] == "eval"]
    assert rates[0] < 0.3
    assert rates[-1] >= 0.9


class PlainEnv(gymnasium.Env[str, str]):
    """What people write: no `options`, no spaces' limits, an expert named in `info`."""

    observation_space = action_space = FreeText()

    def reset(self, *, seed: int | None = None) -> tuple[str, dict[str, Any]]:  # type: ignore[override]
        super().reset(seed=seed)
        return "yes or no?", {"expert_action": "yes"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "thanks", float(action == "yes"), True, False, {}


def test_an_environment_that_knows_no_options_is_played() -> None:
    pool = EnvPool(EnvSpec(f"{__name__}:PlainEnv", "train"))
    observation, _ = asyncio.run(pool.acquire().reset(Task("", "train", seed=3)))
    assert observation == "yes or no?"


def test_an_expert_in_info_is_enough_for_a_warm_start() -> None:
    assert EnvSpec(f"{__name__}:PlainEnv", "train").offers_expert()
    assert not EnvSpec("tests.toy:NoExpertEnv", "train").offers_expert()


class RegisteredEnv(NoExpertEnv):
    """One that Gymnasium makes without a warning."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012


@pytest.fixture
def registered() -> Any:
    register("elsewhere/Colour-v3", entry_point=f"{__name__}:RegisteredEnv", max_episode_steps=7)
    yield
    del registry["elsewhere/Colour-v3"]


@pytest.mark.parametrize("env_id", ["elsewhere/Colour-v3", "tests.toy:elsewhere/Colour-v3"])
def test_a_registered_environment_is_made_by_gymnasium(registered: None, env_id: str) -> None:
    env = EnvSpec(env_id, "train").make()
    assert env.spec is not None
    assert env.spec.max_episode_steps == 7
    assert env.reset(seed=1)[0].startswith("You see")
    assert count_tasks(EnvSpec(env_id, "train")) == 64


def test_an_environment_of_numbers_is_refused_before_the_run_with_the_remedy() -> None:
    with pytest.raises(
        UserError, match=r"action_space of FrozenLake-v1|observation_space of FrozenLake-v1 is Discrete"
    ):
        EnvSpec("FrozenLake-v1", "train").make()


@pytest.mark.parametrize(
    ("env_id", "message"),
    [("no_such_module:MyEnv", "cannot import 'no_such_module'"), ("no_such_module:My-v0", "cannot import"),
     ("tests.toy:My-v0", "has no 'My-v0'"), ("FrozenLake-v9", "no environment 'FrozenLake-v9'")],
)  # fmt: skip
def test_an_unknown_environment_is_named(env_id: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        EnvSpec(env_id, "train").make()


class ToolEnv(gymnasium.Env[str, str]):
    """Add two numbers with a tool."""

    observation_space = action_space = FreeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        return "What is 2 + 3?", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "Thank you.", float("5" in action), True, False, {}

    def add(self, a: int, b: int) -> int:
        """Add two numbers."""
        return a + b


def test_tools_reach_the_chat_template_and_their_results_the_row() -> None:
    answers = iter(['<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>', "It is 5."])
    tokenizer = build_tokenizer(())
    tokenizer.chat_template = (
        "{% if tools %}{% for tool in tools %}[{{ tool['function']['name'] }}: {{ tool['function']['description'] }}]"
        "{% endfor %}{% endif %}" + tokenizer.chat_template
    )
    config = load_config(None, ["--rollout.max_turns", "3"]).rollout
    spec = EnvSpec(f"{__name__}:ToolEnv", "train", format="envs.tools:ToolCalls")
    chat = Chat(tokenizer, stop_ids=[tokenizer.eos_token_id])
    rollout = Rollout(None, chat, EnvPool(spec), config, seed=0, policy=lambda info, random: (next(answers), True))
    trajectory = rollout.play([Task(spec.id, "train", 0)], group_size=1)[0].trajectories[0]
    assert trajectory.success
    text = tokenizer.decode(trajectory.rows[0].ids.tolist())
    assert text.startswith("[add: Add two numbers.]<|user|>What is 2 + 3?<|assistant|><tool_call>")
    assert "<|user|><tool_response>\n5\n</tool_response><|assistant|>It is 5." in text
