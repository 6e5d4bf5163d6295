"""ALFWorld against recorded episodes of the stock engine and the official walkthroughs."""

import json
import lzma
import re
import tarfile
import time
from collections import Counter

import pytest

from agentrl.envs.alfworld.env import ALFWorldEnv
from agentrl.envs.alfworld.game import Game
from agentrl.envs.alfworld.household import likely_places
from agentrl.envs.alfworld.official import make_record, parse_game_file
from agentrl.envs.alfworld.text_engine import TextEngine

_GAME_FILE = re.compile(r"json_2\.1\.1/(.+)/game\.tw-pddl")


def official_games(folder, is_wanted=lambda name: True):
    """(name, content) of the wanted games in the archive."""
    with tarfile.open(folder / "alfworld" / "games.tar.xz") as archive:
        for member in archive:
            match = _GAME_FILE.search(member.name)
            if match and is_wanted(match.group(1)):
                yield match.group(1), parse_game_file(archive.extractfile(member).read(), where=member.name)


@pytest.fixture(scope="module")
def episodes(reference_data):
    path = reference_data / "alfworld" / "reference_traces.jsonl.xz"
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def games(reference_data, episodes):
    """The games of the recorded episodes and of valid_seen."""
    wanted = {episode["game"] for episode in episodes}
    return dict(official_games(reference_data, lambda name: name in wanted or name.startswith("valid_seen/")))


@pytest.fixture(scope="module")
def valid_seen(games, tmp_path_factory):
    """A folder with the split valid_seen."""
    root = tmp_path_factory.mktemp("alfworld")
    for name, data in games.items():
        if name.startswith("valid_seen/"):
            folder = root / "json_2.1.1" / name
            folder.mkdir(parents=True)
            (folder / "game.tw-pddl").write_text(json.dumps(data), encoding="utf-8")
    return root


def older(text):
    """A command or feedback of the current grammar in the older one; None where the location's name is needed."""
    text = re.sub(r"^move (.+) to (.+)$", r"put \1 in/on \2", text)
    return re.sub(r"^You move the (.+) to the (.+)\.$", r"You put the \1 in/on the \2.", text)


def test_engine_when_recorded_episodes_are_replayed_then_every_field_is_equal(episodes, games):
    num_steps = 0
    for episode in episodes:
        engine = TextEngine(Game(make_record(games[episode["game"]], name=episode["game"])))
        start = {"obs": engine.reset(), "admissible": engine.admissible, "won": engine.won}
        assert start == episode["reset"]
        for step in episode["steps"]:
            is_admissible = step["action"].strip() in engine.admissible
            played = {
                "action": step["action"],
                "admissible_action": is_admissible,
                "obs": engine.step(step["action"]),
                "admissible": engine.admissible,
                "reward": int(engine.won),
                "won": engine.won,
                "done": engine.won,
            }
            assert played == step
            num_steps += 1
    assert (len(episodes), num_steps) == (88, 2486)


def test_env_when_recorded_episode_of_valid_seen_then_observation_reward_and_info(episodes, valid_seen):
    env = ALFWorldEnv("valid_seen", data=valid_seen)
    played = [episode for episode in episodes if episode["split"] == "valid_seen"]
    assert len(played) == 32
    for episode in played:
        observation, info = env.reset(options={"task": episode["game"]})
        assert (observation, info["admissible_actions"]) == (episode["reset"]["obs"], episode["reset"]["admissible"])
        assert (info["task"], info["category"]) == (episode["game"], episode["task_type"])
        for step in episode["steps"]:
            observation, reward, terminated, truncated, info = env.step(step["action"])
            assert (observation, reward, terminated) == (step["obs"], step["reward"], step["done"])
            assert not truncated
            assert info["admissible_actions"] == step["admissible"]
            assert (info["success"], info["is_valid_action"]) == (step["won"], step["admissible_action"])


def test_engine_when_older_grammar_then_transformed_episodes_are_equal(episodes, games):
    for episode in episodes:
        engine = TextEngine(Game(make_record(games[episode["game"]], name=episode["game"]), grammar="put"))
        assert engine.reset() == episode["reset"]["obs"]
        for step in episode["steps"]:
            if step["action"].strip() == "help":
                assert engine.step("help") == "Nothing happens."
                continue
            command = re.sub(r"^(\s*)move (.+) to (\S+ \d+)(\s*)$", r"\1put \2 in/on \3\4", step["action"])
            if command == step["action"]:  # a recorded `put` is admissible only here: send its counterpart
                command = re.sub(r"^put (.+) in/on (.+)$", r"move \1 to \2", command)
            observation = engine.step(command)
            arrival = re.fullmatch(r"You arrive at (.+?)\. (.*)", step["obs"])
            if arrival:
                place = engine.game.location_names[engine.location]
                assert re.fullmatch(r"loc \d+", place)
                assert observation == f"You arrive at {place}. {arrival.group(2)}"
            else:
                assert observation == older(step["obs"])
            assert engine.admissible == sorted(older(name) for name in step["admissible"] if name != "help")
            assert engine.won == step["won"]


@pytest.mark.slow
def test_walkthroughs_when_played_then_all_3893_games_are_won(reference_data):
    num_games = 0
    for name, data in official_games(reference_data):
        for grammar in ("move", "put"):
            engine = TextEngine(Game(make_record(data, name=name), grammar=grammar))
            assert not engine.won
            for command in engine.game.walkthrough:
                assert command in engine.admissible, (name, command)
                engine.step(command)
            assert engine.won, name
        num_games += 1
    assert num_games == 3893


def test_exploring_expert_when_valid_seen_then_wins_95_percent_and_90_of_each_type(valid_seen):
    env = ALFWorldEnv("valid_seen", data=valid_seen, expert="exploring")
    assert env.num_tasks == 140
    won = {}
    for task in range(140):
        _, info = env.reset(options={"task": task})
        terminated, num_steps = False, 0
        while not terminated and num_steps < 50:
            _, _, terminated, _, info = env.step(info["expert_action"])
            num_steps += 1
        won.setdefault(info["category"], []).append(terminated)
    assert sum(map(sum, won.values())) / 140 >= 0.95
    assert len(won) == 6
    assert all(sum(of_type) / len(of_type) >= 0.9 for of_type in won.values())


@pytest.mark.evidence
def test_engine_when_timed_then_parse_reset_and_step_are_within_their_marks(games):
    parsed = [make_record(data, name=name) for name, data in games.items()]
    started = time.process_time()
    for name, data in games.items():
        Game(make_record(data, name=name))
    parse_s = (time.process_time() - started) / len(games)
    engines = [TextEngine(Game(record)) for record in parsed]
    started = time.process_time()
    for engine in engines:
        engine.reset()
    reset_s = (time.process_time() - started) / len(games)
    started, num_steps = time.process_time(), 0
    for engine in engines:
        for step in range(50):
            engine.step(engine.admissible[7 * step % len(engine.admissible)])
            num_steps += 1
    steps_per_s = num_steps / (time.process_time() - started)
    assert parse_s <= 5e-3
    assert reset_s <= 1e-3
    assert steps_per_s >= 15_000


@pytest.mark.slow
def test_likely_places_when_counted_anew_over_the_training_games_then_equal(reference_data):
    held, present = Counter(), Counter()  # by (object class, receptacle class), over games with such an object
    for name, data in official_games(reference_data, lambda name: name.startswith("train/")):
        game = Game(make_record(data, name=name))
        classes = [name.split(" ")[0] for name in game.receptacle_names]
        movable = game.pickupable | game.toggleable
        found = [
            {game.object_names[item].split(" ")[0] for item in items if item in movable and game.object_types[item]}
            for items in game.start_contents
        ]
        for kind in set().union(*found):
            for receptacle, items in zip(classes, found, strict=True):
                present[kind, receptacle] += 1
                held[kind, receptacle] += kind in items
    for kind in {kind for kind, _ in present} - {"floorlamp"}:
        shares = {
            place: round(100 * held[kind, place] / number)
            for (k, place), number in present.items()
            if k == kind and number >= 8
        }
        assert likely_places(kind) == {place: share for place, share in shares.items() if share}, kind
