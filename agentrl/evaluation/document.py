"""A result as a document: `result.json` says what was played, by whom, how, and what came of every task."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from agentrl.errors import UserError
from agentrl.types import Status, Trajectory

SCHEMA_VERSION = 1


class Strict(BaseModel):
    """A part of a document: every key is known."""

    model_config = ConfigDict(extra="forbid")


class Outcome(Strict):
    """One episode."""

    success: bool
    score: float | None
    reward: float
    status: str
    """`Status`."""
    turns: int
    truncated: bool
    """Whether an answer was cut at the token limit."""
    refused: bool
    """Whether a server behind an API declined."""
    tokens: int
    """Generated."""


class TaskOutcomes(Strict):
    """All episodes of one task."""

    task: str
    """The same in every result that plays this task."""
    category: str
    samples: list[Outcome]


class PanelCheck(Strict):
    """Whether it was the panel's own data."""

    name: str
    """`alfworld-unseen@1`, or `alfworld-unseen@1+other-data`."""
    digest: str
    """Of the panel's file."""
    differences: list[str]
    """Data that are not the panel's; empty where the score may bear its name."""


class ResultDocument(BaseModel):
    """`result.json`. Keys besides these are what `evaluate --json` prints; they may change."""

    model_config = ConfigDict(extra="allow")

    schema_version: Literal[1]
    panel: PanelCheck | None
    environment: dict[str, Any]
    """`id`, `split`, `options`."""
    player: dict[str, Any]
    """Who played: policy, model, hash of its weights or endpoint and reported versions, hash of the chat template."""
    protocol: dict[str, Any]
    """Format, context, limits, sampling, seeds."""
    software: dict[str, Any]
    tasks: list[TaskOutcomes]
    counts: dict[str, int]
    """Episodes by status, and how many were truncated or refused."""
    intervals: dict[str, tuple[float, float, float]]
    """Success, low, high (95 %) by category and under `all`."""
    usage: dict[str, Any] | None = None
    """Requests, tokens and price of an API."""


def task_key(members: list[Trajectory]) -> str:
    """What a task is called in every result: number or seed, and its name where one that was played tells it."""
    task = members[0].task
    name = next((t.name for t in members if t.status is not Status.FAILED and t.name), "")
    return f"{task.index if task.index is not None else f'seed {task.seed}'}{': ' + name if name else ''}"


def read_document(path: Path) -> ResultDocument:
    """A result.

    Args:
        path: `result.json`, or the folder it lies in.

    Raises:
        UserError: there is none, or it is of another schema.
    """
    file = path / "result.json" if path.is_dir() else path
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as a result: {error}. Write one with: evaluate --out FOLDER.") from None
    version = told.get("schema_version") if isinstance(told, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{file} is a result of schema version {version}, this version reads {SCHEMA_VERSION}. Evaluate again."
        )
    try:
        return ResultDocument.model_validate(told)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{file} is no whole result: {where}: {first['msg']}. Evaluate again.") from None
