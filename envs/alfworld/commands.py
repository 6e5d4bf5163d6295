"""What the subcommands of `python -m agentrl.envs.alfworld` do."""

import argparse
import lzma
import random
import tarfile
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from agentrl.common.intervals import wilson_interval
from agentrl.common.progress import progress_bar, track
from agentrl.envs.alfworld.env import ALFWorldEnv
from agentrl.envs.alfworld.game import TASK_TYPES, Game
from agentrl.envs.alfworld.official import (
    GAME_FILE,
    SPLITS,
    FileGames,
    game_name,
    is_old_version,
    names_below,
    parse_game_file,
    read_game_file,
    version_folder,
)
from agentrl.envs.alfworld.packed import write_pack
from agentrl.envs.alfworld.sources import Games, available_splits, open_games
from agentrl.envs.alfworld.zipped import archived_games, is_archive, read_archived
from agentrl.envs.env_errors import DataError
from agentrl.envs.options import check_at_least

_Games = Iterator[tuple[str, dict[str, Any]]]
"""(name, content) of games."""

# -------------------------------------------------------------------- stats


def stats(options: argparse.Namespace) -> None:
    """Print what a folder, a packed file or the generator holds: games by split and type, and their sizes."""
    table, columns = Table(Column(no_wrap=True)), []
    notes: list[str] = []
    for split in available_splits(options.data):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            games = open_games(split, data=options.data, grammar="put")
        notes += [str(warning.message) for warning in caught]
        table.add_column(split, justify="right")
        is_old = isinstance(games, FileGames) and is_old_version(games.content(0))
        columns.append(
            {"data": games.data_source.kind, "sha256": (games.data_source.sha256 or "-")[:12]}
            | {"grammar": "put (before 2.1.2)" if is_old else "move"}
            | _summary(_load_all(games, split, notes))
        )
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    console = Console()
    console.print(table)
    console.print("receptacles, objects, steps of the walkthrough: mean (least-most)")
    for note in notes:
        console.print(f"warning: {note}", style="yellow", markup=False)


def _load_all(games: Games, split: str, notes: list[str]) -> list[Game]:
    """The games of a split; of those that cannot be parsed, a note is taken."""
    prepared = []
    for index in track(range(len(games)), description=f"reading {split}", total=len(games)):
        try:
            prepared.append(games.load(index))
        except DataError as error:
            notes.append(str(error))
    return prepared


def _summary(games: list[Game]) -> dict[str, str]:
    """What is said of a split, by name."""
    types = Counter(game.category for game in games)
    shared = sum(any(len(here) > 1 for here in game.receptacles_at) for game in games)
    rooms = {game.name.split("/")[-2].rsplit("-", 1)[-1] for game in games}
    return {
        "games": str(len(games)),
        **{name: str(types[name]) for name in TASK_TYPES},
        "rooms": str(len(rooms)),
        "receptacles": _spread([len(game.receptacle_names) for game in games]),
        "games with shared locations": str(shared),
        "objects": _spread([len(game.object_names) for game in games]),
        "steps of the walkthrough": _spread([len(game.walkthrough) for game in games]),
    }


def _spread(numbers: list[int]) -> str:
    if not numbers:
        return "-"
    return f"{sum(numbers) / len(numbers):.1f} ({min(numbers)}-{max(numbers)})"


# -------------------------------------------------------------------- pack


def pack(options: argparse.Namespace) -> None:
    """Pack all playable games of a folder, or of an archive of one (zip, tar), into one file for ALFWORLD_DATA.

    Damaged games are named and left out, unsolvable ones are left out. The file appears only when it is whole.
    """
    if not options.target.parent.is_dir():
        raise DataError(f"the folder {options.target.parent} for the packed file does not exist.")
    if options.target.is_dir():
        raise DataError(f"{options.target} is a folder; name the packed file, e.g. {options.target / 'alfworld.zip'}.")
    left_out: list[str] = []
    read_file = _read_zip if options.source.is_file() and is_archive(options.source) else _read_tar
    reader = read_file if options.source.is_file() else _read_folder
    with progress_bar("packing games", None) as advance:
        num_games = write_pack(reader(options.source, left_out), options.target, on_game=lambda: advance(1))
    size = options.target.stat().st_size / 1e6
    print(f"packed {num_games:,} games into {options.target} ({size:.1f} MB); {len(left_out)} left out")
    for reason in left_out:
        print(f"  {reason}")


def _playable(games: Iterable[tuple[str, Callable[[], dict[str, Any]]]], left_out: list[str]) -> _Games:
    """The playable ones of (name, reader of the content); why others are left out is added to `left_out`."""
    for name, read in games:
        try:
            data = read()
        except DataError as error:
            left_out.append(str(error))
            continue
        if data["solvable"]:
            yield name, data
        else:
            left_out.append(f"{name}: unsolvable")


def _read_folder(folder: Path, left_out: list[str]) -> _Games:
    """The playable games in a folder."""
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist.")
    root = version_folder(folder)
    names = (name for split in SPLITS for name in names_below(root, split))
    yield from _playable(((name, partial(read_game_file, root / name / GAME_FILE)) for name in names), left_out)


def _read_zip(path: Path, left_out: list[str]) -> _Games:
    """The playable games in a zip archive."""
    yield from _playable(((name, partial(read_archived, path, name)) for name in archived_games(path)), left_out)


def _read_tar(path: Path, left_out: list[str]) -> _Games:
    """The playable games in a tar archive, in the archive's order."""
    try:
        with tarfile.open(path) as archive:
            games = ((game_name(member.name), partial(_read_member, archive, member, path)) for member in archive)
            yield from _playable(((name, read) for name, read in games if name is not None), left_out)
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        reason = str(error).partition("\n")[0]  # tarfile lists on further lines what else it tried
        raise DataError(f"{path}: expected an official folder or a whole tar archive of one ({reason}).") from error


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> dict[str, Any]:
    file = archive.extractfile(member)
    assert file is not None
    return parse_game_file(file.read(), where=f"{path}, {member.name}")


# -------------------------------------------------------------------- play


def play(options: argparse.Namespace) -> None:
    """Play a game. Tab completes admissible commands, "?" lists them, "quit" or Ctrl-D leaves."""
    env = _make_env(options, expert="exploring" if options.hint else None)
    task = int(options.task) if options.task and options.task.isdecimal() else options.task
    observation, info = env.reset(seed=options.seed, options=None if task is None else {"task": task})
    admissible: list[str] = info["admissible_actions"]
    _complete_from(admissible)
    print(f"[{info['task']}]\n\n{observation}\n")
    num_steps = 0
    while True:
        if options.hint:
            print(f"[hint: {info['expert_action']}]")
        try:
            command = input("> ")
        except EOFError:
            print()
            return
        if command.strip() in ("quit", "exit"):
            return
        if command.strip() == "?":
            print("\n".join(admissible) + "\n")
            continue
        observation, reward, _, _, info = env.step(command)
        num_steps += 1
        admissible[:] = info["admissible_actions"]
        print(f"{observation}\n")
        if reward:
            print(f"You won in {num_steps} steps. Play on, or type quit.\n")


def _complete_from(admissible: list[str]) -> None:
    """Let the Tab key complete whole commands out of the list, which may change meanwhile."""
    try:
        import readline
    except ImportError:  # not part of Python on Windows: play goes on without completion
        return

    def complete(text: str, state: int) -> str | None:
        matches = [command for command in admissible if command.startswith(text)]
        return matches[state] if state < len(matches) else None

    readline.set_completer(complete)
    readline.set_completer_delims("")  # a command is completed as a whole, blanks included
    readline.parse_and_bind("tab: complete")


# -------------------------------------------------------------------- score


def score(options: argparse.Namespace) -> None:
    """Play the games of a split once and print the success rate per task type with 95 % (Wilson) intervals."""
    check_at_least("--games", options.games)
    check_at_least("--max-steps", options.max_steps)
    env = _make_env(options, expert=None if options.policy == "random" else options.policy)
    rng = random.Random(options.seed)
    lengths: dict[str, list[int | None]] = defaultdict(list)
    num_games = env.num_tasks if options.games is None else min(options.games, env.num_tasks)
    for task in track(range(num_games), description=f"playing {options.split}", total=num_games):
        _, info = env.reset(options={"task": task})
        lengths[info["category"]].append(_play_episode(env, info, rng, options.max_steps))
    table = Table(Column("task type", no_wrap=True), "won of", "%", Column("95 %", no_wrap=True), "steps")
    for name in [*sorted(lengths), "all"]:
        played = lengths[name] if name != "all" else [length for group in lengths.values() for length in group]
        wins = [length for length in played if length is not None]
        low, high = wilson_interval(len(wins), len(played))
        steps = f"{sum(wins) / len(wins):.1f} ({max(wins)})" if wins else "-"
        rate = f"{100 * len(wins) / len(played):.1f}"
        table.add_row(name, f"{len(wins)}/{len(played)}", rate, f"{100 * low:.1f}-{100 * high:.1f}", steps)
    Console().print(table)
    print("steps of the episodes that were won: mean (most)")


def _play_episode(env: ALFWorldEnv, info: dict[str, Any], rng: random.Random, max_steps: int) -> int | None:
    """Number of steps to the goal, or None where it is not reached in time."""
    for step in range(1, max_steps + 1):
        action = info.get("expert_action") or rng.choice(info["admissible_actions"])
        _, _, terminated, _, info = env.step(action)
        if terminated:
            return step
    return None


def _make_env(options: argparse.Namespace, *, expert: str | None) -> ALFWorldEnv:
    return ALFWorldEnv(
        options.split, data=options.data, grammar=options.grammar, room_size=options.room_size, expert=expert
    )
