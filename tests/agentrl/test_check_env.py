"""The environment checker: a good environment passes, each way of breaking the contract is named."""

import itertools
import json
import time
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from agentrl import check_env
from agentrl.command.guard import main_guard
from agentrl.environment.probe import settled_bytes
from agentrl.envs.spaces import FreeText
from tests.toy import ColourEnv

_count = itertools.count()
_kept: list[bytes] = []


class Broken(gymnasium.Env[str, str]):
    """Breaks the contract in the way that `how` says."""

    observation_space = action_space = FreeText()

    def __init__(self, how: str = "", split: str = "train") -> None:
        self.how, self.split, self.turn = how, split, 0
        if how == "tasks" or how == "splits":
            self.num_tasks = 40

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.turn = 0
        if self.how == "leak":
            _kept.append(b"x" * (1 << 20))
        number = next(_count) if self.how in ("random", "tasks") else int(self.np_random.integers(100))
        if self.how == "splits":
            number = (options or {}).get("task", 0)
        info: dict[str, Any] = {"task": f"{self.split if self.how != 'splits' else ''}{number}"}
        if self.how == "info":
            info["success"] = "yes"
        if self.how == "score":
            info["score"] = 7.0
        if self.how == "lambda":
            info["extra"] = lambda: None
        return f"Task {number}.", info

    def step(self, action: str) -> Any:
        self.turn += 1
        if self.how == "slow":
            time.sleep(30)
        if self.how == "eval":
            action.encode()
        reward = float("nan") if self.how == "infinite" else 1.0
        if self.how == "old":
            return "obs", 1.0, True, {}
        if self.how == "flags":
            return "obs", 1.0, 1, False, {}
        if self.how == "array":
            return 3, 1.0, True, False, {}
        return "obs", reward, self.how != "endless", False, {}


def run(env: str, tmp_path: Path, *words: str) -> tuple[int, dict[str, tuple[str, str]]]:
    path = tmp_path / "findings.json"
    code = main_guard(lambda: check_env.main([env, "--json", str(path), "--episodes", "40", *words]))
    findings = json.loads(path.read_text()) if path.exists() else []
    return code, {finding["check"]: (finding["verdict"], finding["detail"]) for finding in findings}


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting a process takes longer than all other checks together; one test does it."""
    fine = check_env.Finding("worker process", "ok", "")
    monkeypatch.setattr(check_env, "play_elsewhere", lambda spec, timeout_s: "")
    monkeypatch.setattr(check_env, "check_other_process", lambda prober, there: fine)


@pytest.mark.slow
def test_a_good_environment_passes_every_check_on_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, findings = run("tests.toy:ColourEnv", tmp_path, "--env.eval_split", "test")
    assert code == 0
    assert {verdict for verdict, _ in findings.values()} == {"ok"}, findings
    assert "64 in train, 64 in test" in findings["tasks"][1]
    assert "expert_action" in findings["info"][1]
    assert "40 episodes: terminated 100%" in findings["how episodes end"][1]
    assert "longest of 20 episodes" in findings["rendering"][1]
    assert len(capsys.readouterr().out.splitlines()) < 40


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "check", "message"),
    [
        ("random", "determinism", "seed 0 played again differs"),
        ("eval", "arbitrary text", "step(a lone surrogate) raised UnicodeEncodeError"),
        ("infinite", "contract", "a reward must be a finite number, got nan"),
        ("old", "contract", "step must return (observation, reward, terminated, truncated, info)"),
        ("flags", "contract", "terminated must be a bool, got 1"),
        ("array", "contract", "observations must be text (str), the environment returned int: 3"),
        ("slow", "contract", "did not answer a step within 0.2 s"),
        ("leak", "memory", "something is kept per episode"),
        ("tasks", "tasks", "gives another task each time"),
        ("splits", "tasks", "shares tasks with train"),
        ("info", "info", "info['success'] must be bool, got str: 'yes'"),
        ("score", "info", 'info["score"] must be between 0 and 1, got 7.0'),
    ],
)
def test_a_broken_environment_fails_the_check_that_names_it(
    tmp_path: Path, no_process: None, how: str, check: str, message: str
) -> None:
    words = ["--env.options.how", how, "--env.eval_split", "test", "--rollout.step_timeout_s", "0.2"]
    code, findings = run(f"{__name__}:Broken", tmp_path, *words)
    _kept.clear()
    assert code == 1
    verdict, detail = findings[check]
    assert verdict == "FAIL"
    assert message in detail


def test_a_leak_is_seen_where_malloc_has_room_for_it() -> None:
    """Memory that was used and freed before must not hide what is kept now."""
    crowd = [b"x" * 200_000 for _ in range(400)]
    wall = [b"x" * 200_000]  # keeps the heap from shrinking
    crowd.clear()
    before = settled_bytes()
    crowd.extend(b"x" * 200_000 for _ in range(100))
    assert settled_bytes() - before > 15_000_000
    assert wall


@pytest.mark.slow
def test_an_environment_that_never_ends_is_noted(tmp_path: Path, no_process: None) -> None:
    code, findings = run(f"{__name__}:Broken", tmp_path, "--env.options.how", "endless", "--max-steps", "3")
    assert code == 0
    assert findings["how episodes end"] == ("note", "40 episodes: still going after 3 steps 100%")


@pytest.mark.slow
def test_a_check_that_ran_out_of_time_says_how_much_it_saw(
    tmp_path: Path, no_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, findings = run("tests.toy:ColourEnv", tmp_path, "--env.eval_split", "test", "--seconds", "0")
    assert code == 0
    assert findings["how episodes end"] == (
        "note", "1 episodes: terminated 100%; 40 were asked for, but 0 s were over (--seconds)",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "how", "message"),
    [("reset", "exit", "died during a reset (exit code 7)"), ("step", "exit", "died during a step (exit code 7)"),
     ("step", "hang", "did not answer a step within 5 s")],
)  # fmt: skip
def test_an_environment_that_takes_its_process_along_is_told_and_leaves_the_page(
    tmp_path: Path, where: str, how: str, message: str
) -> None:
    # A light module: what a worker process imports for its first environment counts as that environment's time.
    words = ["--env.options", f'{{ faults = {{ {where} = "{how}" }} }}', "--rollout.step_timeout_s", "5"]
    code, findings = run("tests.toy:ColourEnv", tmp_path, *words)
    assert code == 1
    assert message in findings["worker process"][1]


class Homeless(ColourEnv):
    """Cannot be made in a process of its own."""

    def __init__(self, split: str = "train") -> None:
        import multiprocessing

        if multiprocessing.parent_process() is not None:
            raise OSError("only one process may use the device")
        super().__init__(split)


@pytest.mark.slow
def test_an_environment_that_no_worker_can_make_fails(tmp_path: Path) -> None:
    code, findings = run(f"{__name__}:Homeless", tmp_path)
    assert code == 1
    assert "only one process may use the device" in findings["worker process"][1]


@pytest.mark.parametrize(
    ("words", "message"),
    [(["tests.toy:Nothing"], "has no 'Nothing'"), (["tests.toy:ColourEnv", "--episodes", "0"], "must be >= 1")],
)
def test_bad_input_gives_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_guard(lambda: check_env.main(words)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_template_that_rewrites_turns_is_found() -> None:
    tokenizer = check_env.build_tokenizer(["Task 1. obs"])
    tokenizer.chat_template = "{% for m in messages[-1:] %}{{ m['content'] }}{% endfor %}"
    episode = check_env.Episode(["Task 1.", "obs"], ["go"], [1.0], [{}, {}], "terminated")
    finding = check_env.check_rendering([episode], tokenizer, "mine")
    assert finding.verdict == "FAIL"
    assert "rewrites earlier turns" in finding.detail


@pytest.mark.slow
def test_every_built_in_environment_that_needs_no_download_passes(tmp_path: Path) -> None:
    words = {
        "agentrl/ALFWorld-v0": ["--env.options", '{ data = "generated", room_size = "small" }'],
        "agentrl/SearchQA-v0": ["--env.options", '{ questions = "compact" }', "--env.eval_split", "test"],
    }
    for env, more in words.items():
        code, findings = run(env, tmp_path, *more, "--episodes", "1000", "--seconds", "120")
        assert code == 0, findings
