"""What a study measured: run folders -> one JSON file -> tables.

The JSON holds, per run, its settings, its curve (one row an evaluation), its monitors (one value an evaluation) and its
costs; everything in tables and figures is computed from it, so that nothing in the README is typed.
"""

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.analysis.speedup import LAST, converged, degradation_onset, paired_difference, speedup, step_time
from agentrl.errors import UserError
from agentrl.runs.folder import read_metrics, read_versions
from agentrl.runs.outputs import whole_file
from agentrl.study.plan import Cell, Study, require_known
from agentrl.study.run_monitors import monitors, reuse_by_k
from agentrl.study.runner import describe_processor, is_done, read_cost, read_machine

COLUMNS = (
    "step", "success", "episodes", "generated_tokens", "trained_tokens", "optimizer_steps", "discarded_steps",
    "cpu_s", "wall_s",
)  # fmt: skip
"""Of a run's curve: rollout batches, success on held-out tasks, and cumulative costs of training (evaluations and
start-up left out); `cpu_s` is what `time/rollout_cpu_s` and `time/update_cpu_s` add up to, `wall_s` likewise."""

Run = dict[str, Any]

_OF_STUDY = {"title", "reference", "rollout_share", "arms", "stages"}
_OF_RUN = {"arm", "axes", "seed", "stage", "curve", "run_cost"}
"""What tables cannot do without."""


def describe_run(cell: Cell, folder: Path, stage: str) -> Run:
    """The record of a finished run."""
    records = read_metrics(folder)
    batches = [record for record in records if record["kind"] == "train"]
    updates = [update for batch in batches for update in batch["updates"]]
    by_k = reuse_by_k(updates)
    reuse = {what: sum(steps[what] for steps in by_k.values()) for what in ("gradients", "discarded", "rises")}
    versions = read_versions(folder)
    return {
        "key": cell.key,
        "arm": cell.arm,
        "axes": dict(cell.axes),
        "seed": cell.seed,
        "stage": stage,
        "overrides": dict(cell.overrides),
        "curve": list(_curve(records)),
        "monitors": monitors(records),
        "training_success": [round(batch["rollout/success"], 4) for batch in batches],
        "reuse_steps": reuse["gradients"],
        "discarded_reuse_steps": reuse["discarded"],
        "rising_reuse_steps": reuse["rises"],
        "by_k": by_k,
        "closed_batches": sum(batch["learner/gate_closed"] for batch in batches),
        "run_cost": {key: round(value, 2) for key, value in read_cost(folder).items()},
        "initial": file_hash(folder / "initial" / "model.safetensors"),
        "machine": read_machine(folder) or describe_processor(),
        "command": " ".join(["python -m agentrl.train", *versions.get("command", [])[1:]]),
        "git_commit": versions.get("git_commit"),
    }


def _curve(records: list[dict[str, Any]]) -> Iterable[list[float]]:
    cpu_s = wall_s = 0.0
    costs = [0] * 5
    for record in records:
        if record["kind"] == "train":
            cpu_s += record["time/rollout_cpu_s"] + record["time/update_cpu_s"]
            wall_s += record["time/rollout_s"] + record["time/update_s"]
            costs = [record[f"cost/{name}"] for name in COLUMNS[2:7]]
        else:
            yield [record["step"], round(record["eval/success"], 4), *costs, round(cpu_s, 3), round(wall_s, 3)]


class Results:
    """The runs of a study, read from its folders or from its JSON file."""

    def __init__(self, study: dict[str, Any], runs: list[Run]) -> None:
        self.study, self.runs = study, runs

    @classmethod
    def collect(cls, study: Study, cells: dict[str, list[Cell]], measured: dict[str, Run] | None = None) -> "Results":
        """The runs of the cells of each stage.

        Args:
            study: what was asked for.
            cells: the runs of each stage.
            measured: records by key of runs that were read before (`by_key` of a results file); their folders are not
                looked at again and may be gone. Newly finished runs are added.
        """
        measured = {} if measured is None else measured
        runs = []
        for stage, members in cells.items():
            for cell in members:
                folder = Path(study.config.runs).expanduser() / cell.key
                if cell.key not in measured and is_done(folder):
                    measured[cell.key] = describe_run(cell, folder, stage)
                if cell.key in measured:
                    runs.append({**measured[cell.key], "stage": stage})
        return cls(study.config.model_dump(), runs)

    @classmethod
    def read(cls, path: Path) -> "Results":
        """From a results file.

        Raises:
            UserError: there is none, it is damaged, or it is no study's.
        """
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read as a study's results: {error}.") from error
        try:
            machine = tree["machine"]["processor"]
            found = cls(tree["study"], [{"machine": machine, **run} for run in tree["runs"]])
            is_whole = found.study.keys() >= _OF_STUDY and all(run.keys() >= _OF_RUN for run in found.runs)
        except (KeyError, TypeError, AttributeError):
            is_whole = False
        if not is_whole:
            raise UserError(
                f"{path} is not the results of a study: expected what `python -m agentrl.study STUDY.toml` writes, got "
                f"{str(tree)[:60]}."
            )
        return found

    def by_key(self) -> dict[str, Run]:
        """Record of each run by its cell's key."""
        return {run["key"]: run for run in self.runs}

    def write(self, path: Path, *, command: str) -> None:
        """One JSON file, one line a run."""
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {"command": command, "machine": describe_machine(), "columns": COLUMNS, "study": self.study}
        body = ",\n  ".join(json.dumps(run) for run in self.runs)
        with whole_file(path) as file:
            file.write(json.dumps(head, indent=1)[:-2] + f',\n "runs": [\n  {body}\n ]\n}}\n')

    def lookup(self, kind: str, arm: str, stage: str, axis: str) -> Any:
        """A value that a later stage takes from an earlier one (`StudyConfig`); None where no run is there."""
        runs = [run for run in self.runs if run["stage"] == stage and run["arm"] == arm]
        if not runs:
            return None
        if kind == "stops":
            tests = sum(run["reuse_steps"] for run in runs)
            return round(sum(run["discarded_reuse_steps"] for run in runs) / max(1, tests), 3)
        by_value: dict[Any, list[Run]] = {}
        for run in runs:
            by_value.setdefault(run["axes"][axis], []).append(run)
        return max(by_value, key=lambda value: mean_final(by_value[value]))

    def settings(self, stage: str) -> dict[tuple[str, str], list[Run]]:
        """(arm, axes as text) -> its runs by seed, in the order of the study."""
        found: dict[tuple[str, str], list[Run]] = {}
        for run in self.runs:
            if run["stage"] == stage:
                found.setdefault((run["arm"], describe_axes(run["axes"])), []).append(run)
        return {setting: sorted(runs, key=lambda run: run["seed"]) for setting, runs in found.items()}

    def best_reference(self, stage: str) -> list[Run] | None:
        """Runs of the single-use setting that ends highest in a stage; None where it has none."""
        candidates = [runs for (arm, _), runs in self.settings(stage).items() if arm == self.study["reference"]]
        return max(candidates, key=mean_final, default=None)

    def reference_for(self, stage: str, seeds: Sequence[int] = ()) -> list[Run] | None:
        """What a stage is measured against: its own best single use, else that of the first stage over the same values.

        Failing both, single use in an earlier stage that compares arms, where it ran on these seeds.
        """
        stages = self.study["stages"]
        alike = [name for name in stages if stage in stages and stages[name]["axes"] == stages[stage]["axes"]]
        found = (self.best_reference(name) for name in (stage, *alike))
        return next(filter(None, found), None) or self.earlier_reference(seeds)

    def earlier_reference(self, seeds: Sequence[int] = ()) -> list[Run] | None:
        """Single use in the first stage that compares arms, where it ran on these seeds."""
        for stage in self.study["stages"]:
            if not self.is_grid(stage):
                found = self.best_reference(stage)
                if found and set(seeds) <= {run["seed"] for run in found}:
                    return found
        return None

    def is_grid(self, stage: str) -> bool:
        """Whether a stage maps values of an axis instead of comparing arms at one."""
        axes = self.study["stages"][stage]["axes"]
        return any(isinstance(value, list) and len(value) > 1 for value in axes.values())

    def label(self, arm: str) -> str:
        """How tables call an arm."""
        return str(self.study["arms"][arm]["label"] or arm)


def require_arms(studies: Iterable[Results], arms: Iterable[str]) -> None:
    """Refuse arms that no study has.

    Raises:
        UserError: which, and which there are.
    """
    require_known("arm", arms, dict.fromkeys(arm for results in studies for arm in results.study["arms"]))


def describe_axes(axes: Mapping[str, Any]) -> str:
    """`{"learner.lr": 1e-3, "learner.max_reuse": 4}` -> `"lr 0.001, max_reuse 4"`."""
    return ", ".join(f"{key.split('.')[-1]} {describe_value(value)}" for key, value in axes.items())


def describe_value(value: Any) -> str:
    """A value on an axis: a number without zeros that say nothing, a word as it is."""
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def axes_order(runs: Sequence[Run]) -> list[tuple[bool, Any]]:
    """What sorts settings by their place on the axes, numbers before words."""
    return [(isinstance(value, str), value) for value in runs[0]["axes"].values()]


def file_hash(path: Path) -> str | None:
    """First digits of a file's SHA-256; None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else None


def column(run: Run, name: str) -> list[float]:
    """A column of a run's curve."""
    place = COLUMNS.index(name)
    return [row[place] for row in run["curve"]]


def final_success(run: Run) -> float:
    """Mean of the last five evaluations, that before training left out where there are others."""
    curve = column(run, "success")
    return converged(curve[1:] if len(curve) > 1 and not column(run, "step")[0] else curve, last=LAST)


def mean_final(runs: Sequence[Run]) -> float:
    """`final_success`, averaged over runs."""
    return float(np.mean([final_success(run) for run in runs]))


def shared_time(run: Run, *, rollout_share: float) -> list[float]:
    """Time at each evaluation by `step_time`, in single-use steps."""
    return [
        step_time(step, applied + discarded, rollout_share=rollout_share)
        for step, applied, discarded in zip(
            column(run, "step"), column(run, "optimizer_steps"), column(run, "discarded_steps"), strict=True
        )
    ]


def on_shared_seeds(*groups: Sequence[Run]) -> list[list[Run]]:
    """The runs of each group on the seeds that all of them have, in the same order."""
    seeds = sorted(set.intersection(*({run["seed"] for run in group} for group in groups)))
    return [[next(run for run in group if run["seed"] == seed) for seed in seeds] for group in groups]


def compare(runs: list[Run], reference: list[Run], *, rollout_share: float) -> dict[str, Any]:
    """An arm against the single-use arm, on the seeds they share."""
    pick = on_shared_seeds(reference, runs)
    scores = [[column(run, "success") for run in group] for group in pick]
    finals = [[final_success(run) for run in group] for group in pick]
    costs = {
        "rollouts": [[column(run, "episodes") for run in group] for group in pick],
        "cpu": [[column(run, "cpu_s") for run in group] for group in pick],
        "time": [[shared_time(run, rollout_share=rollout_share) for run in group] for group in pick],
    }
    tests = sum(run["reuse_steps"] for run in pick[1]) or float("nan")
    onsets = [degradation_onset(curve) for curve in scores[1]]
    return {
        "seeds": [run["seed"] for run in pick[0]],
        "final": float(np.mean(finals[1])),
        "difference": paired_difference(finals[1], finals[0]),
        "speedup": {name: speedup((c[0], scores[0]), (c[1], scores[1])) for name, c in costs.items()},
        "degraded": sum(onset is not None for onset in onsets),
        "lowest": float(np.mean([min(curve[len(curve) // 2 :]) for curve in scores[1]])),
        "steps_per_batch": float(np.mean([sum(r["curve"][-1][5:7]) / r["curve"][-1][0] for r in pick[1]])),
        "discarded": sum(run["discarded_reuse_steps"] for run in pick[1]) / tests,
        "rising": sum(run.get("rising_reuse_steps", float("nan")) for run in pick[1]) / tests,
        "cpu_s": float(np.mean([run["run_cost"]["cpu_s"] for run in pick[1]])),
    }


def describe_machine() -> dict[str, Any]:
    """Where the tables are made."""
    return {"processor": describe_processor(), "cores": os.cpu_count(), "system": platform.platform()}
