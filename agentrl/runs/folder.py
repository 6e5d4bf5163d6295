"""Reading run folders: config, records, episodes. Needs no torch, so reports and live pages start at once."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.common.installation import install_hint
from agentrl.common.paths import user_path
from agentrl.config.read import build_config
from agentrl.config.schema import Config
from agentrl.errors import CheckpointError, UserError
from agentrl.types import Metrics


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder tells it, running or finished."""

    folder: Path
    config: Config
    records: list[Metrics]
    """metrics.jsonl, oldest first."""

    @property
    def batches(self) -> list[Metrics]:
        """One record a rollout batch."""
        return [record for record in self.records if record["kind"] == "train"]

    @property
    def evaluations(self) -> list[Metrics]:
        """One record an evaluation; `eval/success` is the share of successes."""
        return [record for record in self.records if record["kind"] == "eval"]

    @property
    def metrics(self) -> Any:
        """A pandas DataFrame of all numbers: a row a step (rollout batches so far), a column a name.

        `rollout/` and the like are of the batch that ended there, `eval/` of the evaluation after it.
        """
        try:
            import pandas
        except ImportError:
            hint = install_hint("notebook")
            raise UserError(f"run.metrics is a pandas DataFrame, and pandas is missing: {hint}") from None
        rows: dict[int, Metrics] = {}
        for record in self.records:
            numbers = {k: v for k, v in record.items() if isinstance(v, int | float) and k not in ("step", "final")}
            rows.setdefault(record["step"], {}).update(numbers)
        return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("step").sort_index()

    def episodes(self) -> Iterator[dict[str, Any]]:
        """All stored episodes (`agentrl.runs.episodes`), oldest first, and under `source` where each was played.

        `step-000004`: batch 4; `eval-000004`: the evaluation after it. `tracking.trajectories_every` says which batches
        are stored.
        """
        for path in episode_files(self.folder):
            for record in read_episodes(path):
                yield {"source": path.stem, **record}

    @property
    def best_checkpoint(self) -> Path | None:
        """Of the checkpoints that lie in the folder (`checkpoint.keep`), the one with most held-out success.

        Between equals more mean reward, then the later one, decides; one that was not evaluated comes last. None where
        there is none. A folder that Hugging Face's `from_pretrained` reads, as `agentrl.evaluate` does.
        """
        rank = {e["step"]: (e["eval/success"], e["eval/reward"]) for e in self.evaluations}
        found = {
            int(match[1]): path
            for path in (self.folder / "checkpoints").glob("step-*")
            if (match := re.fullmatch(r"step-([0-9]{6,})", path.name))
        }
        best = max(found, key=lambda step: (rank.get(step, (-1.0, float("-inf"))), step), default=None)
        return None if best is None else found[best]

    @property
    def reward(self) -> float | None:
        """Held-out mean reward at the last evaluation; None before the first."""
        return float(self.evaluations[-1]["eval/reward"]) if self.evaluations else None

    @property
    def success(self) -> float | None:
        """Held-out success at the last evaluation; None before the first."""
        return float(self.evaluations[-1]["eval/success"]) if self.evaluations else None


def read_run(folder: Path | str) -> RunRecord:
    """Everything about a run but its episodes (`read_episodes`) and weights (`checkpoints/`).

    Raises:
        CheckpointError: there is no run in this folder.
    """
    path = Path(folder).expanduser()
    config = build_config(read_run_config(path))
    try:
        return RunRecord(path, config, read_metrics(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is no run folder: it has no metrics.jsonl.") from None


def read_metrics(folder: Path) -> list[Metrics]:
    """Records of a run, oldest first; a last line that a crash cut off is left out."""
    records = []
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def read_last_record(folder: Path) -> Metrics | None:
    """The newest record of a run, without reading the others; None where there is none or a crash cut it off."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return None
    with path.open("rb") as file:
        place, tail = file.seek(0, 2), b""
        while place and b"\n" not in tail.rstrip(b"\n"):
            step = min(place, 65536)
            place = file.seek(place - step)
            tail = file.read(step) + tail
    lines = tail.splitlines()
    try:
        return dict(json.loads(lines[-1])) if lines else None
    except ValueError:
        return None


def read_run_config(folder: Path | str) -> dict[str, Any]:
    """The resolved config of a run folder, as nested dictionaries."""
    folder = user_path(str(folder))
    with _reading_config(folder):
        tree = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        build_config(tree)
    return dict(tree)


def read_recorded_config(folder: Path) -> dict[str, Any]:
    """The config as a run recorded it, for showing: keys that this version has no more stay, new ones get defaults."""
    with _reading_config(folder):
        tree = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(tree, dict) or "env" not in tree:
        raise CheckpointError(f"{folder} is no run folder: its config.json is not a run's.")
    return _overlay(Config().model_dump(), tree)


def read_versions(folder: Path) -> dict[str, Any]:
    """Versions, git commit, seed and command of a run; empty where they were not written."""
    path = folder / "versions.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def episode_files(folder: Path) -> list[Path]:
    """Files with stored episodes, oldest first; of the evaluation and the batch at one step, the batch first."""
    files = (folder / "trajectories").glob("*-*.jsonl")
    return sorted(files, key=lambda path: (path.stem.split("-")[1], path.stem.startswith("eval")))


def read_episodes(path: Path) -> Iterator[dict[str, Any]]:
    """Records of stored episodes (see `agentrl.tracking.describe_trajectory`), one at a time."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


@contextmanager
def _reading_config(folder: Path) -> Iterator[None]:
    """What is wrong with a run folder's config, as the user's error."""
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is no run folder: it has no config.json.") from None
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read: {error}") from None


def _overlay(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`, tables merged."""
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict) and key != "options":
            merged[key] = _overlay(below[key], above[key])
    return merged
