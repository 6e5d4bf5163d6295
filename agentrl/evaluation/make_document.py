"""An evaluation as a document: what was played, by whom, and what came of it."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from agentrl.api_policy.api_player import ApiPlayer
from agentrl.api_policy.meter import Usage
from agentrl.config.schema import Config
from agentrl.evaluation.document import SCHEMA_VERSION, Outcome, PanelCheck, ResultDocument, TaskOutcomes, task_key
from agentrl.evaluation.rates import Evaluation
from agentrl.rollout.chat import Chat
from agentrl.rollout.scripted import Player
from agentrl.types import Trajectory


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


def _outcome(trajectory: Trajectory) -> Outcome:
    return Outcome(
        success=trajectory.success, score=trajectory.score, reward=trajectory.reward, status=trajectory.status.value,
        turns=len(trajectory.turns), truncated=any(turn.finish == "length" for turn in trajectory.turns),
        refused=any(turn.finish == "refused" for turn in trajectory.turns), tokens=trajectory.num_trained_tokens,
    )  # fmt: skip


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
