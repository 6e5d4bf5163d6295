"""agentrl/ReasoningGym-v0: every task by name, clamped scores, scorers that cannot hurt."""

import json
import pickle
import subprocess
import sys
import time

import gymnasium
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("reasoning_gym")

import agentrl.envs  # noqa: F401 - registers the ids
from agentrl.common.extras import MissingExtraError
from agentrl.envs.env_errors import DataError
from agentrl.envs.math import reasoning_gym_worker as worker
from agentrl.envs.math.reasoning_gym_env import ReasoningGymEnv, task_names

# Made of sets: their problems would depend on the hash seed of the process.
UNORDERED = ["isomorphic_strings", "polynomial_multiplication", "ransom_note"]


def make(name: str, **options: object) -> ReasoningGymEnv:
    return ReasoningGymEnv(name=name, expert="default", **options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_env_when_answered_with_the_reference_then_scores_one():
    env = make("basic_arithmetic")
    question, info = env.reset(options={"task": 3})
    assert question
    assert info["category"] == "basic_arithmetic"
    assert info["metadata"] == {"benchmark": "reasoning-gym", "subject": "arithmetic"}
    observation, reward, terminated, truncated, after = env.step(info["expert_action"])
    assert (observation, reward, terminated, truncated) == ("", 1.0, True, False)
    assert (after["success"], after["score"], after["reason"]) == (True, 1.0, "")
    assert "expert_action" not in ReasoningGymEnv(name="basic_arithmetic").reset(seed=0)[1]


@pytest.mark.parametrize(
    "name", ["prime_factorization", "game_of_life_halting", "propositional_logic", "power_function"]
)
def test_env_when_answered_with_junk_then_scores_zero_whatever_the_scorer_says(name: str):
    env = ReasoningGymEnv(name=name)
    for task in range(5):
        env.reset(options={"task": task})
        _, reward, _, _, info = env.step("junk")
        assert reward == 0.0
        assert info["reason"]


def test_env_when_junk_scores_fully_but_the_answer_is_the_reference_then_counts():
    env = make("game_of_life_halting")
    junk = []
    for task in range(8):
        _, info = env.reset(options={"task": task})
        assert env._problem is not None
        junk.append(worker.junk_score(("game_of_life_halting", 0, "{}"), env._problem["index"]))
        assert env.step(info["expert_action"])[1] == 1.0
    assert 1.0 in junk


def test_env_when_a_scorer_raises_then_scores_zero_with_the_reason():
    env = ReasoningGymEnv(name="prime_factorization")
    env.reset(options={"task": 0})
    assert env.step("two times three")[4]["reason"].startswith("ValueError")


def test_env_when_an_answer_hangs_the_scorer_then_scores_zero_in_time():
    env = make("countdown")
    _, before = env.reset(options={"task": 0})
    started = time.monotonic()
    _, reward, _, _, info = env.step("9**9**9**9")
    assert reward == 0.0
    assert info["reason"].startswith("timeout")
    assert time.monotonic() - started < 8  # 2 seconds where the machine is free
    assert env.step(before["expert_action"])[1] == 1.0


def test_env_when_an_answer_is_code_then_it_is_not_run(tmp_path):
    env = ReasoningGymEnv(name="string_insertion")
    env.reset(options={"task": 0})
    assert env.step(f"[open({str(tmp_path / 'f')!r}, 'w')]")[1] == 0.0
    env = ReasoningGymEnv(name="countdown")
    env.reset(options={"task": 0})
    assert env.step(f"open({str(tmp_path / 'f')!r}, 'w')")[1] == 0.0
    assert not list(tmp_path.iterdir())


@settings(max_examples=40, deadline=None)
@given(st.text())
def test_env_when_given_any_text_then_never_raises(text: str):
    env = ReasoningGymEnv(name="chain_sum")
    env.reset(options={"task": 0})
    _, reward, terminated, _, info = env.step(text)
    assert 0.0 <= reward <= 1.0
    assert terminated
    assert info["is_valid_action"] == bool(text.strip())


def test_env_when_the_text_is_huge_then_is_not_read():
    env = ReasoningGymEnv(name="chain_sum")
    env.reset(seed=1)
    assert env.step("1" * 1_000_000)[4]["reason"] == "answer too long"


def test_answer_format_when_tags_then_only_the_tagged_answer_counts():
    env = make("gcd", answer_format="tags")
    _, info = env.reset(options={"task": 1})
    assert env.step(f"<think>17</think> {info['expert_action']}")[1] == 1.0
    assert env.step(info["expert_action"].removeprefix("<answer>"))[4]["reason"] == "no answer"


@pytest.mark.parametrize("name", ["coin_flip", "gcd"])
def test_splits_when_compared_then_share_no_question(name: str):
    questions = [
        {ReasoningGymEnv(split, name=name).reset(options={"task": i})[0] for i in range(60)}
        for split in ("train", "test")
    ]
    assert not questions[0] & questions[1]


@pytest.mark.slow
def test_env_when_in_another_process_with_another_hash_seed_then_puts_the_same_problem():
    script = (
        "from agentrl.envs.math.reasoning_gym_env import ReasoningGymEnv\nimport json\n"
        f"print(json.dumps([ReasoningGymEnv(name=n).reset(options={{'task': 2}})[0] for n in {UNORDERED!r}]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7", "PATH": ""},
    )
    assert json.loads(run.stdout) == [ReasoningGymEnv(name=n).reset(options={"task": 2})[0] for n in UNORDERED]


def test_env_when_made_by_id_and_pickled_then_is_the_same():
    env = gymnasium.make("agentrl/ReasoningGym-v0", name="lcm", split="test", num_problems=7)
    assert env.unwrapped.num_tasks == 7  # type: ignore[attr-defined]
    copy = pickle.loads(pickle.dumps(env.unwrapped))
    assert copy.reset(seed=5)[0] == env.reset(seed=5)[0]


def test_composite_when_given_tasks_then_mixes_them():
    env = ReasoningGymEnv(name="composite", config={"datasets": [{"name": "gcd"}, {"name": "lcm", "weight": 2}]})
    questions = "".join(env.reset(options={"task": i})[0] for i in range(10))
    assert "GCD" in questions
    assert "LCM" in questions


def test_env_when_name_or_config_is_wrong_then_says_what_is_right(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError, match="Did you mean chain_sum"):
        ReasoningGymEnv(name="chain_sums")
    with pytest.raises(DataError, match="no_such_option"):
        ReasoningGymEnv(name="chain_sum", config={"no_such_option": 1})
    with pytest.raises(ValueError, match="split must be one of train, test"):
        ReasoningGymEnv("valid")
    with pytest.raises(ValueError, match="num_problems"):
        ReasoningGymEnv(num_problems=0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[math\]"):
        ReasoningGymEnv()


@pytest.mark.slow
def test_every_task_when_played_then_reference_scores_one_and_junk_zero():
    names = task_names()
    assert len(names) >= 100
    for name in names:
        if name == "composite":
            continue
        env = make(name)
        question, info = env.reset(options={"task": 0})
        assert question
        assert env.step("\x00 junk 🙂")[1] == 0.0, name
        if "expert_action" in info:  # puzzles with many solutions come without one
            assert env.step(info["expert_action"])[1] == 1.0, name
