"""The run folder: config, versions, metrics.jsonl, curves, trajectories; and what a person sees meanwhile."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from agentrl.config import Config
from agentrl.installation import DISTRIBUTION, find_checkout
from agentrl.learner.learner import Update
from agentrl.outputs import not_empty, require_empty, write_json
from agentrl.run_folder import read_metrics
from agentrl.types import Group, Metrics, Status, Trajectory

console = Console(stderr=False, markup=False, emoji=False)  # what environments and paths are called is no markup

_PACKAGES = (
    DISTRIBUTION,
    "torch",
    "transformers",
    "accelerate",
    "gymnasium",
    "numpy",
    "tokenizers",
    "safetensors",
    "vllm",
)


class Run:
    """A run folder.

    `metrics.jsonl` holds one flat JSON object a line; times and rates are under keys that start with `time/`,
    everything else repeats bit by bit when a deterministic run is repeated or resumed.
    """

    def __init__(self, folder: Path, config: Config, *, tokenizer: Any) -> None:
        self.folder, self.config, self.tokenizer = folder, config, tokenizer
        self.costs: Metrics = {}
        """`cost/` sums of the last record."""
        self._trackers: list[GeneralTracker] = []

    @classmethod
    def create(cls, folder: Path, config: Config, *, tokenizer: Any, command: list[str]) -> "Run":
        """A new run folder.

        Raises:
            UserError: the folder exists and is not empty.
        """
        require_empty(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            (folder / "metrics.jsonl").touch(exist_ok=False)
        except FileExistsError:  # in this very moment
            raise not_empty(folder) from None
        run = cls(folder, config, tokenizer=tokenizer)
        write_json(folder / "config.json", config.model_dump())
        write_json(folder / "versions.json", {**describe_software(), "seed": config.train.seed, "command": command})
        return run

    @classmethod
    def reopen(cls, folder: Path, config: Config, *, tokenizer: Any, step: int) -> "Run":
        """An existing run folder, with everything logged after `step` rollout batches forgotten."""
        metrics = folder / "metrics.jsonl"
        kept = [record for record in read_metrics(folder) if record["step"] <= step and not record.get("final")]
        draft = metrics.with_suffix(".writing")
        draft.write_text("".join(json.dumps(record) + "\n" for record in kept))
        draft.replace(metrics)
        for path in (folder / "trajectories").glob("step-*.jsonl"):
            number = path.stem.removeprefix("step-")  # anything else is a copy of the user's
            if number.isdecimal() and int(number) > step:
                path.unlink()
        run = cls(folder, config, tokenizer=tokenizer)
        run.costs = next((record for record in reversed(kept) if record["kind"] == "train"), {})
        return run

    def log(
        self,
        metrics: Metrics,
        *,
        groups: Iterable[Group] = (),
        name: str | None = None,
        trajectories: Iterable[Trajectory] = (),
    ) -> None:
        """Append a record (with `step` and `kind`) to metrics.jsonl and the trackers, and store its episodes.

        Args:
            metrics: flat numbers.
            groups: the groups of a rollout batch; stored every `tracking.trajectories_every` batches.
            name: file name for `trajectories`, which are stored always.
            trajectories: further episodes.
        """
        step, every = metrics["step"], self.config.tracking.trajectories_every
        if name is not None:
            self._store(name, trajectories)
        elif every and step % every == 0:
            self._store(f"step-{step:06d}", [t for group in groups for t in group.trajectories])
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        self.costs = metrics if metrics["kind"] == "train" else self.costs
        self._start_trackers(step)
        numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float) and key != "step"}
        for tracker in self._trackers:
            tracker.log(numbers, step=step)

    def _store(self, name: str, trajectories: Iterable[Trajectory]) -> None:
        """Write `trajectories/NAME.jsonl`: one episode a line, readable without this package."""
        path = self.folder / "trajectories" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        draft = path.with_suffix(".writing")
        with draft.open("w", encoding="utf-8", errors="replace") as file:
            for trajectory in trajectories:
                record = describe_trajectory(trajectory, decode=self.tokenizer.decode)
                file.write(json.dumps(record, ensure_ascii=False, default=_as_json) + "\n")
        draft.replace(path)

    def close(self) -> None:
        """Flush the trackers."""
        for tracker in self._trackers:
            tracker.finish()

    def _start_trackers(self, step: int) -> None:
        if self._trackers:
            return
        for name in self.config.tracking.trackers:
            tracker_class = LOGGER_TYPE_TO_CLASS[name]
            if name == "tensorboard":
                # Points that a resumed run will write again are hidden by the viewer.
                tracker = tracker_class("tensorboard", logging_dir=self.folder, purge_step=step)
            else:
                tracker = tracker_class(self.folder.name, dir=str(self.folder))
            tracker.start()
            self._trackers.append(tracker)


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


def describe_trajectory(trajectory: Trajectory, *, decode: Any) -> dict[str, Any]:
    """A JSON-able record of an episode: text, token ids, log-probs, rewards, status."""
    return {
        "task": {
            "env_id": trajectory.task.env_id, "split": trajectory.task.split, "index": trajectory.task.index,
            "seed": trajectory.task.seed, "position": trajectory.task.position, "name": trajectory.name,
        },
        "member": trajectory.member,
        "policy_version": trajectory.policy_version,
        "status": trajectory.status.value,
        "reward": trajectory.reward,
        "success": trajectory.success,
        "score": trajectory.score,
        "category": trajectory.category,
        "metadata": trajectory.metadata,
        "answer": trajectory.answer,
        "verdict": trajectory.verdict,
        "error": trajectory.error,
        "num_retries": trajectory.num_retries,
        "first_observation": trajectory.first_observation,
        "turns": [
            {
                "action": turn.action, "observation": turn.observation, "reward": turn.reward,
                "is_valid": turn.is_valid, "finish": turn.finish, "row": turn.row, "start": turn.start, "end": turn.end,
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


def describe_software() -> dict[str, Any]:
    """Versions of what a run depends on, and the git commit where there is one."""
    versions: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {**versions, "git_commit": own_commit(Path(__file__).resolve().parents[1])}


def own_commit(root: Path) -> str | None:
    """The commit of a checkout of this project, `+changes` where files differ; None of an installed package.

    An environment inside somebody's repository, or a repository that holds a copy of this package, is not ours.
    """
    try:
        if find_checkout(root) is None or Path(_git(root, "rev-parse", "--show-toplevel")).resolve() != root:
            return None
        return _git(root, "rev-parse", "HEAD") + ("+changes" if _git(root, "status", "--porcelain") else "")
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _git(root: Path, *words: str) -> str:
    surroundings = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}  # hooks set GIT_DIR
    command = ["git", "-C", str(root), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True, env=surroundings)
    return done.stdout.strip()


@contextmanager
def progress() -> Iterator[Progress]:
    """Progress bars on a terminal; silence elsewhere."""
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield bars


def say(text: str) -> None:
    """Print a plain line."""
    console.print(text, highlight=False, soft_wrap=True)


class LineLog:
    """Prints a line now and then where no progress bar can be shown (files, CI)."""

    def __init__(self, *, every_s: float = 15.0) -> None:
        self.every_s, self._last = every_s, 0.0

    def __call__(self, text: str, *, force: bool = False) -> None:
        """Print `text` if the last line is old enough, or if forced."""
        if not console.is_terminal and (force or time.monotonic() - self._last > self.every_s):
            self._last = time.monotonic()
            say(text)
            sys.stdout.flush()


def _as_json(value: Any) -> Any:
    """What an environment put into `info` and JSON has no form for: numbers of numpy as numbers, the rest as text."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)
