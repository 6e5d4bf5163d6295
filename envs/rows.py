"""Rows of data files as people publish them, plain or compressed (.gz, .bz2, .xz).

| ending | rows |
|---|---|
| .jsonl | an object a line |
| .json | a list of objects, or an object that holds one: as `data`, whatever its case, else as its only list |
| .csv, .tsv | cells under a header; in .csv a tab, comma or semicolon between them, as in the first line |
| .parquet | its rows; not compressed once more |

What the fields hold is another matter: `agentrl.common.fields`.
"""

import csv
import io
import json
import lzma
import zlib
from collections.abc import Collection, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from agentrl.common.extras import MissingExtraError
from agentrl.common.fields import fold, open_text, read_lines
from agentrl.envs.env_errors import DataError

_PACKED = ("", ".gz", ".bz2", ".xz")
ENDINGS = (*(kind + packed for kind in (".jsonl", ".json", ".csv", ".tsv") for packed in _PACKED), ".parquet")
"""Of files that can be read, in lower case."""
_WITHOUT_HEADER = ("question", "answer")
_LONGEST_CELL = 1 << 24  # characters

Row = dict[str, Any]


def read_rows(path: Path, *, extra: str, header: Collection[str] = ()) -> Iterator[Row]:
    """The rows of a file, in order; what it holds is told by its ending.

    Args:
        path: of the file.
        extra: of this distribution, which brings what reads Parquet; for the message where it is missing.
        header: names in lower case of which a table's header has at least one, so that a first row without any is
            taken for a question and its answer; by default every table has a header.

    Raises:
        DataError: the file is damaged, or of another kind than its ending says.
        MissingExtraError: a Parquet file, and pyarrow is not installed.
    """
    endings = [ending.lower() for ending in path.suffixes if ending.lower() not in _PACKED]
    kind = endings[-1] if endings else ""
    if kind == ".parquet":
        yield from _parquet_rows(path, extra)
        return
    if kind not in ENDINGS:
        raise DataError(f"{path} should end in one of {', '.join(ENDINGS)}.")
    try:
        with open_text(path) as stream:
            if kind == ".json":
                yield from _json_rows(json.load(stream), path)
            elif kind == ".jsonl":
                for number, line in read_lines(stream):
                    yield _json_row(line, path, number)
            else:
                yield from _table_rows(stream, path, is_tsv=kind == ".tsv", header=header)
    except DataError:
        raise
    except (OSError, EOFError, lzma.LZMAError, zlib.error, csv.Error, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as {kind[1:]}: {error}. Is it complete, and of the format that its name says?"
        ) from error


def _json_rows(content: Any, path: Path) -> list[Row]:
    rows = content
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        rows = fold(content).get("data", lists[0] if len(lists) == 1 else content)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(
            f"{path}: expected a JSON list of objects, or an object that holds one, got {str(content)[:60]!r}."
        )
    return rows


def _json_row(line: str, path: Path, number: int) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number}: expected a JSON object, got {line[:60]!r} ({error}).") from error
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__} {line[:60]!r}.")
    return row


def _table_rows(stream: io.TextIOBase, path: Path, *, is_tsv: bool, header: Collection[str]) -> Iterator[Row]:
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
            raise DataError(
                f"{path}, row {number}: expected {len(names)} cells ({', '.join(names)}), got {len(row)}: "
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
    except (OSError, ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}.") from error
