"""The archive that the official games are published as, played without unpacking it (`json_2.1.3_tw-pddl.zip`)."""

import os
import zipfile
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from agentrl.envs.alfworld.official import (
    GAME_FILE,
    SPLITS,
    FileGames,
    game_name,
    parse_game_file,
    playable_games,
)
from agentrl.envs.env_errors import DataError


class _Archive:
    """An opened archive; one per process, for a file handle must not be shared between processes."""

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, zipfile.ZipFile(path)
        self.members = {name: member for member in sorted(self._file.namelist()) if (name := game_name(member))}

    def read(self, name: str) -> dict[str, Any]:
        """The checked content of a game's file; raises `DataError` for a damaged one."""
        where = f"{self.path}, {self.members[name]}"
        try:
            return parse_game_file(self._file.read(self.members[name]), where=where)
        except (OSError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{where}: cannot be read ({error}). Download the archive again.") from error


@lru_cache(maxsize=8)
def _opened(path: Path, process: int) -> _Archive:
    return _Archive(path)


@lru_cache(maxsize=8)
def is_archive(path: Path) -> bool:
    """Whether a file is a zip archive with game files in it, as they are published."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any(name.endswith(f"/{GAME_FILE}") for name in file.namelist())


def archived_games(path: Path) -> dict[str, str]:
    """Name of each game that ALFWorld plays -> its member of the archive."""
    return _opened(path, os.getpid()).members


def read_archived(path: Path, name: str) -> dict[str, Any]:
    """The checked content of a game; raises `DataError` for a damaged one."""
    return _opened(path, os.getpid()).read(name)


def open_archive(path: Path, split: str, *, grammar: str, task_types: Sequence[str]) -> FileGames:
    """The games of one split in an archive; raises `DataError` as `open_folder` does."""
    names = [name for name in archived_games(path) if name.startswith(f"{split}/")]
    if not names:
        raise DataError(f"{path}: expected the split {split!r}, found {', '.join(splits_of_archive(path)) or 'none'}.")
    return playable_games(
        names, lambda name: read_archived(path, name), grammar=grammar, task_types=task_types, where=f"{path}, {split}"
    )


def splits_of_archive(path: Path) -> list[str]:
    """The splits in an archive."""
    found = {name.split("/")[0] for name in archived_games(path)}
    return [split for split in SPLITS if split in found]
