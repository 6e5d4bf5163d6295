"""Writes a run folder: config, versions, metrics.jsonl, curves, episodes."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker

from agentrl.config.schema import Config
from agentrl.console import note
from agentrl.learner.protocol import Update
from agentrl.model.compiled import asked_compiler
from agentrl.rollout.rollout_batch import RolloutBatch
from agentrl.runs.diagnosis import Cause, Diagnosis
from agentrl.runs.episodes import as_json, describe_trajectory
from agentrl.runs.folder import read_metrics
from agentrl.runs.metrics import step_metrics
from agentrl.runs.outputs import not_empty, require_empty, whole_file, write_json
from agentrl.runs.software import describe_software
from agentrl.runs.trackers import log_curves, log_episodes, start_tracker
from agentrl.types import Group, Metrics, Trajectory

OnBatch = Callable[[Metrics, list[Group]], bool | None]
"""What a script does after each batch: its record, and its groups of episodes. False: that is enough."""


def due(every: int, step: int) -> bool:
    """Whether something that happens `every` steps happens after this one."""
    return every > 0 and step % every == 0


class RunWriter:
    """A run folder.

    `metrics.jsonl` holds one flat JSON object a line; times and rates are under keys that start with `time/`,
    everything else repeats bit by bit when a deterministic run is repeated or resumed.
    """

    def __init__(
        self, folder: Path, config: Config, *, tokenizer: Any, writes: bool = True, num_parameters: int | None = None
    ) -> None:
        self.folder, self.config, self.tokenizer, self.writes = folder, config, tokenizer, writes
        self.costs: Metrics = {}
        """`cost/` sums of the last record."""
        self.last_failed_share = 0.0
        """Of the episodes of the last batch."""
        self._diagnosis = Diagnosis(config, num_parameters=num_parameters)
        self._told: set[str] = set()
        """Codes of the causes on record."""
        self._trackers: list[GeneralTracker] = []

    @classmethod
    def create(
        cls, folder: Path, config: Config, *, tokenizer: Any, command: list[str], num_parameters: int | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> "RunWriter":  # fmt: skip
        """A new run folder; `data` says where the tasks come from, split by split.

        Raises:
            UserError: the folder exists and is not empty.
        """
        require_empty(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            (folder / "metrics.jsonl").touch(exist_ok=False)
        except FileExistsError:  # in this very moment
            raise not_empty(folder) from None
        run = cls(folder, config, tokenizer=tokenizer, num_parameters=num_parameters)
        write_json(folder / "config.json", config.model_dump())
        about = {**describe_software(), "seed": config.train.seed, "command": command, "data": data}
        if compiler := asked_compiler():
            about["compiler"] = compiler.backend
        write_json(folder / "versions.json", about)
        return run

    @classmethod
    def reopen(
        cls, folder: Path, config: Config, *, tokenizer: Any, step: int, num_parameters: int | None = None
    ) -> "RunWriter":
        """An existing run folder, with everything logged after `step` rollout batches forgotten."""
        metrics = folder / "metrics.jsonl"
        kept = [record for record in read_metrics(folder) if record["step"] <= step and not record.get("final")]
        with whole_file(metrics) as file:
            file.writelines(json.dumps(record) + "\n" for record in kept)
        for path in (folder / "trajectories").glob("step-*.jsonl"):
            number = path.stem.removeprefix("step-")  # anything else is a copy of the user's
            if number.isdecimal() and int(number) > step:
                path.unlink()
        run = cls(folder, config, tokenizer=tokenizer, num_parameters=num_parameters)
        run.costs = next((record for record in reversed(kept) if record["kind"] == "train"), {})
        run.last_failed_share = run.costs.get("rollout/failed_share", 0.0)
        for record in kept:
            if record["kind"] == "train":
                run._diagnosis.take(record)
                run._told |= {cause["code"] for cause in record.get("diagnosis", ())}
        return run

    def log_batch(self, step: int, batch: RolloutBatch, update: Update, further: Metrics) -> Metrics:
        """Log a rollout batch of all processes and what was learned from it, with a diagnosis of it; the record."""
        record = {**step_metrics(step, batch, update, costs=self.costs, config=self.config), **further}
        if self.writes:
            self._diagnosis.take(record)
            if found := self._tell_causes():
                record["diagnosis"] = [{"code": cause.code, "text": str(cause)} for cause in found]
            self.log(record, groups=batch.groups)
        return record

    def _tell_causes(self) -> list[Cause]:
        """Tell what keeps the run from learning, each cause once."""
        found = [cause for cause in self._diagnosis.causes if cause.code not in self._told]
        self._told |= {cause.code for cause in found}
        for cause in found:
            note(str(cause))
        return found

    def log_evaluation(
        self, step: int, metrics: Metrics, trajectories: Iterable[Trajectory], *, final: bool = False
    ) -> None:
        """Log an evaluation after `step` rollout batches, with its episodes; `final` where the run ends with it."""
        record = {"step": step, "kind": "eval", "final": final or step == self.config.train.steps, **metrics}
        self.log(record, name=f"eval-{step:06d}", trajectories=trajectories)

    def is_evaluated(self, step: int) -> bool:
        """Whether the evaluation due after `step` batches is on record, or none is due but the one at the end."""
        if step and (step >= self.config.train.steps or not due(self.config.eval.every, step)):
            return True
        return any(record["kind"] == "eval" and record["step"] == step for record in read_metrics(self.folder))

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
        trajectories = list(trajectories)
        step, every = metrics["step"], self.config.tracking.trajectories_every
        if name is not None:
            self._store(name, trajectories)
        elif every and step % every == 0:
            self._store(f"step-{step:06d}", [t for group in groups for t in group.trajectories])
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        self.costs = metrics if metrics["kind"] == "train" else self.costs
        self._start_trackers(step)
        for tracker in self._trackers:
            log_curves(tracker, metrics, step=step)
        log_episodes(self._trackers, trajectories, step=step)

    def _store(self, name: str, trajectories: Iterable[Trajectory]) -> None:
        """Write `trajectories/NAME.jsonl`: one episode a line, readable without this package."""
        path = self.folder / "trajectories" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        with whole_file(path, errors="replace") as file:
            for trajectory in trajectories:
                record = describe_trajectory(trajectory, decode=self.tokenizer.decode)
                file.write(json.dumps(record, ensure_ascii=False, default=as_json) + "\n")

    def close(self) -> None:
        """Flush the trackers."""
        for tracker in self._trackers:
            tracker.finish()

    def _start_trackers(self, step: int) -> None:
        if not self._trackers:
            names = self.config.tracking.trackers
            self._trackers = [start_tracker(name, self.folder, self.config, step=step) for name in names]
