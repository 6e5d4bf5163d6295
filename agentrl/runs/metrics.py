"""What a rollout batch is in numbers: the record of metrics.jsonl."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agentrl.learner.learner import Update
from agentrl.types import Group, Metrics, Status, Trajectory


@dataclass
class Played:
    """A rollout batch as it is reported."""

    groups: list[Group]
    """Whole groups."""
    failures: list[Trajectory]
    """Episodes that no retry mended."""
    num_left_out: int
    """Groups with too few whole episodes."""
    engine_counts: dict[str, float]
    """`Engine.metrics()`."""


def join_played(parts: list[Played]) -> Played:
    """What several processes played, in the order of the tasks."""
    if len(parts) == 1:
        return parts[0]
    return Played(
        sorted((group for part in parts for group in part.groups), key=lambda group: group.task.position),
        [trajectory for part in parts for trajectory in part.failures],
        sum(part.num_left_out for part in parts),
        {key: sum(part.engine_counts.get(key, 0.0) for part in parts) for key in parts[0].engine_counts},
    )


def step_metrics(
    step: int, batch: Played, update: Update, *, seconds: tuple[float, float], costs: Metrics, drop_equal: bool = False
) -> Metrics:
    """The record of one rollout batch: `cost/` keys add to those of `costs`, `updates` lists every gradient.

    Args:
        step: rollout batches so far.
        batch: what was played.
        update: what was learned from it.
        seconds: wall and CPU seconds of the rollout in this process.
        costs: the record before.
        drop_equal: whether groups of equal rewards were left out.
    """
    groups, failures = batch.groups, batch.failures
    num_mixed = sum(bool(np.ptp(group.rewards) > 0) for group in groups)
    played = [trajectory for group in groups for trajectory in group.trajectories]
    turns = [turn for trajectory in played for turn in trajectory.turns]
    count = max(1, len(played))
    spent = {
        "cost/episodes": len(played),
        "cost/generated_tokens": sum(t.num_trained_tokens for t in played),
        "cost/trained_tokens": update.trained_tokens,
        "cost/optimizer_steps": update.num_steps,
        "cost/discarded_steps": update.num_discarded,
    }
    first = update.steps[0] if update.steps else {}
    return {
        "step": step,
        "kind": "train",
        "rollout/reward": sum(t.reward for t in played) / count,
        "rollout/success": sum(t.success for t in played) / count,
        "rollout/turns": len(turns) / count,
        "rollout/tokens": sum(t.num_tokens for t in played) / count,
        "rollout/invalid_actions": sum(not turn.is_valid for turn in turns) / max(1, len(turns)),
        "rollout/cut_turns": sum(turn.finish == "length" for turn in turns) / max(1, len(turns)),
        **verdict_metrics("rollout", played),
        "rollout/retries": sum(t.num_retries for t in [*played, *failures]),
        "rollout/groups_left_out": batch.num_left_out,
        "rollout/never_asked": sum(t.unasked_tokens > 0 for t in played),
        "rollout/longest_unasked": max((t.unasked_tokens for t in played), default=0),
        **{f"rollout/ended/{status.value}": sum(t.status is status for t in [*played, *failures]) for status in Status},
        "batch/groups": len(groups),
        "batch/mixed_groups": num_mixed,
        "batch/dropped_groups": len(groups) - num_mixed if drop_equal else 0,
        "learner/steps": update.num_steps,
        "learner/discarded": update.num_discarded,
        "learner/gate_closed": update.gate_closed,
        **{f"learner/{key}": value for key, value in first.items() if isinstance(value, float)},
        **{key: costs.get(key, 0) + value for key, value in spent.items()},
        **{f"engine/{key}": value for key, value in batch.engine_counts.items()},
        "time/rollout_s": seconds[0],
        "time/rollout_cpu_s": seconds[1],
        "time/update_s": update.seconds[0],
        "time/update_cpu_s": update.seconds[1],
        "updates": update.steps,
    }


def verdict_metrics(prefix: str, trajectories: Sequence[Trajectory]) -> Metrics:
    """Checks that ran out of time, where the environment says what decided (`info["verdict"]`)."""
    if not any(trajectory.verdict for trajectory in trajectories):
        return {}
    return {f"{prefix}/verdict_timeouts": sum(t.num_verdict_timeouts for t in trajectories)}
