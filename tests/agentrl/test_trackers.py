"""Trackers, offline and with their real packages: what arrives, and what is said beforehand where nothing could."""

import importlib.util
import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentrl.errors import UserError
from agentrl.runs.trackers import FIRST_SCREEN, curves_of, require_trackers

WORDS = (
    "--env.id", "tests.toy:ColourEnv", "--train.steps", "1", "--train.groups_per_step", "2", "--train.group_size", "2",
    "--eval.tasks", "3", "--rollout.max_new_tokens", "2", "--model.tiny.hidden_size", "16", "--learner.max_reuse", "1",
)  # fmt: skip
_BLOCK = 32768


def train(folder: Path, tracker: str, **surroundings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agentrl.train", *WORDS, "--run-dir", str(folder)]
    return subprocess.run(
        [*command, "--tracking.trackers", json.dumps([tracker])], capture_output=True, text=True, timeout=300,
        env={**os.environ, "HOME": str(folder.parent), **surroundings},
    )  # fmt: skip


def records_of(path: Path) -> Iterator[Any]:
    """Records of an offline W&B file: LevelDB's log format behind a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if _BLOCK - place % _BLOCK < 7:
            place += _BLOCK - place % _BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def test_curves_that_are_looked_at_first_come_first_and_none_is_lost() -> None:
    record = {"step": 3, "kind": "train", "rollout/success": 0.5, "rollout/reward": 1.5, "learner/steps": 2}
    assert curves_of(record) == {
        "1_success/training": 0.5, "2_reward/training": 1.5, "3_reuse/uses": 2,
        "rollout/success": 0.5, "rollout/reward": 1.5, "learner/steps": 2,
    }  # fmt: skip
    assert sorted(FIRST_SCREEN) == list(FIRST_SCREEN) or {name[0] for name in FIRST_SCREEN} == set("1234")


def test_tracker_when_its_package_is_missing_then_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tracking.trackers: wandb needs the package 'wandb'.*\[wandb\]"):
        require_trackers(["wandb"])
    with pytest.raises(UserError, match=r"needs the package 'tensorboard'. Install it with: pip install tensorboard"):
        require_trackers(["tensorboard"])


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="needs the extra wandb")
def test_wandb_without_a_key_then_one_line_before_anything_is_loaded(tmp_path: Path) -> None:
    done = train(tmp_path / "run", "wandb", WANDB_MODE="online", WANDB_BASE_URL="http://127.0.0.1:9")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "WANDB_MODE=offline" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="needs the extra wandb")
def test_wandb_offline_then_project_name_config_curves_and_episodes_arrive(tmp_path: Path) -> None:
    done = train(tmp_path / "my-run", "wandb", WANDB_MODE="offline", WANDB_PROJECT="colours")
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "my-run").glob("wandb/offline-run-*/*.wandb")
    records = list(records_of(path))
    run = next(record.run for record in records if record.HasField("run"))
    assert (run.project, run.display_name) == ("colours", "my-run")
    config = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert config["env"]["id"] == "tests.toy:ColourEnv"
    curves: dict[str, Any] = {}
    for record in records:
        if record.HasField("history"):
            curves |= {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
    assert {"1_success/held_out", "2_reward/training", "3_reuse/uses", "4_health/cut_turns"} <= curves.keys()
    (*_, table) = sorted((tmp_path / "my-run").glob("wandb/offline-run-*/files/media/table/*.json"))
    content = json.loads(table.read_text())
    assert content["columns"][:5] == ["step", "split", "task", "category", "success"]
    assert len(content["data"]) == 3


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("mlflow"), reason="needs the extra mlflow")
def test_mlflow_offline_then_name_config_and_curves_arrive(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    done = train(tmp_path / "my-run", "mlflow", MLFLOW_TRACKING_URI=store, MLFLOW_EXPERIMENT_NAME="colours")
    assert done.returncode == 0, done.stderr
    read = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
(experiment,) = client.search_experiments(filter_string="name = 'colours'")
(run,) = client.search_runs([experiment.experiment_id])
curve = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "eval/success")]
print(json.dumps([run.info.run_name, run.info.status, run.data.params, run.data.metrics, curve]))
"""
    out = subprocess.run([sys.executable, "-c", read, store], capture_output=True, text=True, check=True).stdout
    name, status, settings, numbers, curve = json.loads(out)
    assert (name, status, settings["env.id"]) == ("my-run", "FINISHED", "tests.toy:ColourEnv")
    assert {"1_success/held_out", "2_reward/training", "3_reuse/uses", "4_health/cut_turns"} <= numbers.keys()
    assert [step for step, _ in curve] == [0, 1]


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("trackio"), reason="needs the extra trackio")
def test_trackio_offline_then_name_config_and_curves_arrive(tmp_path: Path) -> None:
    done = train(tmp_path / "my-run", "trackio", TRACKIO_PROJECT="colours", TRACKIO_DIR=str(tmp_path / "trackio"))
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(tmp_path / "trackio" / "colours.db") as database:
        ((name, settings),) = database.execute("SELECT run_name, config FROM configs")
        rows = database.execute("SELECT step, metrics FROM metrics ORDER BY step").fetchall()
    assert (name, json.loads(settings)["env"]["id"]) == ("my-run", "tests.toy:ColourEnv")
    numbers = {key for _, text in rows for key in json.loads(text)}
    assert {"1_success/held_out", "2_reward/training", "3_reuse/uses", "4_health/cut_turns"} <= numbers
    assert [step for step, text in rows if "eval/success" in json.loads(text)] == [0, 1]
