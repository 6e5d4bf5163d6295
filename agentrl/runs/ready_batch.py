"""A rollout batch as a file: what was played ahead and is not yet learned from. Numbers come back bit by bit."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.rollout.rollout_batch import RolloutBatch
from agentrl.runs.episodes import as_json
from agentrl.types import Group, Row, Status, Task, Trajectory, Turn


def write_batch(path: Path, batch: RolloutBatch) -> None:
    """Write a batch as JSON; decimals name every float exactly."""
    path.write_text(json.dumps(asdict(batch), default=as_json), encoding="utf-8")


def read_batch(path: Path) -> RolloutBatch:
    """The batch that `write_batch` wrote."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    groups = [Group(Task(**group["task"]), [_trajectory(t) for t in group["trajectories"]]) for group in tree["groups"]]
    episodes = {name: [_trajectory(t) for t in tree.get(name, [])] for name in ("failures", "kept")}
    put_off = [Task(**task) for task in tree.get("put_off", [])]
    parts = {**episodes, "groups": groups, "put_off": put_off, "seconds": tuple(tree["seconds"])}
    return RolloutBatch(**{**tree, **parts})


def _trajectory(tree: dict[str, Any]) -> Trajectory:
    rows = [
        Row(np.array(r["ids"], np.int32), np.array(r["trained"], np.bool_), np.array(r["logprobs"], np.float32))
        for r in tree["rows"]
    ]
    turns = [Turn(**turn) for turn in tree["turns"]]
    parts = {"task": Task(**tree["task"]), "rows": rows, "turns": turns, "status": Status(tree["status"])}
    return Trajectory(**{**tree, **parts})
