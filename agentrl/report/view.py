"""A run as a page shows it: its records by kind, its label among others, its stored episodes with token texts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from agentrl.common.intervals import wilson_interval
from agentrl.errors import CheckpointError
from agentrl.runs.folder import episode_files, read_episodes, read_metrics, read_recorded_config, read_versions
from agentrl.types import Metrics

UNFINISHED = "\ufffd"
"""Stands for a token that is only a part of a character: every token can be seen and asked for its log-prob."""
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

    def seconds_at(self, step: int) -> float:
        """CPU seconds of rollouts and updates by the end of a rollout batch."""
        return sum(b["time/rollout_cpu_s"] + b["time/update_cpu_s"] for b in self.batches if b["step"] <= step)


def load_runs(folders: Sequence[Path]) -> list[RunView]:
    """Read run folders and label them by what differs.

    Raises:
        CheckpointError: a folder is no run folder.
    """
    runs = []
    for folder in folders:
        config = read_recorded_config(folder)
        if not (folder / "metrics.jsonl").is_file():
            raise CheckpointError(f"{folder} is no run folder: it has no metrics.jsonl.")
        runs.append(RunView(folder, config, read_versions(folder), read_metrics(folder)))
    for run, label in zip(runs, describe_differences([run.config for run in runs]), strict=True):
        run.label = label or run.name
    return runs


def describe_differences(configs: Sequence[dict[str, Any]]) -> list[str]:
    """One short text per config that names the values in which it differs from the others; empty for a single one."""
    flat = [{"policy": name_policy(config), **dict(_leaves(config))} for config in configs]
    keys = list(dict.fromkeys(key for leaves in flat for key in leaves if key not in _IN_POLICY))
    differing = [key for key in keys if len({json.dumps(leaves.get(key)) for leaves in flat}) > 1]
    telling = [key for key in differing if not key.startswith(("tracking.", "checkpoint."))]
    texts = []
    for leaves in flat:
        words = [leaves[key] if key == "policy" else f"{_short(key)} {_plain(leaves.get(key))}" for key in telling[:5]]
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

    With several episodes a task that is a bootstrap over tasks, else Wilson's.
    """
    wins, count = record["eval/counts"].get(category, (0, 0))
    low, high = record.get("eval/bounds", {}).get(category) or wilson_interval(wins, count)
    return wins / max(1, count), low, high, count // record.get("eval/samples", 1)


def pick_episodes(run: RunView, *, limit: int, files: int = 4) -> list[dict[str, Any]]:
    """Episodes for the browser: from the first, the last and some files between, wins and losses mixed."""
    paths = episode_files(run.folder)
    if len(paths) > files:
        paths = [paths[round(i * (len(paths) - 1) / (files - 1))] for i in range(files)]
    decode = _decoder(run.folder)
    chosen = []
    for path in paths:
        records = _mixed(list(read_episodes(path)), limit // len(paths))
        chosen += [describe_episode(record, source=path.stem, decode=decode) for record in records]
    return chosen


def newest_episodes(run: RunView, *, limit: int, with_rows: bool = True) -> list[dict[str, Any]]:
    """Episodes of the newest stored batch or evaluation; without their tokens where those are not wanted."""
    paths = episode_files(run.folder)[-1:]
    decode = _decoder(run.folder) if with_rows else None
    found = [(path, record) for path in paths for record in _mixed(list(read_episodes(path)), limit)]
    if not with_rows:
        found = [(path, {**record, "rows": []}) for path, record in found]
    return [describe_episode(record, source=path.stem, decode=decode) for path, record in found]


def describe_episode(record: dict[str, Any], *, source: str, decode: Any = None) -> dict[str, Any]:
    """What the browser shows of an episode: turns, and each row's tokens with log-probs."""
    return {
        "source": source,
        "name": record["task"]["name"] or f"task {record['task']['index']}",
        "member": record["member"],
        "policy": record["policy_version"],
        "category": record["category"],
        "status": record["status"],
        "success": record["success"],
        "reward": record["reward"],
        "error": record["error"],
        "first": record["first_observation"],
        "turns": [
            {key: turn[key] for key in ("action", "observation", "reward", "is_valid", "finish", "row", "start", "end")}
            for turn in record["turns"]
        ],
        "rows": [
            {
                "pieces": decode(row["ids"]) if decode else [f"[{i}]" for i in row["ids"]],
                "trained": "".join(map(str, row["trained"])),
                "logprobs": [round(x, 3) if t else 0 for x, t in zip(row["logprobs"], row["trained"], strict=True)],
            }
            for row in record["rows"]
        ],
    }


def _mixed(records: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """`count` records in their order, every (category, success) in turn."""
    piles: dict[tuple[str, bool], list[int]] = {}
    for i, record in enumerate(records):
        piles.setdefault((record["category"], record["success"]), []).append(i)
    chosen: list[int] = []
    depth = 0
    while len(chosen) < min(count, len(records)):
        chosen += [pile[depth] for pile in piles.values() if depth < len(pile)][: count - len(chosen)]
        depth += 1
    return [records[i] for i in sorted(chosen)]


def _decoder(folder: Path) -> Any:
    """Function from ids to one text per token, or None where the run folder holds no tokenizer."""
    path = folder / "initial" / "tokenizer.json"
    if not path.is_file():
        return None
    tokenizer = Tokenizer.from_file(str(path))

    def decode(ids: list[int]) -> list[str]:
        stream = DecodeStream(skip_special_tokens=False)
        return [stream.step(tokenizer, i) or UNFINISHED for i in ids]

    return decode


def _leaves(tree: dict[str, Any], prefix: str = "") -> Any:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(key: str) -> str:
    section, name = key.split(".")[0], key.split(".")[-1]
    return section if name == "kind" else {"max_reuse": "K"}.get(name, name)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
