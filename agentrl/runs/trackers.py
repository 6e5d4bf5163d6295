"""Where curves go beside metrics.jsonl: TensorBoard, W&B, MLflow, trackio, by accelerate's trackers."""

import importlib.util
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from agentrl.common.extras import MissingExtraError
from agentrl.config.describe import leaves
from agentrl.config.schema import Config
from agentrl.errors import UserError
from agentrl.types import Metrics, Trajectory

FIRST_SCREEN = {
    "1_success/held_out": "eval/success",
    "1_success/training": "rollout/success",
    "2_reward/held_out": "eval/reward",
    "2_reward/training": "rollout/reward",
    "3_reuse/uses": "learner/steps",
    "3_reuse/discarded": "learner/discarded",
    "3_reuse/kl": "learner/last_kl",
    "4_health/cut_turns": "rollout/cut_turns",
    "4_health/engine_kl": "learner/engine_kl",
    "4_health/entropy": "learner/entropy",
    "4_health/equal_groups": "health/equal_groups",
    "4_health/failed_share": "rollout/failed_share",
    "4_health/invalid_actions": "rollout/invalid_actions",
    "4_health/repeated_answers": "health/repeated_answers",
    "4_health/task_information": "health/task_information",
    "4_health/truncated": "health/truncated",
}
"""Names that trackers sort before all others -> key of metrics.jsonl; every key is there under its own name too."""

COLUMNS = ("step", "split", "task", "category", "success", "reward", "status", "turns", "prompt", "answers")
"""Of the table of episodes."""
_SHOWN_CHARACTERS = 2000
_NOT_OF_MLFLOW = re.compile(r"[^\w\-. :/]")
"""What MLflow refuses in the names of numbers."""


def require_trackers(names: Iterable[str]) -> None:
    """Refuse trackers that cannot work, before the run costs anything.

    Raises:
        UserError: a package is not installed, or Weights & Biases knows no key or does not answer.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            extra = None if name == "tensorboard" else name
            raise MissingExtraError(name, extra, f"tracking.trackers: {name}")
        if name == "wandb":
            _require_wandb()


def _require_wandb() -> None:
    import wandb

    mode = wandb.setup().settings.mode
    if mode in ("offline", "disabled", "dryrun"):
        return
    remedy = "or set WANDB_MODE=offline (`wandb sync` uploads later), or leave wandb out of tracking.trackers"
    try:
        known = wandb.login(prompt=False, verify=True, timeout=20)
    except (wandb.errors.Error, OSError) as error:
        text = " ".join(str(error).split())
        raise UserError(
            f"tracking.trackers: Weights & Biases refuses: {text[:300]} Run `wandb login`, {remedy}."
        ) from None
    if not known:
        raise UserError(
            f"tracking.trackers: Weights & Biases has no key. Run `wandb login` or set WANDB_API_KEY, {remedy}."
        )


def start_tracker(name: str, folder: Path, config: Config, *, step: int) -> GeneralTracker:
    """A tracker that has begun.

    Args:
        name: of `tracking.trackers`.
        folder: of the run; its name is the run's.
        config: what the run is called to be made of.
        step: of the first record to come.

    Raises:
        UserError: it cannot begin.
    """
    try:
        tracker = _tracker(name, folder, config, step=step)
        tracker.start()
        if name == "mlflow":
            tracker.store_init_configuration(dict(leaves(config.model_dump())))
    except Exception as error:  # of a package that raises what it likes
        raise UserError(f"tracking.trackers: {name} cannot begin: {type(error).__name__}: {error}") from error
    return tracker


def _tracker(name: str, folder: Path, config: Config, *, step: int) -> GeneralTracker:
    kind = LOGGER_TYPE_TO_CLASS[name]
    project = os.environ.get(f"{name.upper()}_PROJECT", "agentrl")
    if name == "tensorboard":
        # Points that a resumed run will write again are hidden by the viewer.
        return kind("tensorboard", logging_dir=folder, purge_step=step)
    if name == "wandb":
        return kind(project, name=folder.name, group=folder.name, dir=str(folder), config=config.model_dump())
    if name == "trackio":
        resume = "allow" if step else "never"
        mute = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}  # what it shows and measures by itself
        return kind(project, name=folder.name, config=config.model_dump(), resume=resume, **mute)
    return kind("agentrl", run_name=folder.name)  # MLFLOW_EXPERIMENT_NAME goes before


def log_curves(tracker: GeneralTracker, metrics: Metrics, *, step: int) -> None:
    """The numbers of a record, under names that the tracker takes."""
    curves = curves_of(metrics)
    if tracker.name == "mlflow":
        curves = {_NOT_OF_MLFLOW.sub("_", key): value for key, value in curves.items()}
    tracker.log(curves, step=step)


def curves_of(metrics: Metrics) -> dict[str, float]:
    """The numbers of a record, with those that are looked at first under names that come first."""
    numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float) and key != "step"}
    return {first: numbers[key] for first, key in FIRST_SCREEN.items() if key in numbers} | numbers


def log_episodes(trackers: Iterable[GeneralTracker], trajectories: Iterable[Trajectory], *, step: int) -> None:
    """A table of episodes, for trackers that have tables."""
    rows = [_row(trajectory, step) for trajectory in trajectories]
    for tracker in trackers:
        if rows and tracker.name == "wandb":
            tracker.log_table("episodes", columns=list(COLUMNS), data=rows, step=step)


def _row(trajectory: Trajectory, step: int) -> list[Any]:
    """One line of the table, in the order of `COLUMNS`."""
    answers = "\n".join(turn.action for turn in trajectory.turns)
    return [
        step, trajectory.task.split, trajectory.name or "", trajectory.category or "", bool(trajectory.success),
        float(trajectory.reward), trajectory.status.value, len(trajectory.turns),
        trajectory.first_observation[:_SHOWN_CHARACTERS], answers[:_SHOWN_CHARACTERS],
    ]  # fmt: skip
