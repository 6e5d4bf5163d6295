"""The official data files: where they are, whether they are what their names say, and how to read them."""

import hashlib
import json
import lzma
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from agentrl.common.fields import find_packed, open_binary, open_text, plain_name
from agentrl.envs.env_errors import DataError

_HELP = "The README of princeton-nlp/WebShop says how to obtain the files."
FULL_SIZE = 1_181_436  # records of the full catalogue
_CHUNK = 1 << 24  # characters of JSON read at a time
# of each official file, then of reconstructed ones: the small catalogue without unused keys, the human requests for it
KNOWN_SUMS: dict[str, tuple[str, ...]] = {
    "items_shuffle_1000.json": (
        "30a4765c3a327af72d9a9a95a6b2486d516f0fa1d3ecd83681901ce82a21b269",
        "3eadd200a647426d358a500a99c5c7ce3ca73f34ee3490dfc7321b31cbeeea83",
    ),
    "items_ins_v2_1000.json": ("f88a36314a397b53b3d9c3fa5878e5f7b26d35019a51ec83fbedeca61a948f6f",),
    "items_shuffle.json": ("2ef591d65df3af89e972ab72468eb82cbf124d876552d9f3678667edd620a6c8",),
    "items_ins_v2.json": ("1d36af476bdb8f82a5da62bd8acdabe54cd8de2fa84010d37da5c4890feb447e",),
    "items_human_ins.json": (
        "cf78667548a71786e1d9049c24b802e48e1084ad4bb021cae56ce1f6d96954a3",
        "bdd25a68795e698df35b4e9c6eed05cb62fb47ad6a2f4dea914fee69ebc0f694",
    ),
}


@dataclass(frozen=True)
class OfficialFiles:
    """The files of one catalogue, packed or not."""

    products: Path
    notes: Path
    human: Path | None

    @property
    def is_full(self) -> bool:
        """Whether this is the catalogue of 1.18 million products."""
        return plain_name(self.products) == "items_shuffle.json"

    @property
    def used(self) -> list[Path]:
        """Those that there are."""
        return [path for path in (self.products, self.notes, self.human) if path is not None]


def find_files(folder: Path, *, num_products: int | None = None, needs_human: bool | None = None) -> OfficialFiles:
    """The files to read from a folder: the small catalogue where it suffices, else the full one.

    The human requests are left out, wanted, or (None) taken where they are.
    """
    if not folder.is_dir():
        raise DataError(
            f"no data folder at {folder}. Give a folder with items_shuffle_1000.json or a built shop. {_HELP}"
        )
    human = folder / "items_human_ins.json"
    for suffix in ("_1000", ""):
        products = find_packed(folder / f"items_shuffle{suffix}.json")
        if products is None or (suffix and (num_products or 0) > 1000):
            continue
        notes, requests = find_packed(folder / f"items_ins_v2{suffix}.json"), find_packed(human)
        missing = [] if notes else [f"items_ins_v2{suffix}.json"]
        missing += [human.name] if needs_human and requests is None else []
        if notes is None or missing:
            raise DataError(f"{folder} has {products.name} but not {missing[0]}, which belongs to it. {_HELP}")
        return OfficialFiles(products, notes, requests if needs_human is not False else None)
    raise DataError(f"{folder} has neither items_shuffle_1000.json nor items_shuffle.json. {_HELP}")


def check_sum(path: Path) -> None:
    """Raise `DataError` where a file of an official name has other content."""
    found, known = unpacked_sum(path), KNOWN_SUMS[plain_name(path)]
    if found not in known:
        raise DataError(
            f"{path} is not the official file of that name: its sha256 is {found}, expected "
            f"{known[0]}. Download it again, or use it as it is: verify=False, --no-verify. {_HELP}"
        )


def are_official(files: OfficialFiles) -> bool:
    """Whether all files are, byte for byte, the published ones."""
    return all(unpacked_sum(path) == KNOWN_SUMS[plain_name(path)][0] for path in files.used)


def unpacked_sum(path: Path) -> str:
    """SHA-256 of a file's unpacked content; a file of the same size and time is not read again."""
    state = path.stat()
    return _unpacked_sum(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _unpacked_sum(path: Path, size: int, changed: int) -> str:
    with open_binary(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def read_mapping(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    try:
        with open_text(path) as file:
            content = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path} is not whole: {error}. Download it again. {_HELP}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a JSON object, found a {type(content).__name__}. {_HELP}")
    return content


def read_records(path: Path) -> Iterator[Mapping[str, Any]]:
    """The elements of a JSON array, one at a time: the full file would take tens of gigabytes at once."""
    decoder = json.JSONDecoder()
    with open_text(path) as file:
        buffer, position, is_last = file.read(_CHUNK).lstrip(), 1, False
        if not buffer.startswith("["):
            raise DataError(f"{path} must hold a JSON array, found {buffer[:20]!r}. {_HELP}")
        while True:
            position = _skip(buffer, position)
            if buffer[position : position + 1] == "]":
                return
            try:
                record, position = decoder.raw_decode(buffer, position)
            except json.JSONDecodeError as error:
                # the element may only be cut off by the end of the buffer
                if is_last:
                    raise DataError(f"{path} is not whole: {error}. Download it again. {_HELP}") from error
                more = file.read(_CHUNK)
                buffer, position, is_last = buffer[position:] + more, 0, not more
                continue
            yield record


def _skip(buffer: str, position: int) -> int:
    """Past blanks and commas between elements."""
    while buffer[position : position + 1] in (" ", "\n", "\r", "\t", ","):
        position += 1
    return position
