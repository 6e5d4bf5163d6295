"""The official games: a tree of folders with one `game.tw-pddl` per game.

    DATA/json_2.1.1/<split>/<type>-<Object>-<MovableRecep|None>-<Recep>-<scene>/<trial>/game.tw-pddl

A game file is JSON with the keys pddl_domain, grammar, pddl_problem, solvable and walkthrough. Nothing else is needed:
`traj_data.json` and the folder `logic` may be absent.
"""

import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentrl.common.data_source import DataSource, row_digest, whole_digest
from agentrl.envs.alfworld.game import TASK_TYPES, Game, GameRecord
from agentrl.envs.alfworld.pddl import parse_problem
from agentrl.envs.env_errors import DataError

SPLITS = ("train", "valid_seen", "valid_unseen", "valid_train")
VERSION_FOLDER = "json_2.1.1"
GAME_FILE = "game.tw-pddl"

# digests of the whole splits of release 0.4.2 (json_2.1.3_tw-pddl); that of valid_unseen was not at hand
KNOWN_SPLITS = {
    "train": "103051a570116fbfd99f38088a5185fb4e890d18001b0a4d077d70a4e2cfa04e",
    "valid_seen": "1f43679c16bb81d1fed5dc78f4a331c6a346ed09ec396334631773e4023a321a",
    "valid_train": "d6959eaf19fa67fa80042a3e1192130f2477bec56421ee2104a08fe53c1eb74d",
}

_KEYS = {"pddl_domain": str, "grammar": str, "pddl_problem": str, "solvable": bool, "walkthrough": list}
TASK_SENTENCE = re.compile(r'Your task is to: ([^"]*)')
_OLD_COMMAND, _OLD_PUT = "put {o} in/on {r}", re.compile(r"put (.+) in/on (.+)")
_NUM_NAMED = 3  # damaged files named in a warning


def parse_game_file(content: bytes | str, *, where: str) -> dict[str, Any]:
    """The checked content of a game file; raises `DataError` naming `where` for a damaged one."""
    try:
        data = json.loads(content)
    except ValueError as error:
        raise DataError(f"{where}: expected a game as JSON, but it cannot be read ({error}).") from error
    for key, kind in _KEYS.items():
        if not isinstance(data, dict) or not isinstance(data.get(key), kind):
            raise DataError(
                f"{where}: expected a game with the key {key!r} ({kind.__name__}), which is missing. "
                "Data of old releases lack keys; download the current games."
            )
    problem = data["pddl_problem"]
    if "(:init" not in problem or "(:goal" not in problem or problem.count("(") != problem.count(")"):
        raise DataError(f"{where}: expected a game with a whole PDDL problem, but it is damaged.")
    if not TASK_SENTENCE.search(data["grammar"]):
        raise DataError(f"{where}: expected a game with a task sentence in its grammar, found none.")
    return data


def is_old_version(data: Mapping[str, Any]) -> bool:
    """Whether the game is of data before 2.1.2, whose text grammar says `put X in/on Y`."""
    return _OLD_COMMAND in data["grammar"]


def category_of(name: str) -> str:
    """The task type in a game's name.

    >>> category_of("train/pick_two_obj_and_place-CD-None-Safe-323/trial_T20190906_181253_017759")
    'pick_two_obj_and_place'
    """
    return name.split("/")[-2].split("-")[0]


def make_record(data: Mapping[str, Any], *, name: str) -> GameRecord:
    """The game record in a checked game file; raises `DataError` where its problem cannot be parsed."""
    task = TASK_SENTENCE.search(data["grammar"])
    assert task is not None
    walkthrough = tuple(_OLD_PUT.sub(r"move \1 to \2", command) for command in data["walkthrough"])
    return GameRecord(name, category_of(name), task.group(1), parse_problem(data["pddl_problem"]), walkthrough)


class FileGames:
    """The games of one split that are read from files.

    Args:
        names: the games' names, in task order.
        read: the checked content of a game's file by its name.
        digests: by name, of each game's content (`game_digest`).
        where: the folder or file, for messages.
    """

    def __init__(
        self, names: Sequence[str], read: Callable[[str], dict[str, Any]], *, digests: Mapping[str, bytes], where: str
    ) -> None:
        self.names, self._read, self._digests, self._where = tuple(names), read, digests, where

    def __len__(self) -> int:
        return len(self.names)

    def find(self, name: str) -> int:
        """The number of the game with this name or file path; raises `ValueError` where there is none."""
        short = name.rpartition(f"{VERSION_FOLDER}/")[2].removesuffix(f"/{GAME_FILE}")
        if short not in self.names:
            raise ValueError(f"{self._where} has no game {name!r} of the task types asked for.")
        return self.names.index(short)

    @property
    def data_source(self) -> DataSource:
        """Official where the digest over names and contents is that of a whole published split."""
        digest = whole_digest(self._digests[name] for name in self.names)
        return DataSource("official" if digest in KNOWN_SPLITS.values() else "files", len(self), digest)

    def content(self, index: int) -> dict[str, Any]:
        """The content of the game's file, for the stock engine."""
        return self._read(self.names[index])

    definition = content

    def load(self, index: int, *, grammar: str = "move") -> Game:
        """Game `index`, ready for play; raises `DataError` where its problem cannot be parsed."""
        name = self.names[index]
        try:
            return Game(make_record(self._read(name), name=name), grammar=grammar)
        except (LookupError, ValueError) as error:
            raise DataError(f"{self._where}: the game {name} is damaged ({error})") from error


def open_folder(folder: Path, split: str, *, grammar: str, task_types: Sequence[str]) -> FileGames:
    """The solvable games of one split in a folder.

    Reads every game file once (about 0.2 ms each) and leaves out damaged ones with a warning that counts and names
    them. Raises `DataError` for a folder without the split, for data of the older grammar where the current one is
    asked for, and where no playable game is left.
    """
    root = version_folder(folder)
    if not (root / split).is_dir():
        raise DataError(f"{root}: expected the split {split!r}, found {', '.join(splits_of_folder(root))}.")
    where, names = str(root / split), names_below(root, split)
    if not names and any((root / split).glob("*/*/traj_data.json")) and not _has_games(root / split):
        raise DataError(
            f"{where}: found traj_data.json but no {GAME_FILE}: the text games are missing. "
            "Download the current games (json_2.1.3_tw-pddl) into the same folder."
        )
    if not names and _has_games(root / split):
        raise DataError(
            f"{where}: found games, but all are of kinds that ALFWorld does not play (sliced objects, movable "
            f"receptacles, other task types than {', '.join(TASK_TYPES)}). Give the folder of whole splits."
        )
    return playable_games(
        names, lambda name: read_game_file(root / name / GAME_FILE), grammar=grammar, task_types=task_types, where=where
    )


def _has_games(folder: Path) -> bool:
    return any(folder.glob(f"*/*/{GAME_FILE}"))


def playable_games(
    names: Sequence[str],
    read: Callable[[str], dict[str, Any]],
    *,
    grammar: str,
    task_types: Sequence[str],
    where: str,
) -> FileGames:
    """Of these games the solvable ones of the task types asked for; each is read once. Raises as `open_folder` does."""
    usable: dict[str, bytes] = {}
    damaged, num_unsolvable = [], 0
    for name in names:
        if category_of(name) not in task_types:
            continue
        try:
            data = read(name)
        except DataError as error:
            damaged.append(str(error))
            continue
        check_version(data, grammar=grammar, where=where)
        if data["solvable"]:
            usable[name] = game_digest(name, data)
        else:
            num_unsolvable += 1
    if num_unsolvable and not usable and not damaged:
        raise DataError(f"{where}: all {num_unsolvable} games are marked as not solvable; download the games again.")
    _report_damage(damaged, num_usable=len(usable), where=where)
    return FileGames(list(usable), read, digests=usable, where=where)


def game_digest(name: str, data: Mapping[str, Any]) -> bytes:
    """Names a game's content, however it is stored."""
    texts = (data[key] for key in ("pddl_domain", "grammar", "pddl_problem"))
    return row_digest((name, *texts, *data["walkthrough"]))


def check_version(data: Mapping[str, Any], *, grammar: str, where: str) -> None:
    """Raise `DataError` for a game of the older grammar where the current one is asked for."""
    if grammar == "move" and is_old_version(data):
        raise DataError(
            f"{where}: these games are of a data version before 2.1.2, with the grammar 'put X in/on Y'. "
            "Use grammar='put' to play them so, or download the current games (json_2.1.3_tw-pddl)."
        )


def _report_damage(damaged: Sequence[str], *, num_usable: int, where: str) -> None:
    """Warn of damaged games, naming the first ones; raise `DataError` where no other game is left."""
    named = "".join(f"\n  {message}" for message in damaged[:_NUM_NAMED])
    if damaged and num_usable:
        text = f"{where}: {len(damaged)} damaged of {len(damaged) + num_usable} games are left out, among them{named}"
        warnings.warn(text, UserWarning, stacklevel=3)
    elif damaged:
        raise DataError(f"{where}: all {len(damaged)} games are damaged; unpack or download them again.{named}")
    elif not num_usable:
        raise DataError(f"{where}: expected games of the task types asked for, found none.")


def read_game_file(path: Path) -> dict[str, Any]:
    """The checked content of a game file; raises `DataError` for a damaged or unreadable one."""
    try:
        return parse_game_file(path.read_bytes(), where=str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error


def names_below(root: Path, split: str) -> list[str]:
    """Names of the game files of a split, sorted, without those that the stock loader leaves out by their name."""
    names = (path.parent.relative_to(root).as_posix() for path in (root / split).glob(f"*/*/{GAME_FILE}"))
    return sorted(name for name in names if is_supported(name))


def is_supported(name: str) -> bool:
    """Whether the game's name is that of a task that ALFWorld plays: no sliced objects, no movable receptacles."""
    return category_of(name) in TASK_TYPES and "Sliced" not in name and "movable" not in name


def game_name(member: str) -> str | None:
    """The name of the game in a member of an archive; None for other members and for games that are not played."""
    name = member.removeprefix("./").removesuffix(f"/{GAME_FILE}").partition(f"{VERSION_FOLDER}/")[2]
    return name if member.endswith(f"/{GAME_FILE}") and name.count("/") == 2 and is_supported(name) else None


def splits_of_folder(folder: Path) -> list[str]:
    """The splits in a folder."""
    return [split for split in SPLITS if (version_folder(folder) / split).is_dir()]


def version_folder(folder: Path) -> Path:
    """The folder that holds the splits, by its own path or that of a folder around it.

    Raises `DataError` where there is none.
    """
    inner = folder / VERSION_FOLDER
    candidates = (inner, folder, inner / VERSION_FOLDER)  # the last: an archive unpacked into a folder of its name
    for root in candidates:
        if any((root / split).is_dir() for split in SPLITS):
            return root
    if folder.resolve().name in SPLITS and any(folder.glob("*/*/traj_data.json")):
        raise DataError(f"{folder} is one split; give the folder above it: {folder.resolve().parent}")
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    raise DataError(f"{folder}: expected {VERSION_FOLDER}/<split>/…/{GAME_FILE}, found {found}. {HINT}")


HINT = (
    "Point ALFWORLD_DATA (or the option data) at the folder that holds json_2.1.1, as `alfworld-download` makes it, "
    "or at a packed file, or use data='generated'."
)
