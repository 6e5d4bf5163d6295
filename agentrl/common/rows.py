"""Rows of data files as people publish them, plain or compressed (.gz, .bz2, .xz).

| ending | rows |
|---|---|
| .jsonl | an object a line |
| .json | a list of objects, or an object that holds one (as `data` in any case, else as its only list), or lines |
| .csv, .tsv | cells under a header; in .csv a tab, comma or semicolon between them, as in the first line |
| .parquet | its rows; not compressed once more |

What the fields hold is another matter: `agentrl.common.fields`.
"""

import csv
import io
import json
import lzma
import zlib
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from agentrl.common.extras import MissingExtraError
from agentrl.common.fields import PACKED, fold, open_text, plain_name, read_lines
from agentrl.errors import UserError

ENDINGS = (*(kind + packed for kind in (".jsonl", ".json", ".csv", ".tsv") for packed in PACKED), ".parquet")
"""Of files that can be read, in lower case."""
_WITHOUT_HEADER = ("question", "answer")
_LONGEST_CELL = 1 << 24  # characters

Row = dict[str, Any]


def read_rows(
    path: Path, *, extra: str, error: type[ValueError] = UserError, header: Collection[str] = (), otherwise: str = ""
) -> Iterator[tuple[str, Row]]:
    """Where each row of a file stands (`line 3`, `row 3`), and the row; what the file holds is told by its ending.

    Args:
        path: of the file.
        extra: of this distribution, which brings what reads Parquet; for the message where it is missing.
        error: what to raise where the file cannot be read.
        header: names in lower case of which a table's header has at least one, so that a first row without any is
            taken for a question and its answer; by default every table has a header.
        otherwise: the ending that counts where a file has none of `ENDINGS`; by default such a file is refused.

    Raises:
        ValueError: as `error`; the file is damaged, or of another kind than its ending says.
        MissingExtraError: a Parquet file, and pyarrow is not installed.
    """
    kind = Path(plain_name(path)).suffix.lower()
    if kind not in ENDINGS:
        kind = otherwise
    if not kind:
        raise error(f"{path} should end in one of {', '.join(ENDINGS)}.")
    try:
        if kind == ".parquet":
            yield from _numbered(_parquet_rows(path, extra))
            return
        with open_text(path) as stream:
            if kind == ".json":
                yield from _json_rows(stream.read())
            elif kind == ".jsonl":
                yield from _json_lines(stream)
            else:
                yield from _numbered(_table_rows(stream, is_tsv=kind == ".tsv", header=header))
    except MissingExtraError:
        raise
    except _ShapeError as found:
        raise error(f"{path}{found}") from found.__cause__
    except (OSError, EOFError, lzma.LZMAError, zlib.error, csv.Error, ValueError) as found:
        raise error(
            f"{path} cannot be read as {kind[1:]}: {found}. Is it complete, and of the format that its name says?"
        ) from found


class _ShapeError(Exception):
    """What was expected and what came, with its place in the file."""


def _numbered(rows: Iterable[Row]) -> Iterator[tuple[str, Row]]:
    return ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def _json_rows(text: str) -> Iterator[tuple[str, Row]]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        return _json_lines(io.StringIO(text))
    rows = content
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        rows = fold(content).get("data", lists[0] if len(lists) == 1 else content)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _ShapeError(f": expected a JSON list of objects, or an object that holds one, got {str(content)[:60]!r}.")
    return _numbered(rows)


def _json_lines(stream: io.TextIOBase) -> Iterator[tuple[str, Row]]:
    for number, line in read_lines(stream):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise _ShapeError(f", line {number}: expected a JSON object, got {line[:60]!r} ({error}).") from error
        if not isinstance(row, dict):
            raise _ShapeError(f", line {number}: expected a JSON object, got {type(row).__name__} {line[:60]!r}.")
        yield f"line {number}", row


def _table_rows(stream: io.TextIOBase, *, is_tsv: bool, header: Collection[str]) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_CELL)
    head = stream.readline()
    # Passage retrieval's question files are called .csv and hold tabs.
    delimiter = "\t" if is_tsv else next((mark for mark in "\t,;" if mark in head), ",")
    cells: Iterator[list[str]] = csv.reader(chain([head], stream), delimiter=delimiter)
    names = next(cells, [])
    if header and not any(name.strip().lower() in header for name in names):
        cells, names = chain([names], cells), list(_WITHOUT_HEADER)
    for number, row in enumerate(cells, start=1):
        if any(row[len(names) :]):
            raise _ShapeError(
                f", row {number}: expected {len(names)} cells ({', '.join(names)}), got {len(row)}: "
                f"{delimiter.join(row)[:100]!r}. Quote a cell that holds the delimiter."
            )
        if row:
            yield dict(zip(names, row, strict=False))


def _parquet_rows(path: Path, extra: str) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", extra, "reading Parquet files") from error
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except ArrowException as error:
        raise ValueError(str(error)) from error
