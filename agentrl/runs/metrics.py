"""What a rollout batch is in numbers: the record of metrics.jsonl."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from agentrl.config.schema import Config
from agentrl.rollout.rollout_batch import RolloutBatch
from agentrl.runs.health import health_metrics
from agentrl.types import Metrics, Status, Trajectory

if TYPE_CHECKING:
    from agentrl.learner.protocol import Update  # imports torch, and whoever reads a run needs none


def step_metrics(step: int, batch: RolloutBatch, update: "Update", *, costs: Metrics, config: Config) -> Metrics:
    """The record of one rollout batch: `cost/` keys add to those of `costs`, `updates` lists every gradient.

    Args:
        step: rollout batches so far.
        batch: what was played, by all processes.
        update: what was learned from it.
        costs: the record before.
        config: how large groups are, and whether those of equal outcomes were left out.
    """
    played = [trajectory for group in batch.groups for trajectory in group.trajectories]
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
        **_rollout_metrics(batch, played),
        **environment_metrics("rollout", played),
        **reward_metrics(played),
        **_group_metrics(batch, drop_equal=config.train.refill is not None),
        **health_metrics(batch.groups),
        "learner/steps": update.num_steps,
        "learner/discarded": update.num_discarded,
        "learner/gate_closed": update.gate_closed,
        **{f"learner/{key}": value for key, value in first.items() if isinstance(value, float)},
        **({"learner/last_kl": update.steps[-1]["kl"]} if update.steps else {}),
        **{key: costs.get(key, 0) + value for key, value in spent.items()},
        **{f"engine/{key}": value for key, value in batch.counts.items()},
        "time/rollout_s": batch.seconds[0],
        "time/rollout_cpu_s": batch.seconds[1],
        "time/update_s": update.seconds[0],
        "time/update_cpu_s": update.seconds[1],
        "time/episodes_s": [round(seconds, 3) for seconds in batch.episodes_s],
        "time/whole_s": [round(seconds, 3) for seconds in batch.whole_s],
        "updates": update.steps,
        "rollout/failed_share": len(batch.failures) / max(1, batch.num_begun * config.train.group_size),
    }


def _rollout_metrics(batch: RolloutBatch, played: list[Trajectory]) -> Metrics:
    """What happened in the episodes."""
    turns = [turn for trajectory in played for turn in trajectory.turns]
    count, num_turns, known = max(1, len(played)), max(1, len(turns)), [*played, *batch.failures]
    return {
        "rollout/reward": sum(t.reward for t in played) / count,
        "rollout/reward_min": min((t.reward for t in played), default=0.0),
        "rollout/reward_max": max((t.reward for t in played), default=0.0),
        "rollout/success": sum(t.success for t in played) / count,
        "rollout/turns": len(turns) / count,
        "rollout/tokens": sum(t.num_tokens for t in played) / count,
        "rollout/invalid_actions": sum(not turn.is_valid for turn in turns) / num_turns,
        "rollout/cut_turns": sum(turn.finish == "length" for turn in turns) / num_turns,
        **verdict_metrics("rollout", played),
        "rollout/retries": sum(t.num_retries for t in known),
        "rollout/groups_left_out": batch.left_out,
        "rollout/groups_put_off": len(batch.put_off),
        "rollout/never_asked": sum(t.unasked_tokens > 0 for t in played),
        "rollout/longest_unasked": max((t.unasked_tokens for t in played), default=0),
        **{f"rollout/ended/{status.value}": sum(t.status is status for t in known) for status in Status},
    }


def environment_metrics(prefix: str, played: Sequence[Trajectory]) -> Metrics:
    """Success, mean reward and number of episodes of every environment of a mixture; nothing of a single one."""
    found: Metrics = {}
    for name in sorted({t.task.environment for t in played} - {""}):
        members = [t for t in played if t.task.environment == name]
        found[f"{prefix}/episodes/{name}"] = len(members)
        found[f"{prefix}/success/{name}"] = sum(t.success for t in members) / len(members)
        found[f"{prefix}/reward/{name}"] = sum(t.reward for t in members) / len(members)
    return found


def reward_metrics(played: Sequence[Trajectory], prefix: str = "reward") -> Metrics:
    """The mean of every function of `env.reward`, before its weight, and of the environment's own return."""
    names = dict.fromkeys(name for t in played for name in t.rewards)
    values = {name: [t.rewards[name] for t in played if name in t.rewards] for name in names}
    return {f"{prefix}/{name}": sum(each) / len(each) for name, each in values.items()}


def _group_metrics(batch: RolloutBatch, *, drop_equal: bool) -> Metrics:
    """What the groups have to teach."""
    mixed = [group.task.environment for group in batch.groups if group.rewards_differ]
    names = {group.task.environment for group in batch.groups} - {""}  # of a mixture
    return {
        "batch/groups": len(batch.groups),
        "batch/mixed_groups": len(mixed),
        **{f"batch/mixed_groups/{name}": mixed.count(name) for name in sorted(names)},
        "batch/dropped_groups": sum(not group.outcomes_differ for group in batch.groups) if drop_equal else 0,
    }


def clock_seconds(record: Metrics) -> float:
    """Seconds that a rollout batch took: rollouts, then updates; where the next batch was played meanwhile, what was
    waited of it.

    >>> clock_seconds({"step": 2, "time/rollout_s": 3.0, "time/update_s": 4.0})
    7.0
    >>> clock_seconds({"step": 2, "time/rollout_s": 3.0, "time/update_s": 4.0, "time/wait_s": 0.5})
    4.5
    """
    rollout, update, waited = (float(record.get(f"time/{name}_s", 0.0)) for name in ("rollout", "update", "wait"))
    is_waited_for = "time/wait_s" not in record or record["step"] == 1
    return (rollout if is_waited_for else 0.0) + update + waited


def outcome(record: Metrics) -> str:
    """What a person wants to see of a rollout batch, in one line."""
    seconds = clock_seconds(record)
    tokens = record.get("engine/generated_tokens", 0.0) / seconds if seconds else 0.0
    return (
        f"success {record['rollout/success']:.0%}, reward {record['rollout/reward']:.3g}, "
        f"used {record['learner/steps']}x, discarded {record['learner/discarded']}, {tokens:,.0f} tokens/s, "
        f"failed {record['rollout/failed_share']:.1%}"
    )


def verdict_metrics(prefix: str, trajectories: Sequence[Trajectory]) -> Metrics:
    """Checks that ran out of time, where the environment says what decided (`info["verdict"]`)."""
    if not any(trajectory.verdict for trajectory in trajectories):
        return {}
    return {f"{prefix}/verdict_timeouts": sum(t.num_verdict_timeouts for t in trajectories)}
