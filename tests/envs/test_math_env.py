"""agentrl/Math-v0: the Gymnasium contract, splits, attempts, templates."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

import agentrl.envs  # noqa: F401 - registers the ids
from agentrl.envs.env_errors import DataError
from agentrl.envs.math.env import MathEnv
from agentrl.envs.math.protocols import Dapo, PromptTemplate, QwenSuffix, QwenSystem, VerlBoxed, VerlHashes

TEMPLATES = [QwenSystem, QwenSuffix, VerlBoxed, VerlHashes, Dapo]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two training problems of which one stands in the benchmark, a repeat, and a benchmark of three."""
    train = [
        {"problem": "What is $1+1$?", "answer": "2", "difficulty": 1.0, "type": "Algebra"},
        {"problem": "What is $1+1$?", "answer": "2", "difficulty": 1.0, "type": "Algebra"},
        {"problem": "Solve the famous riddle.", "answer": "4", "difficulty": 5.0, "type": "Logic"},
    ]
    test = [
        {"problem": "Solve the FAMOUS riddle", "answer": "4", "subject": "Logic", "level": 5, "unique_id": "a"},
        {"problem": "Half of one?", "answer": r"\frac{1}{2}", "subject": "Algebra", "level": 1, "unique_id": "b"},
        {"problem": "Roots of $x^2=4$?", "answer": "-2, 2", "subject": "Algebra", "level": 2, "unique_id": "c"},
    ]
    (tmp_path / "math_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train))
    (tmp_path / "math500.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test))
    return tmp_path


def make(**options: object) -> MathEnv:
    return MathEnv(**options)  # type: ignore[arg-type]


def test_env_when_checked_by_gymnasium_then_keeps_the_contract():
    check_env(gymnasium.make("agentrl/Math-v0", split="train").unwrapped, skip_render_check=True)


def test_env_when_playing_a_benchmark_then_gives_its_own_text_and_describes_the_problem(folder: Path):
    pytest.importorskip("math_verify")
    env = gymnasium.make("agentrl/Math-v0", split="test", data="math500", data_dir=folder)
    problem, info = env.reset(options={"task": 1})
    assert problem == "Half of one?"
    guesses = info.pop("random_actions")
    assert len(guesses) == 16
    assert all(guess.startswith(r"\boxed{") for guess in guesses)
    assert info == {
        "category": "Algebra",
        "metadata": {"benchmark": "math500", "subject": "Algebra", "level": 1},
        "task": "math500/b",
    }
    observation, reward, terminated, truncated, info = env.step(r"It is \boxed{0.5}.")
    assert (observation, reward, terminated, truncated) == ("", 1.0, True, False)
    assert (info["success"], info["score"], info["answer"], info["is_valid_action"]) == (True, 1.0, "1/2", True)
    assert info["category"] == "Algebra"


def test_env_when_a_response_has_no_box_then_scores_zero_and_says_so(folder: Path):
    pytest.importorskip("math_verify")
    env = make(split="test", data="math500", data_dir=folder)
    env.reset(options={"task": 1})
    _, reward, terminated, _, info = env.step("The answer is 0.5.")
    assert (reward, terminated, info["answer"], info["is_valid_action"]) == (0.0, True, None, False)
    assert info["verdict"] == "no_answer"


def test_env_when_several_benchmarks_are_mixed_then_the_category_is_the_benchmark(folder: Path):
    env = make(split="test", data=["math500", "curriculum"], data_dir=folder, use_library=False)
    assert env.num_tasks == 3 + 500
    assert env.reset(options={"task": 0})[1]["category"] == "math500"
    assert env.reset(options={"task": 3})[1]["category"] == "curriculum"


def test_training_split_when_it_overlaps_a_benchmark_then_leaves_the_exact_repeats_out(
    folder: Path, caplog: pytest.LogCaptureFixture
):
    env = make(split="train", data="math", data_dir=folder, use_library=False)
    assert "1 problems of math stand in a benchmark" in caplog.text
    assert [problem.problem for problem in env.problems] == ["What is $1+1$?"]
    assert env.report == {"in a benchmark": 1, "repeated": 1}
    env = make(split="train", data="math", data_dir=folder, use_library=False, exclude_overlap=False)
    assert len(env.problems) == 2


def test_training_file_of_ones_own_when_split_then_train_and_test_are_disjoint_and_whole(tmp_path: Path):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"question": f"q {i}", "answer": i}) + "\n" for i in range(300)))
    train = {p.problem for p in make(split="train", data=str(path), use_library=False).problems}
    test = {p.problem for p in make(split="test", data=path, use_library=False).problems}
    assert not train & test
    assert len(train | test) == 300
    assert 10 <= len(test) <= 60
    assert make(split="train", data=path, eval_data="curriculum", use_library=False).num_tasks == 300


def test_levels_when_given_then_only_those_are_kept(folder: Path):
    env = make(split="test", data="math500", data_dir=folder, levels=[1, 2], use_library=False)
    assert [problem.id for problem in env.problems] == ["b", "c"]
    with pytest.raises(DataError, match="No problem is left"):
        make(split="test", data="math500", data_dir=folder, levels=[4], use_library=False)


def test_env_when_several_attempts_are_allowed_then_gives_feedback_until_one_is_right(folder: Path):
    pytest.importorskip("math_verify")
    env = make(split="test", data="math500", data_dir=folder, max_attempts=3)
    env.reset(options={"task": 2})
    observation, reward, terminated, _, info = env.step("hm")
    assert observation == r"No answer was found. Try again (attempts left: 2). Put your final answer within \boxed{}."
    assert (reward, terminated, info["success"]) == (0.0, False, False)
    observation, reward, terminated, _, _ = env.step(r"\boxed{2}")
    assert observation.startswith("That is not correct. Try again (attempts left: 1).")
    assert (reward, terminated) == (0.0, False)
    assert env.step(r"\boxed{2} and \boxed{-2}")[1:3] == (1.0, True)
    env.reset(options={"task": 2})
    assert [env.step("no")[2] for _ in range(3)] == [False, False, True]


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.text(), st.text().map(lambda text: rf"\boxed{{{text}}}"), st.just("x" * 1_000_000)))
def test_env_when_given_any_text_then_never_raises(text: str):
    env = make(split="test", num_problems=10)
    env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(text)
    assert observation in env.observation_space
    assert (terminated, truncated, reward) in [(True, False, 0.0), (True, False, 1.0)]
    assert info["success"] == (reward == 1.0)


def test_env_when_seeded_or_pickled_or_in_another_process_then_plays_the_same_episode():
    script = (
        "import gymnasium, envs, json\n"
        "env = gymnasium.make('agentrl/Math-v0', expert='default')\n"
        "print(json.dumps([env.reset(seed=s) for s in range(20)]))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    env = gymnasium.make("agentrl/Math-v0", expert="default")
    here = [list(env.reset(seed=seed)) for seed in range(20)]
    assert json.loads(run.stdout) == here
    copy = pickle.loads(pickle.dumps(make(expert="default")))
    assert [list(copy.reset(seed=seed)) for seed in range(20)] == here


def test_env_when_made_many_times_then_problems_are_shared():
    assert make().problems is make().problems


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "valid"}, "split must be one of train, test"),
        ({"answer_format": "box"}, "answer_format"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"expert": "teacher"}, "default, careful"),
        ({"data": "math500", "expert": "default"}, "only the curriculum"),
        ({"levels": [9]}, "levels of the curriculum are 1 to 5"),
        ({"data": "nothing.jsonl"}, "There is no file"),
    ],
)
def test_env_when_an_option_is_wrong_then_says_what_is_right(options: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_env_when_a_task_is_out_of_range_or_not_reset_then_raises():
    env = make(split="test", num_problems=10)
    with pytest.raises(ValueError, match="0 to 9"):
        env.reset(options={"task": 10})
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("5")


@pytest.mark.parametrize("template", TEMPLATES)
def test_template_when_wrapped_around_then_stands_around_the_problem_and_in_the_metadata(
    template: type[PromptTemplate],
):
    env = template(make(split="test", num_problems=10, answer_format=template.answer_format))
    text, info = env.reset(options={"task": 0})
    problem = env.unwrapped.problems[0].problem  # type: ignore[attr-defined]
    assert text == template.prefix + problem + template.suffix
    assert info.get("system") == template.system
    assert info["metadata"]["template"] == template.__name__
    instruction = text + (template.system or "")
    assert {"boxed": r"\boxed{}", "hashes": "####", "answer": "Answer:"}[template.answer_format] in instruction


def test_template_when_the_environment_looks_elsewhere_for_the_answer_then_refuses():
    with pytest.raises(ValueError, match="answer_format = 'hashes'"):
        VerlHashes(make(split="test", num_problems=10))


def test_env_when_playing_reference_benchmarks_then_training_excludes_their_exact_repeats(reference_data: Path):
    env = make(split="train", data=["math", "aime_1983_2023"], data_dir=reference_data / "math", use_library=False)
    assert env.report == {"no gold answer": 4, "difficulty 0": 2, "in a benchmark": 6, "repeated": 266}
    assert env.num_tasks == 7468 + 975 - 6 - 266  # MATH holds problems of the AIME
