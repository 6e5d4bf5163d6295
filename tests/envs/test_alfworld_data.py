"""Where ALFWorld games come from: folders, packed files, the generator; and what is said of bad ones."""

import io
import json
import sys
import tarfile

import gymnasium
import pytest
from alfworld_room import content, write_tree

import agentrl.envs  # noqa: F401 - registers the ids
from agentrl.common.extras import MissingExtraError
from agentrl.envs.alfworld.__main__ import main
from agentrl.envs.alfworld.commands import _complete_from
from agentrl.envs.alfworld.env import ALFWorldEnv
from agentrl.envs.alfworld.official import parse_game_file
from agentrl.envs.alfworld.sources import load_game, open_games
from agentrl.envs.env_errors import DataError

NAMES = [
    "train/pick_and_place_simple-Pen-None-Desk-1/trial_b",
    "train/pick_and_place_simple-Pen-None-Desk-1/trial_a",
    "train/pick_two_obj_and_place-Pen-None-Desk-2/trial_c",
]


def test_open_games_when_folder_then_sorted_names_and_playable(tmp_path):
    write_tree(tmp_path, NAMES)
    for folder in (tmp_path, tmp_path / "json_2.1.1"):
        env = gymnasium.make("agentrl/ALFWorld-v0", split="train", data=folder, expert="walkthrough")
        assert env.unwrapped.num_tasks == 3
        tasks = [env.reset(options={"task": i})[1] for i in range(3)]
        assert [info["task"] for info in tasks] == sorted(NAMES)
        assert tasks[2]["category"] == "pick_two_obj_and_place"
        for task in (NAMES[0], f"{folder}/json_2.1.1/{NAMES[0]}/game.tw-pddl"):
            assert env.reset(options={"task": task})[1]["task"] == NAMES[0]


def test_open_games_when_environment_variable_is_set_then_it_is_the_default(tmp_path, monkeypatch):
    write_tree(tmp_path, NAMES)
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    assert ALFWorldEnv("train").num_tasks == 3
    assert ALFWorldEnv("train", data="generated", num_games=5).num_tasks == 5
    monkeypatch.delenv("ALFWORLD_DATA")
    assert ALFWorldEnv("train").num_tasks == 3600


def test_open_games_when_task_types_are_chosen_then_only_those(tmp_path):
    write_tree(tmp_path, NAMES)
    assert ALFWorldEnv("train", data=tmp_path, task_types=[6]).num_tasks == 1
    assert ALFWorldEnv("train", data=tmp_path, task_types="pick_and_place_simple").num_tasks == 2
    with pytest.raises(DataError, match="expected games of the task types asked for, found none"):
        ALFWorldEnv("train", data=tmp_path, task_types=[2])


def test_open_games_when_unsolvable_sliced_or_movable_then_left_out(tmp_path):
    names = [*NAMES, "train/pick_and_place_simple-AppleSliced-None-Desk-1/t", "train/pick_and_place_movable-x-1/t"]
    files = write_tree(tmp_path, names)
    files[0].write_text(json.dumps(content(solvable=False)))
    assert ALFWorldEnv("train", data=tmp_path).num_tasks == 2


def test_open_games_when_the_archive_was_unpacked_into_a_folder_of_its_name_then_found(tmp_path):
    write_tree(tmp_path / "json_2.1.1", NAMES)
    assert ALFWorldEnv("train", data=tmp_path).num_tasks == 3


def test_open_games_when_a_split_itself_is_given_then_told_to_give_the_folder_above(tmp_path):
    write_tree(tmp_path, NAMES)
    for name in NAMES:
        (tmp_path / "json_2.1.1" / name / "traj_data.json").write_text("{}")
    with pytest.raises(DataError, match=r"is one split; give the folder above it: .*json_2\.1\.1$"):
        ALFWorldEnv("train", data=tmp_path / "json_2.1.1" / "train")


def test_open_games_when_none_is_solvable_or_of_a_known_kind_then_says_so(tmp_path):
    for file in write_tree(tmp_path / "a", NAMES):
        file.write_text("\ufeff" + json.dumps(content(solvable=False)), encoding="utf-8")
    with pytest.raises(DataError, match="all 3 games are marked as not solvable"):
        ALFWorldEnv("train", data=tmp_path / "a")
    write_tree(tmp_path / "b", ["train/pick_and_place_with_movable_recep-Mug-Pan-Shelf-1/trial"])
    with pytest.raises(DataError, match="found games, but all are of kinds that ALFWorld does not play"):
        ALFWorldEnv("train", data=tmp_path / "b")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "not a game",
        lambda text: "[]",
        lambda text: text.replace('"pddl_problem"', '"problem"'),
        lambda text: text.replace("(:goal", "(:gaol"),
        lambda text: text.replace("(and", "and"),
        lambda text: text.replace("Your task is to", "You may"),
    ],
)
def test_open_games_when_a_file_is_damaged_then_named_counted_and_left_out(tmp_path, damage):
    files = write_tree(tmp_path, NAMES)
    files[1].write_text(damage(files[1].read_text()))
    with pytest.warns(UserWarning, match=r"1 damaged of 3 games are left out, among them\n.*trial_a"):
        env = ALFWorldEnv("train", data=tmp_path)
    assert env.num_tasks == 2
    assert env.reset(options={"task": 0})[1]["task"] == NAMES[0]


def test_open_games_when_all_files_are_damaged_then_data_error(tmp_path):
    for file in write_tree(tmp_path, NAMES):
        file.write_text("")
    with pytest.raises(DataError, match="all 3 games are damaged"):
        ALFWorldEnv("train", data=tmp_path)


def test_open_games_when_older_data_version_then_named_unless_its_grammar_is_asked_for(tmp_path):
    old = content()["grammar"].replace("move {o} to {r}", "put {o} in/on {r}")
    walkthrough = [command.replace("move pen 1 to", "put pen 1 in/on") for command in content()["walkthrough"]]
    write_tree(tmp_path, NAMES, grammar=old, walkthrough=walkthrough)
    with pytest.raises(DataError, match=r"data version before 2\.1\.2.*grammar='put'"):
        ALFWorldEnv("train", data=tmp_path)
    env = ALFWorldEnv("train", data=tmp_path, grammar="put", expert="walkthrough")
    _, info = env.reset(options={"task": 0})
    for _ in range(4):
        _, reward, _, _, info = env.step(info["expert_action"])
    assert reward == 1.0


def test_open_games_when_folder_or_pack_mixes_data_versions_then_named(tmp_path):
    old = content()["grammar"].replace("move {o} to {r}", "put {o} in/on {r}")
    files = write_tree(tmp_path, NAMES)
    files[2].write_text(json.dumps(content(grammar=old)))
    assert main(["pack", str(tmp_path), str(tmp_path / "games.zip")]) == 0
    for data in (tmp_path, tmp_path / "games.zip"):
        with pytest.raises(DataError, match=r"data version before 2\.1\.2"):
            ALFWorldEnv("train", data=data)


def test_open_games_when_only_trajectories_then_says_which_download_is_missing(tmp_path):
    for file in write_tree(tmp_path, NAMES):
        file.rename(file.with_name("traj_data.json"))
    with pytest.raises(DataError, match=r"traj_data\.json but no game\.tw-pddl.*Download"):
        ALFWorldEnv("train", data=tmp_path)


def test_open_games_when_folder_is_wrong_then_says_what_was_found(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"expected json_2\.1\.1/<split>.*found photos.*ALFWORLD_DATA"):
        ALFWorldEnv("train", data=tmp_path)
    with pytest.raises(DataError, match="do not exist"):
        ALFWorldEnv("train", data=tmp_path / "nowhere")
    write_tree(tmp_path, NAMES)
    with pytest.raises(DataError, match="expected the split 'valid_seen', found train"):
        ALFWorldEnv("valid_seen", data=tmp_path)


def test_constructor_when_option_is_wrong_then_value_error(tmp_path):
    write_tree(tmp_path, NAMES)
    for options, message in [
        ({"split": "test"}, "split must be one of train"),
        ({"grammar": "drop"}, "grammar must be one of move, put"),
        ({"expert": "oracle"}, "expert must be one of None, default, exploring"),
        ({"backend": "java"}, "backend must be one of native, textworld"),
        ({"task_types": [7]}, "task_types must be out of 1..6"),
        ({"room_size": "vast", "data": "generated"}, "room_size must be one of"),
        ({"num_games": 0, "data": "generated"}, "num_games must be >= 1"),
        ({"num_games": 3, "data": tmp_path}, "num_games: options of generated games"),
    ]:
        with pytest.raises(ValueError, match=message):
            ALFWorldEnv(**options)


def test_textworld_backend_when_not_installed_then_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "textworld", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[alfworld\]"):
        ALFWorldEnv("train", data="generated", backend="textworld")


def test_load_game_when_asked_twice_then_parsed_once():
    games = open_games("train", data="generated", num_games=3)
    assert open_games("train", data="generated", num_games=3) is games
    assert load_game(games, 1, "move") is load_game(games, 1, "move")
    assert load_game(games, 1, "move") is not load_game(games, 1, "put")


def test_pack_when_folder_or_tar_then_same_games_in_one_file(tmp_path, capsys):
    names = [*NAMES, "valid_seen/pick_and_place_simple-Pen-None-Desk-1/trial_d"]
    files = write_tree(tmp_path, names)
    files[2].write_text("damaged")
    with tarfile.open(tmp_path / "games.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "json_2.1.1", "json_2.1.1")
    for source in (tmp_path, tmp_path / "games.tar.xz"):
        packed = tmp_path / f"{source.name}.zip"
        assert main(["pack", str(source), str(packed)]) == 0
        assert "packed 3 games" in capsys.readouterr().out
        env = ALFWorldEnv("train", data=packed)
        assert [env.reset(options={"task": i})[1]["task"] for i in range(2)] == sorted(NAMES[:2])
        assert env.reset(options={"task": 0}) == ALFWorldEnv("train", data=packed).reset(options={"task": 0})
        assert open_games("train", data=packed).content(0) == parse_game_file(files[1].read_text(), where="")
        assert ALFWorldEnv("valid_seen", data=packed).num_tasks == 1
        with pytest.raises(DataError, match="expected the split 'valid_unseen', found train, valid_seen"):
            ALFWorldEnv("valid_unseen", data=packed)
    assert not list(tmp_path.glob("*.part"))


def test_pack_when_file_is_damaged_then_data_error(tmp_path):
    write_tree(tmp_path, NAMES)
    packed = tmp_path / "games.zip"
    assert main(["pack", str(tmp_path), str(packed)]) == 0
    whole = packed.read_bytes()
    packed.write_bytes(whole[:-100])
    with pytest.raises(DataError, match="expected a packed ALFWorld file"):
        ALFWorldEnv("train", data=packed)
    flipped = tmp_path / "flipped.zip"
    flipped.write_bytes(whole[:200] + bytes(60) + whole[260:])
    games = open_games("train", data=flipped)
    damaged = []
    for index in range(len(games)):
        try:
            games.load(index)
        except DataError as error:
            damaged.append(str(error))
    assert len(damaged) == 1
    assert "is damaged" in damaged[0]
    assert "pack the games again" in damaged[0]


def row(printed, name):
    """The cells of the line of a printed table that starts with a name."""
    return next(
        [cell.strip() for cell in line.split("│")[2:-1]] for line in printed.splitlines() if f"│ {name}" in line
    )


def test_stats_when_folder_then_counts(tmp_path, capsys):
    files = write_tree(tmp_path, [*NAMES, "train/pick_and_place_simple-Pen-None-Desk-1/trial_e"])
    files[0].write_text("damaged")
    files[3].write_text(json.dumps(content(goal="(nonsense)")))
    assert main(["stats", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert row(printed, "games") == ["2"]
    assert row(printed, "receptacles") == ["6.0 (6-6)"]
    assert row(printed, "games with shared locations") == ["2"]
    assert row(printed, "grammar") == ["move"]
    assert "1 damaged of 4 games" in " ".join(printed.split())
    assert "trial_e is damaged (the goal is none of" in " ".join(printed.split())


def test_command_line_when_input_is_bad_then_one_line_and_exit_code_2(tmp_path, tmp_path_factory, capsys):
    data = tmp_path_factory.mktemp("data")
    write_tree(data, NAMES)
    with tarfile.open(data / "games.tar.xz", "w:xz") as archive:
        archive.add(data / "json_2.1.1", "json_2.1.1")
    whole = (data / "games.tar.xz").read_bytes()
    (data / "games.tar.xz").write_bytes(whole[:600] + bytes(40) + whole[640:])
    (data / "text.txt").write_text("hello")
    for arguments in (
        ["pack", str(data / "games.tar.xz"), str(tmp_path / "out.zip")],
        ["pack", str(data / "text.txt"), str(tmp_path / "out.zip")],
        ["pack", str(data), str(tmp_path)],
        ["score", "--data", "generated", "--games", "0"],
        ["score", "--data", "generated", "--max-steps", "0"],
        ["stats", str(tmp_path)],
        ["pack", str(tmp_path / "no"), str(tmp_path / "out.zip")],
        ["play", "--data", "generated", "--task", "nonsense"],
        ["score", "--data", str(tmp_path)],
    ):
        assert main(arguments) == 2
        error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("packing games")]
        assert error[-1].startswith("error: "), arguments
    assert not list(tmp_path.iterdir())


def test_play_when_commands_are_typed_then_texts_and_victory(monkeypatch, capsys):
    game = open_games("valid_seen", data="generated").load(0)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(["?", "nonsense", *game.walkthrough, ""])))
    assert main(["play", "--data", "generated", "--task", "0", "--hint"]) == 0
    printed = capsys.readouterr().out
    assert "inventory\nlook" in printed
    assert "Nothing happens." in printed
    assert f"You won in {1 + len(game.walkthrough)} steps." in printed


def test_play_when_tab_is_pressed_then_whole_commands_are_completed(monkeypatch):
    readline = pytest.importorskip("readline")
    admissible = ["go to bed 1", "go to desk 1", "look"]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    _complete_from(admissible)
    complete = readline.get_completer()
    assert [complete("go to", k) for k in range(3)] == ["go to bed 1", "go to desk 1", None]
    admissible[:] = ["go to fridge 1"]
    assert complete("go to", 0) == "go to fridge 1"


def test_score_when_policies_differ_then_experts_win_all_and_chance_few(capsys):
    for policy, least, most in (("walkthrough", 60, 60), ("exploring", 60, 60), ("random", 0, 30)):
        assert main(["score", "--data", "generated", "--games", "60", "--policy", policy]) == 0
        won, games = row(capsys.readouterr().out, "all")[0].split("/")
        assert least <= int(won) <= most
        assert games == "60"
