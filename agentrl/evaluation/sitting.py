"""An evaluation in one or several sittings: what lies in its folder already, and what it has cost."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agentrl.api_policy.meter import Usage
from agentrl.config.schema import Config
from agentrl.errors import UserError
from agentrl.evaluation.samples import read_samples
from agentrl.runs.outputs import whole_file, write_json
from agentrl.types import Status, Trajectory


@dataclass
class Sitting:
    """What an evaluation begins with."""

    folder: Path
    """Where samples lie."""
    known: dict[tuple[int, int], Trajectory] = field(default_factory=dict)
    """Samples of earlier sittings, by position and member."""
    usage: Usage = field(default_factory=Usage)
    """What earlier sittings counted."""

    def close(self) -> None:
        """Store what has been counted."""
        if self.usage.requests + self.usage.failed:
            write_json(self.folder / "usage.json", asdict(self.usage))


def sit_down(
    folder: Path | None, config: Config, player: Mapping[str, Any], *, resume: bool, is_costly: bool
) -> Sitting:
    """Begin an evaluation in a folder, or go on with the one that lies there.

    Args:
        folder: where samples go; None: not said, which leaves nothing to go on with.
        config: of the evaluation, settled.
        player: who plays, as far as answers depend on it.
        resume: whether to go on.
        is_costly: whether samples that lie there may be overwritten only if the user says so.

    Raises:
        UserError: nothing to go on with, other settings, or samples that would be lost.
    """
    settings = json.loads(json.dumps({"player": dict(player), **_what_counts(config)}, default=str))
    if folder is None:
        raise UserError("--resume goes on with the samples of a folder: give it as --out FOLDER.")
    samples, about = folder / "samples.jsonl", folder / "settings.json"
    if not resume:
        if is_costly and samples.is_file() and samples.stat().st_size:
            raise UserError(f"--out: {samples} holds samples that were paid for. Add --resume, or give another folder.")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(about, settings)
        return Sitting(folder)
    if not samples.is_file():
        raise UserError(f"--resume: {folder} has no samples.jsonl. Leave --resume away to begin there.")
    if about.is_file():
        _refuse_other_settings(json.loads(about.read_text(encoding="utf-8")), settings, folder)
    lines = [line for line in samples.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("}\n")]
    played = [t for t in read_samples(lines) if t.status is not Status.FAILED]
    with whole_file(samples) as file:  # without a half line and without failures, which are played again
        file.writelines(line for line in lines if json.loads(line)["status"] != Status.FAILED)
    return Sitting(folder, {(t.task.position, t.member): t for t in played}, _read_usage(folder))


def _what_counts(config: Config) -> dict[str, Any]:
    """The tables on which answers depend, without how many play at once."""
    rollout = {key: value for key, value in config.rollout.model_dump().items() if key in _OF_ANSWERS}
    mixture = {"mixture": [env.model_dump() for env in config.mixture]} if config.mixture else {}
    return {"env": config.env.model_dump() | mixture, "eval": config.eval.model_dump(), "rollout": rollout}


_OF_ANSWERS = ("max_new_tokens", "max_context_tokens", "max_turns", "context", "window_turns", "stop")


def _refuse_other_settings(then: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    for table in now:
        for key in now[table]:
            before = then.get(table, {}).get(key)
            if before != now[table][key]:
                raise UserError(
                    f"--resume: {folder} was begun with {table}.{key} = {before!r}, now it is {now[table][key]!r}. "
                    "Give the same, or another --out."
                )


def _read_usage(folder: Path) -> Usage:
    path = folder / "usage.json"
    return Usage(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else Usage()
