"""An environment of one's own: one file, one command, no CONFIG, and environments from elsewhere."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import register, registry

from agentrl import train
from agentrl.command.guard import main_guard
from agentrl.config.read import load_config
from agentrl.environment.pool import EnvPool
from agentrl.environment.spec import EnvironmentSpec, count_tasks
from agentrl.envs.spaces import FreeText
from agentrl.errors import InfrastructureError, UserError
from agentrl.model.tiny import build_tokenizer
from agentrl.rollout.chat import Chat
from agentrl.rollout.rollout import Rollout
from agentrl.runs.folder import read_metrics
from agentrl.types import Task
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
    pool = EnvPool(EnvironmentSpec(f"{__name__}:PlainEnv", "train"))
    observation, _ = asyncio.run(pool.acquire().reset(Task("", "train", seed=3)))
    assert observation == "yes or no?"


def test_an_expert_in_info_is_enough_for_a_warm_start() -> None:
    assert EnvironmentSpec(f"{__name__}:PlainEnv", "train").offers_expert()
    assert not EnvironmentSpec("tests.toy:NoExpertEnv", "train").offers_expert()


def test_an_expert_that_these_options_do_not_have_is_no_expert(tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text('{"question": "2 + 2?", "answer": "4"}\n')
    options = {"data": str(tmp_path / "questions.jsonl")}
    assert EnvironmentSpec("agentrl/Math-v0", "train").offers_expert()
    spec = EnvironmentSpec("agentrl/Math-v0", "train", options, expert=True)
    assert not spec.offers_expert()
    assert "2 + 2" in spec.make().reset(seed=0)[0]
    with pytest.raises(ValueError, match="only the curriculum"):
        EnvironmentSpec("agentrl/Math-v0", "train", {**options, "expert": "careful"}).make()


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
    env = EnvironmentSpec(env_id, "train").make()
    assert env.spec is not None
    assert env.spec.max_episode_steps == 7
    assert env.reset(seed=1)[0].startswith("You see")
    assert count_tasks(EnvironmentSpec(env_id, "train")) == 64


def test_an_environment_of_numbers_is_refused_before_the_run_with_the_remedy() -> None:
    with pytest.raises(
        UserError, match=r"action_space of FrozenLake-v1|observation_space of FrozenLake-v1 is Discrete"
    ):
        EnvironmentSpec("FrozenLake-v1", "train").make()


@pytest.mark.parametrize(
    ("env_id", "message"),
    [("no_such_module:MyEnv", "cannot import 'no_such_module'"), ("no_such_module:My-v0", "cannot import"),
     ("tests.toy:My-v0", "has no 'My-v0'"), ("FrozenLake-v9", "no environment 'FrozenLake-v9'")],
)  # fmt: skip
def test_an_unknown_environment_is_named(env_id: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        EnvironmentSpec(env_id, "train").make()


class OddEnv(NoExpertEnv):
    """Answers with something else than Gymnasium's contract, as `how` says."""

    def __init__(self, how: str = "", split: str = "train") -> None:
        super().__init__(split)
        self.how = how

    def reset(self, **keywords: Any) -> Any:
        observation, info = super().reset(**keywords)
        return {"bare": "hi", "bytes": (b"hi", info), "info": (observation, 3)}.get(self.how, (observation, info))

    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        info |= {"score": {"score": "high"}, "metadata": {"metadata": 3}}.get(self.how, {})
        if self.how == "old":
            return observation, reward, terminated, info
        rewards: dict[str, Any] = {"none": None, "text": "1.0", "nan": float("nan"), "numpy": np.float32(1)}
        return observation, rewards.get(self.how, reward), terminated, truncated, info


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("bare", "reset must return (observation, info), the environment returned 'hi'"),
        ("bytes", "observations must be text (str), the environment returned bytes"),
        ("info", "info must be a dict, the environment returned int: 3"),
        ("old", "step must return (observation, reward, terminated, truncated, info)"),
        ("none", "a reward must be a finite number, got None"),
        ("text", "a reward must be a finite number, got '1.0'"),
        ("nan", "a reward must be a finite number, got nan"),
        ("score", """info["score"] must be a finite number, got 'high'"""),
        ("metadata", 'info["metadata"] must be a dict, got 3'),
    ],
)
def test_an_answer_that_breaks_the_contract_is_named_and_no_crash(how: str, message: str) -> None:
    handle = EnvPool(EnvironmentSpec(f"{__name__}:OddEnv", "train", {"how": how})).acquire()

    async def play() -> None:
        await handle.reset(Task("", "train", seed=0))
        await handle.step("red")

    with pytest.raises(InfrastructureError, match=re.escape(message)):
        asyncio.run(play())


def test_numbers_of_numpy_are_rewards() -> None:
    handle = EnvPool(EnvironmentSpec(f"{__name__}:OddEnv", "train", {"how": "numpy"})).acquire()
    asyncio.run(handle.reset(Task("", "train", seed=0)))
    _, reward, *_ = asyncio.run(handle.step("red"))
    assert type(reward) is float


@pytest.mark.parametrize(
    ("text", "env_id", "message"),
    [
        ("def f(:", "mine:A", "cannot import 'mine' for 'mine:A': SyntaxError"),
        ("1 / 0", "mine:A", "ZeroDivisionError: division by zero (mine.py:1)"),
        ("import no_such_thing", "mine:A", "No module named 'no_such_thing'"),
        ("", "mine.py:A", "A module is named without its ending: mine:A"),
        ("A = 3", "mine:A", "mine:A is a int; an environment's class is needed"),
        ("class A: pass", "mine:A", "mine:A makes a A, which is no gymnasium.Env"),
        (
            "import gymnasium\nclass A(gymnasium.Env):\n  def __init__(self, path): pass",
            "mine:A",
            "mine:A needs env.options.path: its constructor has no default for it",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, env_id: str, message: str
) -> None:
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    with pytest.raises(UserError) as caught:
        EnvironmentSpec(env_id, "train").make()
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


LIGHT = """
import os, sys
import gymnasium

class Light(gymnasium.Env):
    def reset(self, *, seed=None, options=None):
        return f"torch is loaded: {'torch' in sys.modules}", {}
    def step(self, action):
        return "", 1.0, True, False, {}

class Exits(Light):
    def reset(self, *, seed=None, options=None):
        os._exit(7)

class Needs(Light):
    def __init__(self, path):
        self.path = path
"""


@pytest.mark.slow
def test_a_worker_process_loads_the_environment_alone_and_tells_what_is_wrong_with_it(tmp_path: Path) -> None:
    """The command runs in a process whose main module has torch loaded, as `python -m agentrl.train` has."""
    (tmp_path / "light.py").write_text(LIGHT)
    script = """
import sys
from agentrl.command.guard import main_guard
from agentrl.environment.spec import EnvironmentSpec
from agentrl.environment.pool import EnvPool
from agentrl.types import Task
import asyncio, importlib.util
main = sys.modules["__main__"]
main.__spec__ = importlib.util.find_spec("agentrl.train")
main.__file__ = main.__spec__.origin
pool = EnvPool(EnvironmentSpec("light:Light", "train"), num_workers=1)
print(asyncio.run(pool.acquire().reset(Task("", "train", 0)))[0])
pool.close()
for name in ("Exits", "Needs"):
    print(main_guard(lambda: EnvPool(EnvironmentSpec(f"light:{name}", "train"), num_workers=1).capabilities() and 0))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["torch is loaded: False", "3", "2"], done.stderr
    assert "light:Exits cannot be played: the worker process of light:Exits died" in done.stderr
    assert "light:Needs needs env.options.path" in done.stderr


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
    spec = EnvironmentSpec(f"{__name__}:ToolEnv", "train", format="agentrl.envs.tools:ToolCalls")
    chat = Chat(tokenizer, stop_ids=[tokenizer.eos_token_id])
    rollout = Rollout(None, chat, EnvPool(spec), config, seed=0, policy=lambda info, random: (next(answers), True))
    trajectory = rollout.play([Task(spec.id, "train", 0)], group_size=1).groups[0].trajectories[0]
    assert trajectory.success
    text = tokenizer.decode(trajectory.rows[0].ids.tolist())
    assert text.startswith("[add: Add two numbers.]<|user|>What is 2 + 3?<|assistant|><tool_call>")
    assert "<|user|><tool_response>\n5\n</tool_response><|assistant|>It is 5." in text
