"""Passages: reading a corpus, storing it for random access, and what a search returns."""

import hashlib
import json
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agentrl.common.fields import find_packed, fold, is_missing, pick, text_of
from agentrl.common.rows import read_rows
from agentrl.retriever.retrieval_errors import CorpusError, IndexFolderError

ID_COLUMNS = ("id", "_id", "docid", "doc_id", "document_id", "pid", "passage_id", "idx")
TEXT_COLUMNS = ("text", "content", "body", "passage", "paragraph", "document", "abstract")
"""Where a passage's text stands, with or without a `title`, in corpora that have no `contents`."""


class Hit(NamedTuple):
    """One retrieved passage.

    id: the passage's own id. contents: `"Title"\\ntext` (Search-R1's form). score: higher is better.
    """

    id: str
    contents: str
    score: float

    @property
    def title(self) -> str:
        """The first line of the contents, quotes kept as they are."""
        return self.contents.split("\n", 1)[0]

    @property
    def text(self) -> str:
        """Everything after the first line."""
        return self.contents.partition("\n")[2]


def read_corpus(path: Path) -> Iterator[tuple[str, str]]:
    """Yield `(id, contents)` of a corpus: Search-R1's `id` and `contents`, or `title` and `text`.

    The file may be of any format of `agentrl.common.rows`, as passage retrieval's table of Wikipedia; with another
    ending, or none, it is taken for JSON lines. Names match whatever their case, and those of other tools are known
    (`_id`, `docid`, `content`, ...); fields that are no text are read or refused by the rule of
    `agentrl.common.fields`. A passage without an id gets its row's number.

    Raises:
        CorpusError: the file is missing, or a row is no passage; a passage without text, or with nothing but a title,
            is an error too, because it would end up, empty, in a training sample.
        MissingExtraError: a Parquet file, and pyarrow is not installed.
    """
    found = find_packed(path)
    if found is None:
        raise CorpusError(f"no corpus at {path}; expected JSON lines such as " + '{"id": "0", "contents": "..."}')
    for row, (place, fields) in enumerate(read_rows(found, extra="search", error=CorpusError, otherwise=".jsonl")):
        yield _parse_passage(fields, where=f"{path}, {place}", row=row)


def _parse_passage(fields: Mapping[str, Any], *, where: str, row: int) -> tuple[str, str]:
    folded = fold(fields)
    try:
        contents, passage_id = _contents(folded), text_of(pick(folded, ID_COLUMNS))
    except TypeError as error:
        raise CorpusError(f"{where}: {error}, in {str(fields)[:120]}") from error
    if contents is None:
        raise CorpusError(f"{where}: expected an object with {_EXPECTED}, got {str(fields)[:120]}")
    _, has_title, text = contents.partition("\n")
    if not contents.strip(' \t\r\n"') or (has_title and not text.strip()):
        raise CorpusError(f"{where}: the passage is empty. Remove the row or give it a text.")
    try:
        contents.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(f"{where}: the text holds a lone surrogate, which is no character: {error}") from error
    return passage_id or str(row), contents


_EXPECTED = '"contents" (or "title" and "text")'


def _contents(row: Mapping[str, Any]) -> str | None:
    """`"Title"\\ntext` of a folded row, or the text alone where it has no title; None where it has no such field."""
    if "contents" not in row and not any(name in row for name in TEXT_COLUMNS):
        return None
    contents = row["contents"] if "contents" in row else pick(row, TEXT_COLUMNS)
    if isinstance(contents, int | float) and not is_missing(contents):
        return None
    text = contents if isinstance(contents, str) else text_of(contents, join="\n" if "contents" in row else " ")
    title = "" if "contents" in row else row.get("title")
    title = title if isinstance(title, str) else text_of(title)
    return f'"{title}"\n{text}' if title.strip() else text


class Passages:
    """Random access to passages by row: `passages[row] -> (id, contents)`."""

    def __init__(self, rows: Sequence[tuple[str, str]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> tuple[str, str]:
        return self._rows[row]


class PassageFile(Passages):
    """Passages in a folder written by `write_passages`, memory-mapped: processes share the pages."""

    def __init__(self, folder: Path) -> None:
        self._offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        with (folder / "passages.jsonl").open("rb") as stream:
            self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        if len(self._bytes) != int(self._offsets[-1]):
            raise IndexFolderError(
                f"{folder}/passages.jsonl holds {len(self._bytes)} bytes, its offsets expect {int(self._offsets[-1])}. "
                "The folder is damaged: build it again."
            )

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> tuple[str, str]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} passages")
        fields = json.loads(self._bytes[int(self._offsets[row]) : int(self._offsets[row + 1])])
        return fields["id"], fields["contents"]


def digest_passages(passages: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of the file that `write_passages` writes, however the corpus was packed.

    >>> digest_passages([("0", "a text")])[:12]
    '62fa029cc376'
    """
    digest = hashlib.sha256()
    for passage in passages:
        digest.update(_stored_line(passage))
    return digest.hexdigest()


def _stored_line(passage: tuple[str, str]) -> bytes:
    return json.dumps({"id": passage[0], "contents": passage[1]}, ensure_ascii=False).encode() + b"\n"


def write_passages(passages: Iterable[tuple[str, str]], folder: Path) -> tuple[int, str]:
    """Write `passages.jsonl` and `offsets.npy`; return the number of passages and the SHA-256 of the file.

    Memory is bounded: eight bytes a passage.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digest, offsets = hashlib.sha256(), [np.zeros(1, np.int64)]
    lengths: list[int] = []
    with (folder / "passages.jsonl").open("wb") as stream:
        for passage in passages:
            line = _stored_line(passage)
            stream.write(line)
            digest.update(line)
            lengths.append(len(line))
            if len(lengths) == 1 << 16:
                offsets.append(np.array(lengths, np.int64))
                lengths.clear()
    offsets.append(np.array(lengths, np.int64))
    ends = np.concatenate(offsets).cumsum()
    if len(ends) == 1:
        raise CorpusError("the corpus holds no passage")
    np.save(folder / "offsets.npy", ends)
    return len(ends) - 1, digest.hexdigest()
