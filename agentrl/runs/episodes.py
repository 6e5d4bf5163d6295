"""Episodes as they are stored: one JSON object each, readable without this package."""

from typing import Any

import numpy as np

from agentrl.types import Row, Status, Task, Trajectory, Turn


def describe_trajectory(trajectory: Trajectory, *, decode: Any) -> dict[str, Any]:
    """A JSON-able record of an episode: text, token ids, log-probs, rewards, advantage, status."""
    return {
        "task": {
            "env_id": trajectory.task.env_id, "split": trajectory.task.split, "index": trajectory.task.index,
            "seed": trajectory.task.seed, "position": trajectory.task.position, "name": trajectory.name,
            "environment": trajectory.task.environment,
        },
        "member": trajectory.member,
        "policy_version": trajectory.policy_version,
        "status": trajectory.status.value,
        "reward": trajectory.reward,
        "rewards": trajectory.rewards,
        "advantage": trajectory.advantage,
        "success": trajectory.success,
        "score": trajectory.score,
        "category": trajectory.category,
        "metadata": trajectory.metadata,
        "answer": trajectory.answer,
        "verdict": trajectory.verdict,
        "error": trajectory.error,
        "num_retries": trajectory.num_retries,
        "num_verdict_timeouts": trajectory.num_verdict_timeouts,
        "unasked_tokens": trajectory.unasked_tokens,
        "first_observation": trajectory.first_observation,
        "turns": [
            {
                "action": turn.action, "observation": turn.observation, "reward": turn.reward,
                "is_valid": turn.is_valid, "finish": turn.finish, "row": turn.row, "start": turn.start, "end": turn.end,
                "counted": turn.counted,
            }
            for turn in trajectory.turns
        ],
        "rows": [
            {
                "text": decode(row.ids.tolist()), "ids": row.ids.tolist(),
                "trained": row.trained.astype(int).tolist(),
                "logprobs": [round(float(x), 6) for x in row.logprobs],
            }
            for row in trajectory.rows
        ],
    }  # fmt: skip


def read_trajectory(record: dict[str, Any]) -> Trajectory:
    """The episode that `describe_trajectory` wrote; log-probs to six digits."""
    told, kept = record["task"], ("success", "score", "category", "answer", "metadata", "error", "verdict", "rewards")
    task = Task(
        told["env_id"], told["split"], told["seed"], told["index"], told["position"], environment=told["environment"]
    )  # fmt: skip
    turns = [
        Turn(**{**turn, "counted": tuple(turn["counted"]) if turn["counted"] else None}) for turn in record["turns"]
    ]
    rows = [
        Row(
            np.array(row["ids"], np.int32), np.array(row["trained"], bool), np.array(row["logprobs"], np.float32),
        )
        for row in record["rows"]
    ]  # fmt: skip
    return Trajectory(
        task, record["member"], rows, turns, record["first_observation"], Status(record["status"]),
        policy_version=record["policy_version"], name=told["name"], num_retries=record["num_retries"],
        num_verdict_timeouts=record["num_verdict_timeouts"], unasked_tokens=record["unasked_tokens"],
        **{name: record[name] for name in kept},
    )  # fmt: skip


def as_json(value: Any) -> Any:
    """What an environment put into `info` and JSON has no form for: numbers of numpy as numbers, the rest as text."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)
