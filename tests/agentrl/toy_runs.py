"""Finished runs of the toy environment, for tests of what comes after a run."""

import json
import shutil
from pathlib import Path

from agentrl import evaluate, train
from agentrl.config.describe import content_hash
from agentrl.runs.folder import read_metrics

HOSTILE = '<script>document.title = "owned"</script><img src=x onerror="document.title=1">\u2028</pre>]]>&amp;'

_OVERRIDES = {
    "env.id": "tests.toy:ColourEnv", "env.eval_split": "test",
    "model.tiny.hidden_size": 32, "model.tiny.intermediate_size": 64,
    "model.tiny.num_heads": 2, "model.tiny.num_kv_heads": 1,
    "warmstart.episodes": 200, "warmstart.noise": 0.4, "warmstart.train_noise": "true", "warmstart.passes": 8,
    "rollout.max_turns": 2, "rollout.max_new_tokens": 4, "rollout.max_context_tokens": 128, "rollout.env_workers": 0,
    "train.steps": 12, "train.groups_per_step": 4, "train.group_size": 4,
    "learner.lr": 3e-3, "gate.window": 2, "gate.tau": -1.5, "eval.tasks": 16, "eval.every": 2,
    "checkpoint.every": 0, "tracking.divergence_every": 2, "tracking.trackers": [], "tracking.trajectories_every": 4,
}  # fmt: skip


def toy_run(folder: Path, **changes: object) -> Path:
    """A finished run in `folder`; `gate__kind="none"` overrides `gate.kind`.

    Below pytest's session folder (two levels up) equal runs are trained once and copied.
    """
    overrides = {**_OVERRIDES, **{key.replace("__", "."): value for key, value in changes.items()}}
    if overrides.get("gate.kind", "dgg") != "dgg":  # no other has these keys
        overrides = {key: value for key, value in overrides.items() if key not in ("gate.window", "gate.tau")}
    session = folder.parent.parent
    overrides["warmstart.cache_dir"] = str(session / "toy-warmstart")
    made = session / f"toy-run-{content_hash(overrides)}"
    if not made.exists():
        words = [word for key, value in overrides.items() for word in (f"--{key}", str(value))]
        assert train.main(["--run-dir", str(made), *words]) == 0
    assert any(record["updates"] for record in read_metrics(made) if record["kind"] == "train"), "nothing was learned"
    shutil.copytree(made, folder)
    return folder


def toy_evaluation(run: Path, folder: Path) -> Path:
    """What `agentrl evaluate` writes about a run: every held-out task twice."""
    assert evaluate.main([str(run), "--samples", "2", "--eval.temperature", "1", "--out", str(folder)]) == 0
    return folder


def add_hostile_episode(folder: Path) -> None:
    """An episode of the last evaluation whose every text tries to run as HTML."""
    path = sorted((folder / "trajectories").glob("eval-*.jsonl"))[-1]
    record = json.loads(path.read_text().splitlines()[0])
    record["task"]["name"] = record["category"] = record["first_observation"] = HOSTILE
    record["success"] = True
    for turn in record["turns"]:
        turn["action"] = turn["observation"] = HOSTILE
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
