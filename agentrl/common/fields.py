"""What the fields of other people's data files hold, and what it counts as: one rule for questions, corpora, problems.

| a field holds | as one text (`text_of`) | as several (`texts_of`) |
|---|---|---|
| text | itself | one, unless it spells a list |
| null, NaN, infinity, blank text, an empty list | "" | none |
| a number | its decimal digits: `27.0` is `27`, `1e-05` is `0.00001` | one |
| a date | ISO 8601 | one |
| a list, nested or not | its texts, joined | its texts |
| an object | its `text`, `content` or `value` | those, and its aliases |
| text that spells a list of texts or objects (JSON, Python's or NumPy's repr) | as that list | as that list |
| true and false, other objects, bytes | refused (`TypeError`) | refused |

Never becomes a repr what is no text. Names of fields match whatever their case (`pick`), byte order marks are read
(`open_text`).
"""

import ast
import bz2
import codecs
import datetime
import gzip
import io
import json
import lzma
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAID_IN = ("text", "content", "value")
_ALSO_SAID_IN = ("answer", "target", "aliases", "normalizedaliases", "normalized_aliases", "answer_aliases",
                 "humananswers", "human_answers")  # fmt: skip
_SPELLED = re.compile(r"[\[({].*[\])}]", re.DOTALL)
_ARRAY = re.compile(r"array\((\[.*\])\s*(?:,\s*dtype=[\w.<>'\"]+)?\s*\)", re.DOTALL)
_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_NUMPY = re.compile(rf"\[\s*(?:{_QUOTED})(?:\s+(?:{_QUOTED}))*\s*\]", re.DOTALL)
_LONGEST_SPELLED = 100_000  # characters


PACKED = ("", *_OPENERS)
"""Endings that follow a file's own: none, or that of a compression."""


def find_packed(path: Path) -> Path | None:
    """The file itself, else a compressed copy beside it (`NAME.gz`, `.bz2`, `.xz`); None where there is neither."""
    copies = [path.with_name(path.name + ending) for ending in PACKED]
    return next((copy for copy in copies if copy.is_file()), None)


def plain_name(path: Path) -> str:
    """A file's name without the ending of its compression.

    >>> plain_name(Path("items.json.xz"))
    'items.json'
    """
    return path.stem if path.suffix.lower() in _OPENERS else path.name


def open_binary(path: Path) -> BinaryIO:
    """Open a file, plain or compressed (.gz, .bz2, .xz), for its unpacked bytes."""
    stream: BinaryIO = _OPENERS.get(path.suffix.lower(), open)(path, "rb")
    return stream


def open_text(path: Path) -> io.TextIOBase:
    """Open a text file, plain or compressed (.gz, .bz2, .xz): UTF-8, or what its byte order mark says."""
    opener = _OPENERS.get(path.suffix.lower(), open)
    with opener(path, "rb") as stream:
        head = stream.read(4)
    encoding = next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")
    stream = opener(path, "rt", encoding=encoding, newline="")
    assert isinstance(stream, io.TextIOBase)
    return stream


def read_lines(stream: Iterator[str] | io.TextIOBase) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of the lines that are not blank; marks between joined files are taken away."""
    for number, line in enumerate(stream, start=1):
        if line := line.lstrip("\ufeff").strip():
            yield number, line


def fold(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with lower-case names; of two names that differ in case only, the first one that holds something."""
    folded: dict[str, Any] = {}
    for name, value in row.items():
        key = str(name).strip().lower()
        if is_missing(folded.get(key)):
            folded[key] = value
    return folded


def pick(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The value of the first of `names` that holds something in a folded row; None where none does."""
    return next((row[name] for name in names if not is_missing(row.get(name))), None)


def is_missing(value: Any) -> bool:
    """Whether a field holds nothing: null, NaN, infinity, blank text, an empty list or object."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, list | tuple | dict | set) and not value)


def text_of(value: Any, *, join: str = " ") -> str:
    """One text; see the table above.

    >>> text_of(["Jo has 8 bats.", None, 3.0])
    'Jo has 8 bats. 3'

    Raises `TypeError` for what is no text.
    """
    value = read_spelled(value)
    if isinstance(value, list | tuple | set):
        return join.join(filter(None, (text_of(item, join=join) for item in value)))
    if isinstance(value, Mapping):
        folded = fold(value)
        if folded.keys().isdisjoint(_SAID_IN):
            raise TypeError(f"expected a text, got an object with {_names(value)}")
        return text_of(pick(folded, _SAID_IN), join=join)
    return _scalar_text(value)


def texts_of(value: Any) -> list[str]:
    """Every text in a value, in order; see the table above.

    >>> texts_of("['politician' 'leader']"), texts_of({"value": "Ann", "Aliases": ["Miss A", None]})
    (['politician', 'leader'], ['Ann', 'Miss A'])

    Raises `TypeError` for what is no text.
    """
    value = read_spelled(value, of_numbers=True)
    if isinstance(value, list | tuple | set):
        return [text for item in value for text in texts_of(item)]
    if isinstance(value, Mapping):
        folded = fold(value)
        said = [folded[name] for name in (*_SAID_IN, *_ALSO_SAID_IN) if name in folded]
        if not said:
            raise TypeError(f"expected a text or its aliases, got an object with {_names(value)}")
        return [text for item in said for text in texts_of(item)]
    text = _scalar_text(value)
    return [text] if text else []


def _scalar_text(value: Any) -> str:
    if is_missing(value):
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise TypeError(f"expected a text or a number, got {type(value).__name__} {str(value)[:40]!r}")
    if value == int(value):
        return str(int(value))
    return format(Decimal(repr(value)) if isinstance(value, float) else value, "f")


def _names(value: Mapping[str, Any]) -> str:
    return ", ".join(map(str, value))[:80] or "no field"


def read_spelled(value: Any, *, of_numbers: bool = False) -> Any:
    """The list or object that a text spells, else the value itself.

    Only lists of texts and of objects count (and of numbers where asked for): `(1, 2)` and `[0, 5]` are answers.
    """
    if not isinstance(value, str) or len(value) > _LONGEST_SPELLED:
        return value
    text = value.strip()
    if array := _ARRAY.fullmatch(text):
        text = array[1]
    if not _SPELLED.fullmatch(text):
        return value
    found = _parsed(text)
    if isinstance(found, Mapping):
        return found if fold(found).keys() & {*_SAID_IN, *_ALSO_SAID_IN} else value
    if not isinstance(found, list | tuple | set) or not found:
        return [] if found == [] else value
    kinds = str | Mapping | list | None | (int | float if of_numbers and isinstance(found, list) else str)
    has_text = of_numbers or any(isinstance(item, str | Mapping | list) for item in found)
    return found if has_text and all(isinstance(item, kinds) for item in found) else value


def _parsed(text: str) -> Any:
    if _NUMPY.fullmatch(text):  # no commas between: for Python, one text
        return [ast.literal_eval(item) for item in re.findall(_QUOTED, text, re.DOTALL)]
    for read in (json.loads, ast.literal_eval):
        try:
            return read(re.sub(r"\bnan\b(?=\s*[,\]])", "None", text) if read is ast.literal_eval else text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None
