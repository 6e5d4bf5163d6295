"""Where games come from: an official folder or archive, a packed file, or the generator; opened once per process."""

import os
from collections.abc import Hashable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from agentrl.common.data_source import DataSource
from agentrl.envs.alfworld.game import TASK_TYPES, Game
from agentrl.envs.alfworld.generate import GeneratedGames
from agentrl.envs.alfworld.official import HINT, SPLITS, open_folder, splits_of_folder
from agentrl.envs.alfworld.packed import open_pack, splits_of_pack
from agentrl.envs.alfworld.zipped import is_archive, open_archive, splits_of_archive
from agentrl.envs.env_errors import DataError
from agentrl.envs.options import check_choice

GENERATED = "generated"
_NUM_CACHED_GAMES = 512


class Games(Hashable, Protocol):
    """The games of one split, numbered from 0."""

    def __len__(self) -> int:
        """How many there are."""

    @property
    def data_source(self) -> DataSource:
        """Where they come from."""

    def find(self, name: str) -> int:
        """The number of the game with this name."""

    def load(self, index: int, *, grammar: str = "move") -> Game:
        """Game `index`, parsed anew."""

    def content(self, index: int) -> dict[str, Any]:
        """What the stock engine needs to play game `index`: the content of an official game file."""

    def definition(self, index: int) -> dict[str, Any]:
        """What determines an episode of game `index`, as JSON; needs nothing of the stock engine."""


def open_games(
    split: str,
    *,
    data: str | os.PathLike[str] | None = None,
    grammar: str = "move",
    task_types: str | int | Sequence[str | int] | None = None,
    room_size: str | None = None,
    num_games: int | None = None,
    data_seed: int | None = None,
) -> Games:
    """The games of a split.

    `data` is an official folder, the zip archive it is published as, a packed file, "generated", or None: what
    ALFWORLD_DATA names where that is set, else generated games. `room_size`, `num_games` and `data_seed` are options of
    generated games only.
    Raises `ValueError` for unknown names and `DataError` for data that cannot be used.
    """
    check_choice("split", split, SPLITS)
    source = _source(data)
    types = _task_types(task_types)
    if source == GENERATED:
        return _generated(split, room_size or "small", num_games, data_seed or 0, types)
    options = {"room_size": room_size, "num_games": num_games, "data_seed": data_seed}
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(
            f"{', '.join(given)}: options of generated games, but the data are {source}; use data='generated'."
        )
    return _from_files(os.path.abspath(source), split, grammar, types)


def available_splits(data: str | os.PathLike[str] | None = None) -> list[str]:
    """The splits that a source holds."""
    source = _source(data)
    if source == GENERATED:
        return list(SPLITS)
    path = Path(source)
    if path.is_dir():
        found = splits_of_folder(path)
    else:
        found = splits_of_archive(path) if is_archive(_existing(path)) else splits_of_pack(path)
    return [split for split in SPLITS if split in found]


def _source(data: str | os.PathLike[str] | None) -> str:
    return os.path.expanduser(data if data is not None else os.environ.get("ALFWORLD_DATA") or GENERATED)


@lru_cache(maxsize=64)
def _generated(split: str, room_size: str, num_games: int | None, data_seed: int, types: tuple[str, ...]) -> Games:
    return GeneratedGames(split, room_size=room_size, num_games=num_games, data_seed=data_seed, task_types=types)


@lru_cache(maxsize=16)
def _from_files(source: str, split: str, grammar: str, types: tuple[str, ...]) -> Games:
    path = Path(source)
    if path.is_dir():
        return open_folder(path, split, grammar=grammar, task_types=types)
    open_file = open_archive if is_archive(_existing(path)) else open_pack
    return open_file(path, split, grammar=grammar, task_types=types)


def _existing(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"the ALFWorld data {path} do not exist. {HINT}")
    return path


@lru_cache(maxsize=_NUM_CACHED_GAMES)
def load_game(games: Games, index: int, grammar: str) -> Game:
    """Game `index`, parsed once and shared by the environments of the process while it is among the last used."""
    return games.load(index, grammar=grammar)


def _task_types(chosen: str | int | Sequence[str | int] | None) -> tuple[str, ...]:
    """Task types by name or by the numbers 1 to 6 that ALFWorld's configs use, in the usual order."""
    if chosen is None:
        return TASK_TYPES
    items = [chosen] if isinstance(chosen, str | int) else list(chosen)
    names = {TASK_TYPES[item - 1] if isinstance(item, int) and 1 <= item <= len(TASK_TYPES) else item for item in items}
    unknown = [name for name in names if name not in TASK_TYPES]
    if unknown or not names:
        raise ValueError(f"task_types must be out of 1..6 or {', '.join(TASK_TYPES)}, got {chosen!r}.")
    return tuple(name for name in TASK_TYPES if name in names)
