"""The environment's contract, its experts, protocols and command line."""

import json
import multiprocessing
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl import envs
from agentrl.common.intervals import wilson_interval
from agentrl.config.read import load_config
from agentrl.envs.env_errors import DataError
from agentrl.envs.verl_agent import project
from agentrl.envs.webshop.__main__ import main
from agentrl.envs.webshop.env import WebShopEnv
from agentrl.envs.webshop.experts import expert_action
from agentrl.envs.webshop.protocols import PROTOCOLS, Compact, make
from agentrl.envs.webshop.scripted_scores import Result, evaluate
from agentrl.envs.webshop.session import parse_action

assert "agentrl/WebShop-v0" in envs.ENVIRONMENTS


def make_env(split: str = "test", **options) -> WebShopEnv:
    return WebShopEnv(split, **({"data_dir": "synthetic", "num_products": 200} | options))


def play(env: gymnasium.Env, **reset) -> list[object]:
    """The scripted shopper's episode: everything an outsider can see."""
    observation, info = env.reset(**reset)
    seen: list[object] = [observation, info]
    while "expert_action" in info:
        *step, info = env.step(info["expert_action"])
        seen += [step, info]
    return seen


def test_env_when_checked_by_gymnasium_then_passes():
    check_env(make_env(), skip_render_check=True)
    env = gymnasium.make("agentrl/WebShop-v0", split="test", data_dir="synthetic", num_products=200)
    assert env.spec is not None
    assert env.spec.max_episode_steps is None


def episode_elsewhere(reset: dict) -> list[object]:
    return play(make_env(expert="default"), **reset)


@pytest.mark.parametrize("reset", [{"seed": 3}, {"options": {"task": 5}}])
def test_episode_when_seed_or_task_is_the_same_then_is_the_same_in_every_process(reset):
    here = episode_elsewhere(reset)
    assert here == episode_elsewhere(reset)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(episode_elsewhere, (reset,)) == here


def test_info_when_an_episode_is_played_then_has_the_names_of_the_contract():
    env = make_env(expert="default", reward="fixed")
    _, info = env.reset(options={"task": 0})
    assert info["task"] == "synthetic/0"
    assert info["category"] in ("beauty", "electronics", "garden", "fashion", "grocery")
    assert set(info) - {"task", "category"} == {
        "admissible_actions", "anchor", "is_valid_action", "success", "score", "expert_action",
    }  # fmt: skip
    *_, (_, reward, terminated, truncated), info = play(env, options={"task": 0})
    assert (terminated, truncated) == (True, False)
    parts = info["reward_parts"]
    weighted = sum(parts.get(f"r_{part}", 0) * parts.get(f"w_{part}", 0) for part in ("att", "option", "price"))
    assert info["score"] == reward == pytest.approx(weighted * parts["r_type"])
    assert info["success"] == (reward == 1.0)
    assert "expert_action" not in make_env().reset()[1]


@pytest.mark.parametrize("task", [2, np.int64(2), np.uint8(2), np.array(2), True + 1, pytest.param("two", id="text")])
def test_task_when_like_an_integer_then_works_and_else_raises(task):
    env = make_env()
    if isinstance(task, str):
        for bad in (task, 2.0, [2], np.float64(2.0), "2", b"2"):
            with pytest.raises(ValueError, match="must be an integer from 0"):
                env.reset(options={"task": bad})
    else:
        assert env.reset(options={"task": task})[1]["task"] == "synthetic/2"


@pytest.mark.parametrize("task", [-1, 10**9, np.int64(-5)])
def test_task_when_out_of_range_then_raises(task):
    with pytest.raises(ValueError, match="must be an integer from 0 to 499"):
        make_env().reset(options={"task": task})


def test_tasks_when_enumerated_then_are_all_goals_of_disjoint_splits():
    seen = {}
    for split in ("test", "eval", "train"):
        env = make_env(split, num_products=400)
        seen[split] = {env.reset(options={"task": task})[1]["task"] for task in range(env.num_tasks)}
        assert len(seen[split]) == env.num_tasks
    assert {split: len(tasks) for split, tasks in seen.items()} == {
        "test": 500, "eval": 1000, "train": len(env.shop.goals) - 1500,
    }  # fmt: skip
    assert not seen["test"] & seen["eval"] | seen["test"] & seen["train"] | seen["eval"] & seen["train"]


def test_env_when_the_split_is_empty_then_says_what_to_do():
    with pytest.raises(DataError, match="none in split 'train'"):
        make_env("train", num_products=20).reset()


@pytest.mark.parametrize(
    "options",
    [
        {"split": "dev"},
        {"split_by": "x"},
        {"reward": "x"},
        {"observation": "html"},
        {"expert": "x"},
        {"page_size": 0},
        {"goals": "x"},
        {"style": "x"},
        {"title_nouns": "x"},
    ],
)
def test_env_when_an_option_is_wrong_then_raises_at_once(options):
    with pytest.raises(ValueError, match="must be"):
        make_env(**options)


def test_envs_when_many_then_share_one_shop_and_play_apart():
    pool = [make_env() for _ in range(50)]
    texts = [env.reset(options={"task": task})[0] for task, env in enumerate(pool)]
    assert len({id(env.shop) for env in pool}) == 1
    assert len(set(texts)) > 40
    pool[0].step("search[hair brush]")
    assert pool[1].session.name == "index"


def test_env_when_pickled_then_plays_on_from_reset():
    env = make_env(expert="default")
    env.reset(seed=0)
    assert len(pickle.dumps(env)) < 5000
    copy = pickle.loads(pickle.dumps(env))
    assert play(copy, options={"task": 1}) == play(env, options={"task": 1})
    with pytest.raises(gymnasium.error.ResetNeeded):
        pickle.loads(pickle.dumps(env)).step("search[x]")


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.text(max_size=30) | st.sampled_from(["a" * 1_000_000, "search[" + "x " * 500_000 + "]"]), max_size=3)
)
def test_env_when_given_any_text_then_answers(texts):
    env = make_env(num_products=60)
    env.reset(seed=0)
    for text in texts:
        observation, reward, terminated, truncated, info = env.step(text)
        assert isinstance(observation, str)
        assert (reward, terminated, truncated) == (0.0, False, False)
        assert isinstance(info["is_valid_action"], bool)


def test_text_rich_when_chosen_then_marks_what_can_be_clicked():
    observation, _ = make_env(observation="text_rich").reset(options={"task": 0})
    assert observation.endswith("[button] Search [button_]\n")


def test_given_goal_when_replayed_then_is_played_at_the_given_price():
    env = make_env(reward="fixed")
    target = env.shop.products[7]
    goal = {
        "asin": target.asin, "instruction_text": "Find me this", "attributes": list(target.attributes) or ["x"],
        "goal_options": {}, "price_upper": 50.0,
    }  # fmt: skip
    rewards = []
    for price in (50.0, 50.01):
        env.reset(options={"goal": goal, "prices": {target.asin: price}})
        env.step(f"search[{target.title}]".replace("[", "(").replace("search(", "search["))
        env.step(f"click[{target.asin}]")
        rewards.append(env.step("click[buy now]")[1])
    assert rewards[0] > rewards[1]
    with pytest.raises(ValueError, match="lacks 'price_upper'"):
        env.reset(options={"goal": {name: value for name, value in goal.items() if name != "price_upper"}})
    with pytest.raises(ValueError, match="its prices name a product"):
        env.reset(options={"goal": goal, "prices": {"B0": 1.0}})


@pytest.mark.parametrize("options", [{"goal_idx": 3}, {"task": 0, "goal": {}}, {"prices": {}}])
def test_reset_when_options_are_misspelled_or_contradict_then_raises(options):
    with pytest.raises(ValueError, match="reset options are 'task', or 'goal'"):
        make_env().reset(options=options)


def test_expert_when_only_the_hidden_goal_differs_then_acts_the_same():
    env = make_env()
    for task in range(40):
        env.reset(options={"task": task})
        session = env.session
        other = env.shop.goal((session.goal.index + 77) % len(env.shop.goals))
        while not session.done:
            action = expert_action(session)
            honest = session.goal
            session.goal = replace(other, text=honest.text)
            assert expert_action(session) == action
            session.goal = honest
            assert session.act(action).is_valid


def test_expert_when_the_agent_went_astray_then_leads_back_and_buys():
    env = make_env(expert="default")
    generator = np.random.default_rng(0)
    for task in range(60):
        _, info = env.reset(options={"task": task})
        for _ in range(8):
            if not info["admissible_actions"]:
                break
            _, _, _, _, info = env.step(str(generator.choice(info["admissible_actions"])))
        for _ in range(12):
            if "expert_action" not in info:
                break
            _, _, _, _, info = env.step(info["expert_action"])
        assert env.session.done


def test_evaluate_when_policies_differ_then_brackets_the_scores():
    results = {
        policy: evaluate(make_env(expert="default", reward="fixed"), policy, episodes=100)
        for policy in ("random", "expert", "oracle")
    }
    assert results["random"].score < 0.3 < 0.6 < results["expert"].score < results["oracle"].score == 1.0
    assert results["random"].success < 0.1 < results["expert"].success


def test_result_when_summed_up_then_has_the_textbooks_intervals():
    assert wilson_interval(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson_interval(0, 240)[0] == 0.0
    assert wilson_interval(240, 240)[1] == 1.0
    summary = Result([1.0, 0.0, 0.5, 1.0], 12).summary()
    assert summary.startswith("score 62.5 ± 46.9, success 50.0 % (15.0 to 85.0)")


@pytest.mark.parametrize(
    ("answer", "action", "is_valid"),
    [
        ("<think>x</think><action> Click[Buy Now] </action>", "click[buy now]", True),
        ("<action>click[a]</action>", "click[a]", False),
        ("<think>漢</think><action>click[a]</action>", "click[a]", False),
        ("<think>x</think><action>a</action><action>b</action>", "a", True),
        ("I would rather search[red shoes]", "er search[red shoes]", False),
        ("", "", False),
    ],
)
def test_project_when_given_answers_then_decides_as_verl_agent(answer, action, is_valid):
    assert project(answer, fallback_characters=20) == (action, is_valid)


def answer(action: str) -> str:
    return f"<think>so</think><action>{action}</action>"


def test_verl_agent_when_played_then_prompts_hold_two_steps_and_only_full_scores_pay():
    env = make("verl-agent", split="test", data_dir="synthetic", num_products=200)
    prompt, _ = env.reset(options={"task": 0})
    request = env.unwrapped.session.goal.text
    assert f"Your task is to: {request}.\nYour current observation is: 'Search'.\n" in prompt
    assert "[\n'search[<your query>]',\n'click[search]',\n]" in prompt
    for number in range(1, 15):
        prompt, reward, terminated, truncated, info = env.step(answer("search[brush]"))
        assert (reward, terminated, truncated, info["is_valid_action"]) == (0.0, False, False, True)
        assert f"You are now at step {number + 1} " in prompt
        # histories of two long result pages may not fit
        assert ("Action 1: 'search[brush]'" in prompt) == (number <= 2)
    assert "'Back to Search' [SEP] 'Page 1 (Total results: " in prompt
    assert env.step("no tags")[2:4] == (False, True)
    assert env.step("no tags")[4]["is_valid_action"] is False


def test_verl_agent_when_the_prompt_is_too_long_then_leaves_the_history_out(monkeypatch):
    monkeypatch.setattr("agentrl.envs.webshop.protocols._LONGEST_PROMPT", 600)
    env = make("verl-agent", split="test", data_dir="synthetic", num_products=200)
    env.reset(options={"task": 0})
    assert "step(s)" not in env.step(answer("foo bar"))[0]


@pytest.mark.parametrize(("is_full", "reward"), [(True, 10.0), (False, 0.0)])
def test_verl_agent_when_bought_then_pays_ten_or_nothing(is_full, reward):
    env = make("verl-agent", split="test", data_dir="synthetic", num_products=200, expert="default", reward="fixed")
    for task in range(env.unwrapped.num_tasks):
        _, info = env.reset(options={"task": task})
        while "expert_action" in info:
            _, paid, terminated, _, info = env.step(answer(info["expert_action"]))
        if terminated and (info["score"] == 1.0) == is_full:
            assert paid == reward
            assert info["success"] == is_full
            return
    pytest.fail("no such episode")


def test_paper_when_played_then_stops_after_thirty_steps_and_tells_the_rules():
    env = make("paper", split="test", data_dir="synthetic", num_products=200)
    _, info = env.reset(seed=0)
    assert "click[buy now]" in info["system"]
    limits = [env.step(answer("search[brush]"))[3] for _ in range(30)]
    assert limits == [False] * 29 + [True]
    with pytest.raises(ValueError, match="protocol must be one of verl-agent, paper"):
        make("other")


@pytest.mark.parametrize(
    ("name", "max_turns", "context", "max_context_tokens", "penalty"),
    [
        ("webshop_verl_agent", 15, "window", 4096 + 512, 0.1),
        ("paper/webshop_qwen3_4b", 30, "conversation", 4096 + 4096, 0.0),
    ],
)
def test_config_when_it_names_a_protocol_then_takes_its_settings(name, max_turns, context, max_context_tokens, penalty):
    config = load_config(Path(__file__).parents[2] / "configs" / f"{name}.toml")
    rollout = config.rollout
    assert (rollout.max_turns, rollout.context, rollout.max_context_tokens) == (max_turns, context, max_context_tokens)
    assert config.advantage.invalid_action_penalty == penalty
    formats = {f"{wrapper.__module__}:{wrapper.__name__}": wrapper for wrapper in PROTOCOLS.values()}
    assert formats[config.env.format].max_steps == max_turns


def test_compact_when_the_expert_plays_then_reaches_the_score_of_the_full_text():
    options = {"style": "simple", "page_size": 5, "expert": "default"}
    compact, full = Compact(make_env(**options)), make_env(**options)
    for task in range(30):
        seen = play(compact, options={"task": task})
        assert seen[-1]["score"] == play(full, options={"task": task})[-1]["score"] == 1.0
        assert sum(len(str(part).split()) for part in seen[::2]) < 200
        assert seen[1]["expert_action"] in seen[0].replace("find", "search")  # the search copies the request
        results = seen[2][0].splitlines()
        assert [line.split()[:2] for line in results] == [["item", str(place)] for place in range(1, len(results) + 1)]


def test_compact_when_random_then_its_actions_are_the_shops():
    env, generator = Compact(make_env(style="simple", page_size=5)), np.random.default_rng(0)
    _, info = env.reset(seed=0)
    for _ in range(200):
        if not info["admissible_actions"]:
            _, info = env.reset(seed=int(generator.integers(1000)))
        _, _, _, _, info = env.step(str(generator.choice(info["admissible_actions"])))
        assert info["is_valid_action"]
    for text in ("", " ", "item 1", "click item 99", "click", "search", "x" * 1_000_000):
        assert env.step(text)[4]["is_valid_action"] is False


def test_cli_when_asked_then_prints_what_it_found(tmp_path, capsys):
    assert main(["info", "--data-dir", "synthetic", "--num-products", "200"]) == 0
    assert "split by goal: test 500, eval " in capsys.readouterr().out
    arguments = ["--data-dir", "synthetic", "--num-products", "200", "--episodes", "20"]
    assert main(["evaluate", "--policy", "oracle", "--reward", "fixed", *arguments]) == 0
    assert "oracle: score 100.0 ± 0.0, success 100.0 %" in capsys.readouterr().out
    assert main(["synthesize", "--num-products", "40", "--out", str(tmp_path / "files")]) == 0
    assert len(json.loads((tmp_path / "files" / "items_shuffle_1000.json").read_text())) == 40
    files = ["--data-dir", str(tmp_path / "files"), "--no-verify", "--title-nouns", "words"]
    assert main(["build", "--out", str(tmp_path / "shop"), *files]) == 0
    assert main(["info", "--data-dir", str(tmp_path / "shop"), "--goals", "human"]) == 0
    assert "40 products" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "--data-dir", "/nowhere"], "error: no data folder at /nowhere"),
        (["evaluate", "--episodes", "0", "--data-dir", "synthetic"], "--episodes must be >= 1, got 0"),
        (["build", "--out", "/proc/none", "--num-products", "5"], "error: "),
        (["build", "--out", "x", "--num-products", "-5"], "--num-products must be >= 1"),
        (["serve", "--port", "99999", "--data-dir", "synthetic"], "--port must be in 0 .. 65535"),
    ],
)
def test_cli_when_input_is_bad_then_says_so_in_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.delenv("WEBSHOP_DATA", raising=False)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_module_when_asked_for_help_then_teaches_without_loading_torch():
    program = (
        "import sys; from agentrl.envs.webshop.__main__ import main\n"
        "try: main(['--help'])\nfinally: print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "python -m agentrl.envs.webshop evaluate --policy expert" in result.stdout
    assert result.stdout.rstrip().endswith("False")


def test_admissible_actions_when_parsed_then_are_the_shops_clickables():
    env = make_env()
    _, info = env.reset(seed=1)
    _, _, _, _, info = env.step("search[hair]")
    assert [parse_action(action)[1] for action in info["admissible_actions"]] == env.available_actions()["clickables"]
