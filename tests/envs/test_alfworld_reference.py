"""ALFWorld beside the stock engine, where the extra "alfworld" is installed: same games, same commands, same texts."""

import os
import random
import sys
import tarfile

import pytest

from agentrl.envs.alfworld.env import ALFWorldEnv

pytest.importorskip("textworld", reason="the extra 'alfworld' is not installed")
pytest.importorskip("alfworld", reason="the extra 'alfworld' is not installed")
pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]  # other packages' warnings are not ours

_FIELDS = ("admissible_actions", "success", "score", "category", "anchor", "expert_action", "is_valid_action", "task")


def choose(rng, info):
    """A command that changes things more often than a uniform choice, and sometimes none at all."""
    admissible = info["admissible_actions"]
    if rng.random() < 0.1:
        return rng.choice(["", "xyzzy", " look ", "LOOK", "go to", rng.choice(admissible).upper()])
    if rng.random() < 0.2:
        return info["expert_action"]
    changing = [command for command in admissible if not command.startswith(("go to", "examine", "help", "inventory"))]
    return rng.choice(changing if rng.random() < 0.6 else admissible)


def compare(options, tasks, *, num_steps, seed):
    """Play the same commands in both backends; every field must be equal."""
    ours = ALFWorldEnv(**options, expert="default")
    stock = ALFWorldEnv(**options, expert="default", backend="textworld")
    for task in tasks:
        rng = random.Random(f"{seed}/{task}")
        mine, theirs = ours.reset(options={"task": task}), stock.reset(options={"task": task})
        for _ in range(num_steps + 1):
            assert mine[:-1] == theirs[:-1]
            assert {key: mine[-1].get(key) for key in _FIELDS} == {key: theirs[-1].get(key) for key in _FIELDS}
            command = choose(rng, mine[-1])
            mine, theirs = ours.step(command), stock.step(command)


@pytest.mark.parametrize("grammar", ["move", "put"])
@pytest.mark.parametrize("room_size", ["small", "official"])
def test_generated_games_when_played_in_both_engines_then_equal(room_size, grammar):
    options = {"split": "valid_unseen", "data": "generated", "room_size": room_size, "grammar": grammar}
    compare(options, range(6), num_steps=25, seed=0)


@pytest.mark.parametrize("grammar", ["move", "put"])
def test_official_games_when_played_in_both_engines_then_equal(reference_data, tmp_path, grammar):
    with tarfile.open(reference_data / "alfworld" / "games.tar.xz") as archive:
        members = [member for member in archive if member.name.endswith("/game.tw-pddl") and "/train/" in member.name]
        for member in random.Random(grammar).sample(members, 8):
            archive.extract(member, tmp_path, filter="data")
    compare({"split": "train", "data": tmp_path, "grammar": grammar}, range(8), num_steps=30, seed=1)


def test_walkthrough_expert_when_stock_engine_then_won():
    env = ALFWorldEnv("train", data="generated", expert="walkthrough", backend="textworld")
    for task in range(6):
        _, info = env.reset(options={"task": task})
        terminated = False
        while not terminated:
            _, reward, terminated, _, info = env.step(info["expert_action"])
        assert reward == 1.0


def test_stock_engine_when_used_then_process_is_left_as_it_was(monkeypatch):
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    arguments = list(sys.argv)
    ALFWorldEnv("train", data="generated", backend="textworld").reset(seed=0)
    assert sys.argv == arguments
    assert "ALFWORLD_DATA" not in os.environ
