"""Games packed into one file: a zip archive in which texts that games share are stored once.

`index.json` lists the games and the shared domain and grammar texts; `<name>.json` holds a game's task sentence,
problem and walkthrough. Opening reads the index only; a game is read when it is first played.
"""

import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from agentrl.envs.alfworld.official import TASK_SENTENCE, FileGames, category_of, check_version, game_digest
from agentrl.envs.env_errors import DataError

_FORMAT = "alfworld games, packed"
_VERSION = 2
_INDEX = "index.json"
_PLACEHOLDER = "Your task is to: UNKNOWN GOAL"
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # the same games give the same file, byte for byte


def write_pack(
    games: Iterable[tuple[str, Mapping[str, Any]]], target: Path, *, on_game: Callable[[], None] = lambda: None
) -> int:
    """Write (name, content) pairs to a packed file; returns how many. The file appears only when it is whole."""
    shared: list[tuple[str, str]] = []
    listed: list[tuple[str, int]] = []
    digests: dict[str, str] = {}
    temporary = target.with_name(f"{target.name}.part")
    try:
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, data in games:
                texts, own = _divide(data)
                if texts not in shared:
                    shared.append(texts)
                listed.append((name, shared.index(texts)))
                digests[name] = game_digest(name, data).hex()
                _add(archive, f"{name}.json", own)
                on_game()
            index = {
                "format": _FORMAT,
                "version": _VERSION,
                "shared": shared,
                "games": sorted(listed),
                "digests": digests,
            }
            _add(archive, _INDEX, index)
        if not listed:
            raise DataError("there is no game to pack.")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return len(listed)


def _divide(data: Mapping[str, Any]) -> tuple[tuple[str, str], dict[str, Any]]:
    """A game's content as (domain, grammar with a placeholder) and what is its own."""
    task = TASK_SENTENCE.search(data["grammar"])
    assert task is not None
    grammar = data["grammar"].replace(task.group(0), _PLACEHOLDER)
    own = {"task": task.group(0), "pddl_problem": data["pddl_problem"], "walkthrough": data["walkthrough"]}
    return (data["pddl_domain"], grammar), own


def _add(archive: zipfile.ZipFile, name: str, content: Mapping[str, Any]) -> None:
    info = zipfile.ZipInfo(name, _EARLIEST)
    info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    archive.writestr(info, json.dumps(content, ensure_ascii=False))


class _Pack:
    """An opened packed file; one per process, for a file handle must not be shared between processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
            index = json.loads(self._archive.read(_INDEX))
        except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
            raise DataError(
                f"{path}: expected a packed ALFWorld file, which it is not, or it is damaged ({error}). "
                "Make one with: python -m agentrl.envs.alfworld pack FOLDER_OR_TAR FILE"
            ) from error
        if index.get("format") != _FORMAT or index.get("version") != _VERSION:
            raise DataError(f"{path}: packed by another version of this package; pack the games again.")
        self._shared: list[list[str]] = index["shared"]
        self.shared_of: dict[str, int] = dict(index["games"])
        self.digests = {name: bytes.fromhex(digest) for name, digest in index["digests"].items()}

    def texts_of(self, name: str) -> dict[str, str]:
        """The domain and the grammar (with a placeholder for the task) of a game."""
        domain, grammar = self._shared[self.shared_of[name]]
        return {"pddl_domain": domain, "grammar": grammar}

    def read(self, name: str) -> dict[str, Any]:
        """The content of a game's file; raises `DataError` where it is damaged."""
        try:
            own = json.loads(self._archive.read(f"{name}.json"))
            texts = self.texts_of(name)
            texts["grammar"] = texts["grammar"].replace(_PLACEHOLDER, own["task"])
            data = texts | {"pddl_problem": own["pddl_problem"], "solvable": True, "walkthrough": own["walkthrough"]}
        except (OSError, zipfile.BadZipFile, KeyError, ValueError, zlib.error) as error:
            raise DataError(f"{self.path}: the game {name} is damaged ({error}); pack the games again.") from error
        return data


@lru_cache(maxsize=8)
def _opened(path: Path, process: int) -> _Pack:
    return _Pack(path)


def open_pack(path: Path, split: str, *, grammar: str, task_types: Sequence[str]) -> FileGames:
    """The games of one split in a packed file; raises `DataError` as `open_folder` does."""
    pack = _opened(path, os.getpid())
    of_split = [name for name in pack.shared_of if name.startswith(f"{split}/")]
    if not of_split:
        raise DataError(f"{path}: expected the split {split!r}, found {', '.join(splits_of_pack(path))}.")
    names = [name for name in of_split if category_of(name) in task_types]
    if not names:
        raise DataError(f"{path}: expected games of the task types asked for, found none.")
    for name in {pack.shared_of[name]: name for name in names}.values():
        check_version(pack.texts_of(name), grammar=grammar, where=str(path))
    return FileGames(names, lambda name: _opened(path, os.getpid()).read(name), digests=pack.digests, where=str(path))


def splits_of_pack(path: Path) -> list[str]:
    """The splits in a packed file."""
    return sorted({name.split("/")[0] for name in _opened(path, os.getpid()).shared_of})
