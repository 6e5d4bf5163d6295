"""What an environment's tasks are: generated, official, or somebody's files; named beside every success rate."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from agentrl.errors import UserError

KINDS = ("generated", "official", "files")
PLACES = ("data", "data_dir", "retriever", "timeout_s", "patience_s", "tokenizer", "expert")
"""Options of environments that say where data lie or how long to wait, not what is played."""


@dataclass(frozen=True)
class DataSource:
    """Where the tasks of one split come from.

    An environment says so by an attribute `data_source`: one of these, or a mapping with its fields.
    """

    kind: str
    """`generated`; `official`, where the digest is that of the published set; `files` of any other content."""
    count: int
    """Tasks."""
    sha256: str | None = None
    """Of the content (`content_digest`), whatever file or archive holds it; None of generated tasks."""
    about: str = ""
    """What the tasks are played on: a catalogue, a corpus."""

    @classmethod
    def of(cls, told: Any) -> "DataSource | None":
        """What an environment's attribute tells; None where it has none.

        Raises:
            UserError: it tells something else.
        """
        if told is None or isinstance(told, cls):
            return told
        table = told if isinstance(told, Mapping) else {}
        if table.keys() - cls.__annotations__.keys() or table.get("kind") not in KINDS or "count" not in table:
            raise UserError(
                f"the environment's data_source should be a mapping with kind ({', '.join(KINDS)}) and count, perhaps "
                f"sha256 and about; got {str(told)[:80]!r}."
            )
        return cls(**table)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def name_of(self, split: str) -> str:
        """A split's name for titles: that of a published split is never given to generated tasks.

        >>> DataSource("generated", 240).name_of("valid_seen"), DataSource("official", 140).name_of("valid_seen")
        ('generated valid_seen', 'valid_seen')
        """
        return f"generated {split}" if self.kind == "generated" else split

    def __str__(self) -> str:
        """`official, 140 tasks, sha256 1f3a5c7e9b2d`."""
        kind = "own files" if self.kind == "files" else self.kind
        digest = f"sha256 {self.sha256[:12]}" if self.sha256 else ""
        return ", ".join(filter(None, (kind, f"{self.count:,} tasks", digest, self.about)))


def with_kinds(name: str, sources: Iterable[DataSource | None]) -> str:
    """A folder's name with the kinds of its tasks, so that generated ones are taken for no others.

    >>> with_kinds("quickstart", [DataSource("generated", 240), None]), with_kinds("mine", [None])
    ('quickstart-generated', 'mine')
    """
    kinds = sorted({source.kind for source in sources if source} - {*name.split("-")})
    return "-".join((name, *kinds))


def tasks_of(record: Mapping[str, Any]) -> str:
    """What an evaluation's record (`eval/split`, `eval/data`) says was played.

    >>> tasks_of({"eval/split": "generated test", "eval/data": {"kind": "generated", "count": 500}})
    'generated test (generated, 500 tasks)'
    """
    source = DataSource.of(record.get("eval/data"))
    return f"{record.get('eval/split', '')} {f'({source})' if source else ''}".strip()


def content_digest(rows: Iterable[Iterable[str]]) -> str:
    """SHA-256 that names the rows of a set, whatever their order and the file that holds them (`row_digest`)."""
    return whole_digest(map(row_digest, rows))


def row_digest(fields: Iterable[str]) -> bytes:
    """SHA-256 of a row's fields, each ended by a zero byte."""
    digest = hashlib.sha256()
    for field in fields:
        digest.update(field.encode("utf-8", "surrogatepass") + b"\0")
    return digest.digest()


def whole_digest(rows: Iterable[bytes]) -> str:
    """SHA-256 of the sorted digests of rows."""
    return hashlib.sha256(b"".join(sorted(rows))).hexdigest()
