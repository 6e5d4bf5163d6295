"""All stored episodes of a run or an evaluation: an index for searching and filtering, and pieces loaded as needed.

The page holds the index; a piece of up to a hundred episodes comes from a script file beside the page (browsers let no
page opened from a disk read anything else), from the live page's server, or out of the page itself where all are small.
"""

import base64
import gzip
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from agentrl.runs.folder import episode_files, read_episodes

UNFINISHED = "\ufffd"
"""Stands for a token that is only a part of a character: every token can be seen and asked for its log-prob."""
Record = dict[str, Any]
"""An episode as it is stored (`agentrl.runs.episodes`)."""
_PIECE = 100
"""Episodes of a piece."""
_TITLE = 160
"""Characters of a first line that stands for a title."""
_TURN = ("action", "observation", "reward", "is_valid", "finish", "row", "start", "end")


class Archive:
    """Reads what a folder stores.

    Args:
        folder: a run's, or an evaluation's (`samples.jsonl`).
        advantage: `[advantage]` of its config, after which advantages are computed where none are stored.
    """

    def __init__(self, folder: Path, advantage: dict[str, Any]) -> None:
        self.folder, self.advantage = folder, advantage
        self._decode: Callable[[list[int]], list[str]] | None = None

    def files(self) -> list[Path]:
        """Files with episodes, oldest first."""
        samples = self.folder / "samples.jsonl"
        return episode_files(self.folder) + ([samples] if samples.is_file() else [])

    def records(self, path: Path) -> Iterator[Record]:
        """Episodes of a file, in the stored form whatever wrote them."""
        for record in read_episodes(path):
            yield _from_sample(record) if "responses" in record else record

    def index(self, path: Path) -> list[Record]:
        """An entry an episode: what the page lists, searches first and filters by."""
        entries = [_entry(path.stem, i, record) for i, record in enumerate(self.records(path))]
        _add_advantages(entries, self.advantage)
        return entries

    def read(self, path: Path) -> tuple[list[Record], dict[str, str]]:
        """(index, packed pieces by name) of a file, in one pass."""
        entries: list[Record] = []
        pieces: dict[str, str] = {}
        records = self.records(path)
        while found := list(islice(records, _PIECE)):
            pieces[f"{path.stem}.{len(pieces)}"] = pack([self.describe(record) for record in found])
            entries += [_entry(path.stem, len(entries) + i, record) for i, record in enumerate(found)]
        _add_advantages(entries, self.advantage)
        return entries, pieces

    def piece(self, name: str) -> list[Record] | None:
        """The piece of this name; None where there is none."""
        stem, _, number = name.rpartition(".")
        path = next((path for path in self.files() if path.stem == stem), None)
        if path is None or not number.isdecimal():
            return None
        start = int(number) * _PIECE
        return [self.describe(record) for record in islice(self.records(path), start, start + _PIECE)] or None

    def describe(self, record: Record) -> Record:
        """What the page shows of an episode: turns, and each row's tokens with log-probs."""
        if self._decode is None:
            self._decode = _decoder(self.folder)
        return {
            "first": record["first_observation"],
            "error": record["error"],
            "turns": [{key: turn.get(key) for key in _TURN} for turn in record["turns"]],
            "rows": [
                {
                    "pieces": self._decode(row["ids"]),
                    "trained": "".join(map(str, row["trained"])),
                    "logprobs": [round(x, 3) if t else 0 for x, t in zip(row["logprobs"], row["trained"], strict=True)],
                }
                for row in record["rows"]
            ],
        }


def pack(value: Any) -> str:
    """JSON, compressed, in letters that mean nothing to HTML."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(errors="replace"), compresslevel=6, mtime=0)).decode()


def title_of(record: Record) -> str:
    """`info["task"]`, else the first line with text of what the model was shown, else the number of the task."""
    lines = (line.strip() for line in record["first_observation"].splitlines())
    first = next((line for line in lines if line), "")
    return record["task"]["name"] or first[:_TITLE] or f"task {record['task']['index']}"


def _entry(source: str, place: int, record: Record) -> Record:
    return {
        "source": source,
        "piece": f"{source}.{place // _PIECE}",
        "place": place % _PIECE,
        "title": title_of(record),
        "category": record["category"],
        "status": record["status"],
        "success": record["success"],
        "reward": record["reward"],
        "member": record["member"],
        "group": record["task"]["position"],
        "turns": len(record["turns"]),
        "policy": record.get("policy_version"),
        "advantage": record.get("advantage"),
    }


def _add_advantages(entries: list[Record], settings: dict[str, Any]) -> None:
    """Fill in what follows from the rewards of a group; evaluations have no advantages."""
    groups: dict[int, list[Record]] = {}
    for entry in entries:
        if entry["source"].startswith("step-") and entry["advantage"] is None:
            groups.setdefault(entry["group"], []).append(entry)
    for members in groups.values():
        values = group_advantages([entry["reward"] for entry in members], settings)
        for entry, value in zip(members, values or (None,) * len(members), strict=True):
            entry["advantage"] = value


def group_advantages(rewards: list[float], settings: dict[str, Any]) -> list[float] | None:
    """Advantages of a group's episodes before penalties, [G] -> [G] (`agentrl.learner.advantage`).

    None where other groups or the states between decide too (REINFORCE++), and for a group of one.
    """
    values = np.asarray(rewards, dtype=np.float64)
    estimator = settings.get("estimator")
    if len(values) < 2 or estimator not in ("grpo", "gigpo", "dr_grpo", "rloo"):
        return None
    centered = values - values.mean() if np.ptp(values) else np.zeros_like(values)
    if estimator == "rloo":
        centered *= len(values) / (len(values) - 1)
    elif estimator != "dr_grpo" and centered.any():
        centered /= values.std(ddof=settings.get("ddof", 1)) + 1e-6
    return [round(float(value), 4) for value in centered]


def _from_sample(sample: Record) -> Record:
    """A line of `samples.jsonl` as it was until 0.1: answers without observations between them, and without tokens."""
    turns = [{"action": text, "observation": "", "reward": 0.0, "is_valid": True} for text in sample["responses"]]
    if turns:
        turns[-1] |= {"reward": sample["reward"], "finish": sample["finish"]}
    return {
        "task": {"name": sample["task"], "index": sample["index"], "position": sample["position"]},
        "member": sample["sample"], "category": sample["category"], "status": sample["status"],
        "success": sample["correct"], "reward": sample["reward"], "error": sample["error"],
        "first_observation": sample["prompt"], "turns": turns, "rows": [],
    }  # fmt: skip


def _decoder(folder: Path) -> Callable[[list[int]], list[str]]:
    """Function from ids to one text per token: the ids themselves where the folder holds no tokenizer."""
    places = [folder / name / "tokenizer.json" for name in ("initial", "tokenizer")]  # of a run, of an evaluation
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return lambda ids: [f"[{i}]" for i in ids]
    tokenizer = Tokenizer.from_file(str(path))

    def decode(ids: list[int]) -> list[str]:
        stream = DecodeStream(skip_special_tokens=False)
        return [stream.step(tokenizer, i) or UNFINISHED for i in ids]

    return decode
