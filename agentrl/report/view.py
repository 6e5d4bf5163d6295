"""A run, or an evaluation by itself, as a page shows it: its records by kind, its label among others."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from agentrl.common.intervals import wilson_interval
from agentrl.config.describe import leaves
from agentrl.errors import CheckpointError
from agentrl.report.archive import Archive
from agentrl.runs.folder import read_metrics, read_recorded_config, read_versions
from agentrl.runs.metrics import clock_seconds
from agentrl.types import Metrics

_IN_POLICY = {"gate.kind", "gate.tau", "gate.k", "gate.stop_prob", "gate.target", "learner.max_reuse"}
"""Config keys that `name_policy` puts into words."""

_RATE_GATES = ("kl_rate", "ess_rate")
"""Gates that set the learning rate."""


@dataclass
class RunView:
    """Everything a report says about a run comes from here."""

    folder: Path
    config: dict[str, Any]
    versions: dict[str, Any]
    records: list[Metrics]
    label: str = ""
    """What tells it from the other runs on the page."""

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.folder.resolve().name

    @property
    def played(self) -> str:
        """The split of its last evaluation, `generated` before it where its tasks are."""
        return str(self.evals[-1].get("eval/split", "")) if self.evals else ""

    @property
    def environments(self) -> str:
        """Ids of what is played."""
        env = self.config["env"]
        return ", ".join(dict.fromkeys(each["id"] for each in (env if isinstance(env, list) else [env])))

    @property
    def is_run(self) -> bool:
        """Whether it was trained; else it is what `agentrl evaluate` wrote."""
        return (self.folder / "metrics.jsonl").is_file()

    @cached_property
    def archive(self) -> Archive:
        """Its stored episodes."""
        return Archive(self.folder, self.config.get("advantage", {}))

    @property
    def batches(self) -> list[Metrics]:
        """Records of rollout batches."""
        return [record for record in self.records if record["kind"] == "train"]

    @property
    def evals(self) -> list[Metrics]:
        """Records of evaluations."""
        return [record for record in self.records if record["kind"] == "eval"]

    @property
    def is_finished(self) -> bool:
        """Whether the last evaluation is there."""
        return bool(self.evals) and bool(self.evals[-1].get("final"))

    def episodes_at(self, step: int) -> int:
        """Training episodes played by the end of a rollout batch."""
        done = [batch["cost/episodes"] for batch in self.batches if batch["step"] <= step]
        return int(done[-1]) if done else 0

    def cpu_seconds_at(self, step: int) -> float:
        """CPU seconds of rollouts and updates by the end of a rollout batch."""
        return sum(b["time/rollout_cpu_s"] + b["time/update_cpu_s"] for b in self.batches if b["step"] <= step)

    def seconds_at(self, step: int) -> float:
        """Seconds on the clock of all batches by the end of one."""
        return sum(clock_seconds(batch) for batch in self.batches if batch["step"] <= step)


def load_runs(folders: Sequence[Path]) -> list[RunView]:
    """Read run folders and folders of evaluations, and label them by what differs.

    Raises:
        CheckpointError: a folder is neither.
    """
    runs = [_load(folder) for folder in folders]
    for run, label in zip(runs, describe_differences([run.config for run in runs]), strict=True):
        run.label = label or run.name
    return runs


def _load(folder: Path) -> RunView:
    if (folder / "result.json").is_file():
        return _load_evaluation(folder)
    if (folder / "samples.jsonl").is_file():
        raise CheckpointError(f"{folder} has no result.json: its evaluation has not ended. Run it again to its end.")
    config = read_recorded_config(folder)
    if not (folder / "metrics.jsonl").is_file():
        raise CheckpointError(f"{folder} is no run folder: it has no metrics.jsonl.")
    return RunView(folder, config, read_versions(folder), read_metrics(folder))


def _load_evaluation(folder: Path) -> RunView:
    """What `agentrl evaluate --out FOLDER` wrote: one evaluation, of a model that is not trained here."""
    path = folder / "result.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        about = result.pop("about")
        config = about.pop("config")
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read as the result of an evaluation: {error!r}.") from None
    return RunView(folder, config, about, [{**result, "step": 0, "kind": "eval", "final": True}])


def same_settings(runs: Sequence[RunView]) -> list[list[RunView]]:
    """Runs that differ in nothing but `train.seed` and in what they write belong together, by their seeds."""
    found: dict[str, list[RunView]] = {}
    for run in runs:
        found.setdefault(json.dumps(without_seed(run.config)), []).append(run)
    return [sorted(group, key=lambda run: run.config["train"]["seed"]) for group in found.values()]


def without_seed(config: dict[str, Any]) -> dict[str, Any]:
    """The setting that a run is a seed of."""
    warmstart = {**config.get("warmstart", {}), "cache_dir": None}
    return {**config, "train": {**config["train"], "seed": 0}, "warmstart": warmstart, "tracking": {}, "checkpoint": {}}


def describe_differences(configs: Sequence[dict[str, Any]]) -> list[str]:
    """One short text per config that names the values in which it differs from the others; empty for a single one."""
    flat = [{"policy": name_policy(config), **dict(leaves(config))} for config in configs]
    keys = list(dict.fromkeys(key for values in flat for key in values if key not in _IN_POLICY))
    differing = [key for key in keys if len({json.dumps(values.get(key)) for values in flat}) > 1]
    telling = [key for key in differing if not key.startswith(("tracking.", "checkpoint."))]
    texts = []
    for values in flat:
        words = [values[key] if key == "policy" else f"{_short(key)} {_plain(values.get(key))}" for key in telling[:5]]
        texts.append(", ".join(words))
    return texts


def name_policy(config: dict[str, Any]) -> str:
    """Reuse policy of an experiment in words: `DGG, tau 0.1, K = 4`."""
    gate, max_reuse = config["gate"], config["learner"]["max_reuse"]
    uses = min(gate["k"], max_reuse) if gate["kind"] == "fixed" else max_reuse
    if uses == 1:
        return "single use"
    names = {
        "none": "naive reuse",
        "fixed": "fixed reuse",
        "dgg": "DGG",
        "total_norm_z": "Z-test on the whole gradient",
        "zclip": "ZClip",
        "kl_rate": "KL stop with a rate that follows the KL",
        "ess_rate": "rate by effective sample size",
        "norm_skip": "norm skip",
    }
    shown = {
        "dgg": ("tau", "tau"),
        "total_norm_z": ("tau", "tau"),
        "random": ("stop_prob", "p ="),
        "kl_rate": ("target",) * 2,
    }
    key, word = shown.get(gate["kind"], ("", ""))
    detail = f", {word} {gate[key]:g}" if key in gate else ""
    return f"{names.get(gate['kind'], gate['kind'] + ' stop')}{detail}, K = {uses}"


def rate_factors(run: RunView) -> tuple[list[float], list[float]]:
    """(batch, factor) that the gate set on the learning rate, at the last applied gradient of each batch.

    Empty where no gate sets the rate, and for runs of versions that did not log it.
    """
    if run.config["gate"]["kind"] not in _RATE_GATES:
        return [], []
    applied = [(b["step"], [u["rate_factor"] for u in b["updates"] if "rate_factor" in u]) for b in run.batches]
    return [step for step, factors in applied if factors], [factors[-1] for _, factors in applied if factors]


def success_interval(record: Metrics, category: str = "all") -> tuple[float, float, float, int]:
    """(rate, low, high, tasks) of a category in an evaluation record, with the record's own 95 % interval.

    With several episodes a task that is a bootstrap over tasks, else Wilson's over tasks: episodes of a task are not
    independent.
    """
    wins, count = record["eval/counts"].get(category, (0, 0))
    samples = record.get("eval/samples", 1)
    num_tasks = count // samples
    low, high = record.get("eval/bounds", {}).get(category) or wilson_interval(round(wins / samples), num_tasks)
    return wins / max(1, count), low, high, num_tasks


def _short(key: str) -> str:
    section, name = key.split(".")[0], key.split(".")[-1]
    return section if name == "kind" else {"max_reuse": "K"}.get(name, name)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
