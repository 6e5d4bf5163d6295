"""A result as a document: `result.json` says what was played, by whom, how, and what came of every task."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import try_to_load_from_cache
from pydantic import BaseModel, ConfigDict, ValidationError

from agentrl.api_policy.api_player import ApiPlayer
from agentrl.api_policy.meter import Usage
from agentrl.config.schema import Config
from agentrl.errors import UserError
from agentrl.evaluation.rates import Evaluation
from agentrl.rollout.chat import Chat
from agentrl.rollout.scripted import Player
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


def make_document(
    config: Config, result: Evaluation, *, player: dict[str, Any], panel: PanelCheck | None,
    software: dict[str, Any], usage: dict[str, Any] | None,
) -> ResultDocument:  # fmt: skip
    """The document of an evaluation."""
    by_task: dict[int, list[Trajectory]] = {}
    for trajectory in result.trajectories:
        by_task.setdefault(trajectory.task.position, []).append(trajectory)
    limits, members = config.rollout, config.mixture or [config.env]
    turns = [turn for t in result.trajectories for turn in t.turns]
    counts = Counter(t.status.value for t in result.trajectories)
    rates = result.rates
    return ResultDocument(
        schema_version=SCHEMA_VERSION,
        panel=panel,
        environment={
            "id": ", ".join(env.id for env in members), "split": ", ".join(env.eval_split for env in members),
            "options": config.env.options if len(members) == 1 else [env.options for env in members],
        },
        player=player,
        protocol={
            "format": config.env.format, "system": config.env.system, "reward": config.env.reward,
            "context": limits.context, "window_turns": limits.window_turns if limits.context == "window" else None,
            "max_turns": limits.max_turns, "max_new_tokens": limits.max_new_tokens,
            "max_context_tokens": limits.max_context_tokens, "stop": list(limits.stop),
            "temperature": config.eval.temperature, "samples": result.samples, "eval_seed": 2**31,
        },
        software=software,
        tasks=[
            TaskOutcomes(task=task_key(played), category=played[0].category, samples=[_outcome(t) for t in played])
            for _, played in sorted(by_task.items())
        ],
        counts={
            **counts,
            "truncated": sum(turn.finish == "length" for turn in turns),
            "refused": sum(turn.finish == "refused" for turn in turns),
            "never_asked": sum(t.unasked_tokens > 0 for t in result.trajectories),
        },
        intervals={name: (rate.value, *rate.interval) for name, rate in rates.items()},
        usage=usage,
    )  # fmt: skip


def task_key(members: list[Trajectory]) -> str:
    """What a task is called in every result: number or seed, and its name where one that was played tells it."""
    task = members[0].task
    name = next((t.name for t in members if t.status is not Status.FAILED and t.name), "")
    return f"{task.index if task.index is not None else f'seed {task.seed}'}{': ' + name if name else ''}"


def _outcome(trajectory: Trajectory) -> Outcome:
    return Outcome(
        success=trajectory.success, score=trajectory.score, reward=trajectory.reward, status=trajectory.status.value,
        turns=len(trajectory.turns), truncated=any(turn.finish == "length" for turn in trajectory.turns),
        refused=any(turn.finish == "refused" for turn in trajectory.turns), tokens=trajectory.num_trained_tokens,
    )  # fmt: skip


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


def describe_player(player: Player, policy: str, model: str | None, chat: Chat) -> dict[str, Any]:
    """Who played, so that somebody else can tell whether it was the same."""
    if isinstance(player, ApiPlayer):
        return {"policy": policy, **player.describe()}
    if policy != "model" or model is None:
        return {"policy": policy}
    template = str(getattr(chat.tokenizer, "chat_template", "") or "")
    return {
        "policy": policy, "model": model, "weights": hash_weights(model),
        "template": hashlib.sha256(template.encode()).hexdigest(),
    }  # fmt: skip


def hash_weights(model: str) -> str | None:
    """`sha256:...` over the weight files of a folder (names and contents), else the revision of a hub's model."""
    folder = Path(model)
    if not folder.is_dir():
        cached = try_to_load_from_cache(model, "config.json")
        return f"revision:{Path(cached).parent.name}" if isinstance(cached, str) else None
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            digest.update(f"{file.name} {hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def describe_usage(player: Player, usage: Usage) -> dict[str, Any] | None:
    """What an API counted, and its price."""
    if not isinstance(player, ApiPlayer):
        return None
    return {**vars(usage), "cost_usd": player.meter.cost}
