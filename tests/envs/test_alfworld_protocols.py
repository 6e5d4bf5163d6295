"""ALFWorld in the manner of other frameworks: verl-agent's window, draws and projection."""

import pickle

import gymnasium
import pytest
from hypothesis import given
from hypothesis import strategies as st

import agentrl.envs  # noqa: F401 - registers the ids
from agentrl.config.read import load_config
from agentrl.envs.alfworld.env import ALFWorldEnv
from agentrl.envs.alfworld.protocols import Conversation, VerlAgentWindow, drawn_tasks, list_actions
from agentrl.envs.verl_agent import project


@pytest.mark.parametrize(
    ("answer", "command", "is_valid"),
    [
        ("<think>a</think><action>Go To Desk 1</action>", "go to desk 1", True),
        ("<action> look </action> later <think></think>", "look", True),
        ("<think>a</think><action>look</action><action>help</action>", "look", True),
        ("<think>a</think><action>fly away</action>", "fly away", True),  # admissibility is not asked for
        ("<THINK>a</THINK><ACTION>look</ACTION>", "look", False),  # think tags must be in lower case
        ("<action>look</action>", "look", False),
        ("<think>看</think><action>look</action>", "look", False),
        ("<think>a</think></action><action>look", "", True),
        ("<think>I should Go to the desk 12 and look", " should go to the desk 12 and look"[-30:], False),
        ("", "", False),
    ],
)
def test_project_when_answer_then_as_verl_agent(answer, command, is_valid):
    assert project(answer, fallback_characters=30) == (command, is_valid)


@given(st.text())
def test_project_when_any_text_then_text(answer):
    command, is_valid = project(answer, fallback_characters=30)
    assert isinstance(command, str)
    assert is_valid in (True, False)


def test_list_actions_then_quoted_one_a_line_without_help():
    assert list_actions(["go to desk 1", "help", "inventory", "look"]) == "'go to desk 1'\n 'inventory'\n 'look'"


def make(**options):
    env = gymnasium.make("agentrl/ALFWorld-v0", split="train", data="generated", expert="walkthrough")
    return VerlAgentWindow(env, **options)


def answer(command):
    return f"<think>because</think><action>{command}</action>"


def test_window_when_first_then_observation_actions_and_instruction():
    env = make()
    prompt, info = env.reset(options={"task": 0})
    bare, _ = env.env.reset(options={"task": 0})
    assert f"Your current observation is: {bare}\n" in prompt
    assert f"[{list_actions(info['admissible_actions'])}]" in prompt
    assert "'help'" not in prompt
    assert "<think> </think>" in prompt
    assert "<action> </action>" in prompt
    assert info["anchor"] == bare


def test_window_when_later_then_task_last_two_steps_and_step_number():
    env = make()
    first, _ = env.reset(options={"task": 0})
    task = first.split("Your task is to: ")[1].split("\n")[0]
    seen = []
    for command in ("look", "inventory", "nonsense"):
        prompt, _, _, _, info = env.step(answer(command))
        seen.append(info["anchor"])
    assert prompt.splitlines()[0].endswith(f"Your task is to: {task}")
    assert "already taken 3 step(s). The last 2 observation(s)" in prompt
    assert (
        f"[Observation 2: '{seen[0]}', Action 2: 'inventory']\n[Observation 3: '{seen[1]}', Action 3: 'nonsense']"
        in prompt
    )
    assert "Observation 1" not in prompt
    assert f"now at step 4 and your current observation is: {seen[2]}\n" in prompt
    assert seen[2] == "Nothing happens."


def test_window_when_won_then_ten_times_the_reward():
    env = make()
    _, info = env.reset(options={"task": 0})
    rewards = []
    terminated = False
    while not terminated:
        _, reward, terminated, _, info = env.step(answer(info["expert_action"]))
        rewards.append(reward)
    assert rewards == [0.0] * (len(rewards) - 1) + [10.0]
    assert info["success"]


def test_window_when_answer_is_ill_formed_then_marked_but_sent():
    env = make()
    env.reset(options={"task": 0})
    assert env.step("look")[4]["is_valid_action"] is False
    assert env.step(answer("no such command"))[4]["is_valid_action"] is True
    strict = make(needs_admissible=True)
    strict.reset(options={"task": 0})
    assert strict.step(answer("no such command"))[4]["is_valid_action"] is False
    assert strict.step(answer("look"))[4]["is_valid_action"] is True


def test_window_when_options_then_shorter_prompts():
    env = make(history_length=0, lists_admissible=False)
    env.reset(options={"task": 0})
    prompt = env.step(answer("look"))[0]
    assert "[Observation" not in prompt
    assert "'look'" not in prompt


def test_conversation_when_played_then_tagged_actions_and_the_papers_limits():
    env = Conversation(gymnasium.make("agentrl/ALFWorld-v0", split="train", data="generated"))
    first, info = env.reset(options={"task": 0})
    assert first.endswith("Then give exactly one action inside <action> and </action>.")
    command = next(name for name in info["admissible_actions"] if name.startswith("go to"))
    assert env.step(answer(command))[0].startswith("You arrive at ")
    assert env.step(command)[4]["is_valid_action"] is False
    limits = load_config("paper/alfworld_qwen3_4b").rollout
    assert (limits.max_turns, limits.max_context_tokens) == (50, 16384)


def test_drawn_tasks_then_independent_draws_of_shuffled_games():
    tasks = drawn_tasks(140)
    assert tasks == drawn_tasks(140)
    assert len(tasks) == 128
    # 128 independent draws out of 140 leave out 140 * (1 - 1/140)**128 = 56 games, give or take 5
    assert 75 <= len(set(tasks)) <= 95
    workers = [[drawn_tasks(6, num_draws=3, evaluation=k)[worker] for k in range(12)] for worker in range(3)]
    for played in workers:  # a worker plays every game once before it shuffles again
        assert sorted(played[:6]) == sorted(played[6:]) == list(range(6))
    assert drawn_tasks(140, seed=1)[:127] == tasks[1:]


def test_eval_draws_when_option_is_set_then_evaluation_splits_are_drawn_and_others_stay():
    options = {"data": "generated", "num_games": 30}
    every = ALFWorldEnv("valid_seen", **options)
    drawn = ALFWorldEnv("valid_seen", **options, eval_draws=128)
    assert (drawn.num_tasks, every.num_tasks) == (128, 30)
    assert ALFWorldEnv("train", **options, eval_draws=128).num_tasks == 30
    for task in (0, 1, 127):
        name = drawn.reset(options={"task": task})[1]["task"]
        assert name == every.reset(options={"task": drawn_tasks(30)[task]})[1]["task"]
        assert drawn.reset(options={"task": name})[1]["task"] == name
    assert pickle.loads(pickle.dumps(drawn)).num_tasks == 128
    with pytest.raises(ValueError, match="eval_draws must be >= 1, got 0"):
        ALFWorldEnv("valid_seen", **options, eval_draws=0)
