"""Shops in a folder: built once in bounded memory, then mapped by any number of processes.

products.jsonl      one product a line            offsets.npy, prices.npy
index/              arrays of `LexicalIndex`        goals/KIND/   arrays of `goals.GoalTable`
shop.json           written last: a folder without it is unfinished, and unfinished.txt says what it will be
"""

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import islice
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, overload

import numpy as np

from agentrl.common.data_source import DataSource
from agentrl.common.progress import track
from agentrl.envs.env_errors import DataError
from agentrl.envs.webshop.goals import KINDS, GoalTable
from agentrl.envs.webshop.products import Product, from_json, to_json
from agentrl.envs.webshop.shop import Shop, ShopBuilder
from agentrl.retriever.lexical.bm25 import LexicalIndex

VERSION = 2
DESCRIPTION = "shop.json"
_UNFINISHED = "unfinished.txt"
_KEPT_PRODUCTS = 1024  # decoded products a process keeps


class StoredProducts(Sequence[Product]):
    """The products of a built shop, decoded when asked for."""

    def __init__(self, folder: Path) -> None:
        self._offsets = np.load(folder / "offsets.npy", mmap_mode="r").view(np.ndarray)
        with (folder / "products.jsonl").open("rb") as file:
            self._lines = mmap(file.fileno(), 0, access=ACCESS_READ)
        self._kept = lru_cache(maxsize=_KEPT_PRODUCTS)(self._decode)

    def _decode(self, number: int) -> Product:
        return from_json(self._lines[self._offsets[number] : self._offsets[number + 1]])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, number: int) -> Product: ...
    @overload
    def __getitem__(self, number: slice) -> list[Product]: ...
    def __getitem__(self, number: int | slice) -> Product | list[Product]:
        if isinstance(number, slice):
            return [self[place] for place in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self._kept(number)


def build_store(
    products: Iterable[Product], folder: Path, *, name: str, total: int | None, price_seed: int = 0,
    kind: str = "files", sha256: str | None = None,
) -> None:  # fmt: skip
    """Build a shop into a folder.

    An interrupted build goes on where it was when called again with the same products: products already written are
    skipped in the input. `kind` and `sha256` are those of the products' `DataSource`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / DESCRIPTION).exists():
        raise DataError(f"{folder} already holds a shop. Delete it, or build into another folder.")
    _check_same_build(folder, f"{name}, price seed {price_seed}")
    lines = folder / "products.jsonl"
    num_written = _drop_partial_line(lines)
    with lines.open("ab") as file:
        for product in track(
            islice(products, num_written, None), description="Products", total=_minus(total, num_written)
        ):
            file.write(to_json(product).encode("utf-8", "surrogatepass") + b"\n")
    builder, offsets = ShopBuilder(kinds=KINDS, folder=folder / "index"), [0]
    with lines.open("rb") as file:
        for line in track(file, description="LexicalIndex", total=total):
            builder.add(from_json(line))
            offsets.append(offsets[-1] + len(line))
    prices, _, goals = builder.finish(price_seed=price_seed)
    np.save(folder / "offsets.npy", np.array(offsets, np.int64))
    np.save(folder / "prices.npy", prices)
    for kind, table in goals.items():
        table.save(folder / "goals" / kind)
    description = {
        "version": VERSION,
        "name": name,
        "kind": kind,
        "sha256": sha256,
        "price_seed": price_seed,
        "num_products": len(prices),
        "num_goals": {kind: len(table) for kind, table in goals.items()},
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
    (folder / _UNFINISHED).unlink()


def _check_same_build(folder: Path, build: str) -> None:
    """Note what is being built, or compare with the note of an interrupted build."""
    note = folder / _UNFINISHED
    if note.exists() and note.read_text() != build:
        raise DataError(
            f"{folder} holds a part of another build ({note.read_text()}). Delete it, or use another folder."
        )
    note.write_text(build)


def _minus(total: int | None, done: int) -> int | None:
    return None if total is None else total - done


def _drop_partial_line(path: Path) -> int:
    """Number of whole lines in a file; what follows the last one is cut off."""
    if not path.exists():
        return 0
    num_lines = end = position = 0
    with path.open("r+b") as file:
        for line in file:
            position += len(line)
            if line.endswith(b"\n"):
                num_lines, end = num_lines + 1, position
        file.truncate(end)
    return num_lines


def is_store(folder: Path) -> bool:
    """Whether a folder holds a built shop."""
    return (folder / DESCRIPTION).is_file()


def open_store(folder: Path, *, kind: str, price_seed: int | None = None, num_products: int | None = None) -> Shop:
    """Map a built shop into memory; a seed or number that is given must be the one it was built with."""
    description = _read_description(folder)
    for name, wanted in (("price_seed", price_seed), ("num_products", num_products)):
        if wanted not in (None, description[name]):
            raise DataError(
                f"the shop at {folder} was built with {name} {description[name]}, not {wanted}. "
                f"Build another one, or leave {name} out."
            )
    if kind not in description["num_goals"]:
        raise DataError(f"the shop at {folder} has no {kind} goals, only {', '.join(description['num_goals'])}.")
    return Shop(
        name=description["name"],
        products=StoredProducts(folder),
        prices=np.load(folder / "prices.npy", mmap_mode="r").view(np.ndarray),
        index=LexicalIndex.open(folder / "index"),
        goals=GoalTable.open(folder / "goals" / kind),
        kind=kind,
        source=_source_of(description),
    )


def _source_of(description: dict[str, Any]) -> DataSource:
    """Where the products come from; shops built before this was noted are somebody's files."""
    return DataSource(
        description.get("kind", "files"), description["num_products"], description.get("sha256"), description["name"]
    )


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    try:
        description: dict[str, Any] = json.loads(path.read_text())
        version = description["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error}. Build the shop again.") from error
    if version != VERSION:
        raise DataError(f"{path} has version {version}, expected {VERSION}. Build the shop again.")
    return description
