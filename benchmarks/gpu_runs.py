"""Training runs of `gpu_proof.py`: whole commands in processes of their own, within a time budget."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentrl.runs.folder import read_metrics

ROOT = Path(__file__).resolve().parents[1]
ARMS = {
    "single": ["--gate.kind", "fixed", "--gate.k", "1"],
    "naive": ["--gate.kind", "none"],
    "dgg": ["--gate.kind", "dgg"],
    "kl_rate": ["--gate.kind", "kl_rate"],
}
"""Rules of reuse, all with K = 4 but the first."""
_CURVE = (
    "step", "rollout/success", "rollout/reward", "rollout/invalid_actions", "rollout/cut_turns", "batch/mixed_groups",
    "learner/head_energy", "learner/grad_norm", "learner/entropy", "learner/steps", "learner/discarded",
    "learner/gate_closed", "learner/rate_factor", "cost/episodes", "time/rollout_s", "time/update_s",
)  # fmt: skip
_TINY_TRAIN = ["--train.steps", "2", "--train.groups_per_step", "2", "--train.group_size", "2", "--eval.tasks", "2"]


@dataclass
class Job:
    """One `python -m agentrl.train` with its own run folder."""

    name: str
    words: list[str]
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None
    was_stopped: bool = False
    """It outlasted its time."""

    def start(self) -> None:
        """Return at once; what it prints lies beside the run folder."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **self.environment}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with self.folder.with_suffix(".log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self.words], cwd=ROOT, env=environment, stdout=log, stderr=log
            )

    @property
    def is_running(self) -> bool:
        """Started and not over."""
        return self.process is not None and self.process.poll() is None

    @property
    def failure(self) -> str:
        """The end of what it printed, where it failed by itself."""
        if self.was_stopped or self.process is None or not self.process.poll():
            return ""
        return self.folder.with_suffix(".log").read_text(errors="replace")[-2000:]

    def summary(self) -> dict[str, Any]:
        """Exit code and curves; the end of what it printed where it failed."""
        code = None if self.process is None else self.process.poll()
        found: dict[str, Any] = {"exit_code": code, "command": " ".join(self.words)}
        if self.failure:
            found["log"] = self.failure
        if not (self.folder / "metrics.jsonl").exists():
            return found
        records = read_metrics(self.folder)
        steps = [r for r in records if r["kind"] == "train"]
        return found | {
            "batches": len(steps),
            "evaluations": [[r["step"], r["eval/success"]] for r in records if r["kind"] == "eval"],
            "curves": {key: [r.get(key) for r in steps] for key in _CURVE},
            "updates": [[{k: u.get(k) for k in ("k", "kl", "head_energy", "applied", "reason")} for u in r["updates"]]
                        for r in steps],
        }  # fmt: skip


def run_all(jobs: Sequence[Job], *, at_once: int, seconds: float) -> None:
    """Start the jobs in order, so many at once; SIGTERM, which saves a checkpoint, to those that outlast the time."""
    end = time.monotonic() + seconds
    waiting = list(jobs)
    while time.monotonic() < end and (waiting or any(job.is_running for job in jobs)):
        while waiting and sum(job.is_running for job in jobs) < at_once:
            waiting.pop(0).start()
        time.sleep(0.2)
    for job in jobs:
        if job.is_running and job.process is not None:
            job.was_stopped = True
            job.process.terminate()
    for job in jobs:
        if job.process is not None:
            try:
                job.process.wait(timeout=max(5.0, end + 45 - time.monotonic()))
            except subprocess.TimeoutExpired:
                job.process.kill()
                job.process.wait()


def quickstart(out: Path, *, tiny: bool, seconds: float) -> dict[str, Any]:
    """`configs/quickstart.toml` whole on the device, and its first batch on device and CPU from one warm start."""
    few = ["--warmstart.episodes", "16", *_TINY_TRAIN] if tiny else []
    base = ["configs/quickstart.toml", "--warmstart.cache_dir", str((out / "warmstart").resolve()), *few]
    base += ["--tracking.trackers", "[]"]
    warm = Job("warm start", ["agentrl.warmstart", *base], out / "warm")
    started = time.monotonic()
    run_all([warm], at_once=1, seconds=seconds)
    warm_s = time.monotonic() - started
    runs = (out / "quickstart").resolve()
    one = ["--train.steps", "1", "--eval.tasks", "8"]
    jobs = [
        Job(name, ["agentrl.train", *base, "--run-dir", str(runs / name), *words], runs / name, environment)
        for name, words, environment in (
            ("whole", [], {}), ("first", one, {}), ("first_cpu", one, {"CUDA_VISIBLE_DEVICES": ""}),
        )
    ]  # fmt: skip
    run_all(jobs, at_once=3, seconds=seconds - warm_s)
    summaries = {job.name: job.summary() for job in jobs}
    found: dict[str, Any] = {"warm_start_s": warm_s, **{name: _brief(run) for name, run in summaries.items()}}
    found |= _failures([warm, *jobs])
    firsts = [summaries[name].get("curves") for name in ("first", "first_cpu")]
    for key in ("rollout/success", "learner/head_energy", "learner/grad_norm", "learner/entropy"):
        found[f"first batch, {key}"] = [first and first[key][0] for first in firsts]
    return found


def smollm2(
    out: Path, model: str, *, tiny: bool, seconds: float, at_once: int, seeds: int, tasks: Sequence[str]
) -> dict[str, Any]:
    """Four rules on each task (`configs/TASK_smollm2.toml`), as many seeds as time allows, one after another."""
    end = time.monotonic() + seconds
    common = ["--model.path", "tiny" if tiny else str(Path(model).resolve()), "--tracking.trackers", "[]",
              "--warmstart.cache_dir", str((out / "warmstart").resolve()), "--checkpoint.every", "0",
              "--tracking.trajectories_every", "50"]  # fmt: skip
    few = ["--warmstart.episodes", "16", *_TINY_TRAIN] if tiny else ["--train.steps", "200"]
    mixed = ["--model.dtype", "mixed", "--learner.microbatch_tokens", "16384"]
    commands = {task: [f"configs/{task}_smollm2.toml", *common, *mixed, *few] for task in tasks}
    warm = [
        Job(f"warm {task}", ["agentrl.warmstart", *words], out / f"warm-{task}") for task, words in commands.items()
    ]
    run_all(warm, at_once=2, seconds=seconds)
    runs = (out / "runs").resolve()
    jobs = [
        Job(
            name,
            ["agentrl.train", *words, *rule, "--train.seed", str(seed), "--run-dir", str(runs / name)],
            runs / name,
        )
        for seed in range(1 if tiny else seeds)
        for task, words in commands.items()
        for arm, rule in ARMS.items()
        for name in [f"{task}-{arm}-{seed}"]
    ]
    run_all(jobs, at_once=at_once, seconds=end - time.monotonic())
    found = {job.name: job.summary() for job in jobs if job.process is not None}
    (out / "runs.json").write_text(json.dumps(found) + "\n")
    return {name: _brief(run) for name, run in found.items()} | _failures([*warm, *jobs])


def _failures(jobs: Sequence[Job]) -> dict[str, Any]:
    """What runs that failed printed last; empty where none did."""
    told = "\n".join(f"{job.name}: {job.failure}" for job in jobs if job.failure)
    return {"error": told} if told else {}


def _brief(run: dict[str, Any]) -> dict[str, Any]:
    """A run without its curves: success by twentieths, optimizer steps, discarded gradients, the time of a batch."""
    kept = {key: value for key, value in run.items() if key not in ("curves", "updates")}
    if not run.get("batches"):
        return kept
    curves = run["curves"]
    success, count = curves["rollout/success"], max(1, len(curves["step"]) // 20)
    pieces = [success[i : i + count] for i in range(0, len(success), count)]
    mean = [sum(x) / len(x) for x in (curves["time/rollout_s"], curves["time/update_s"])]
    return kept | {
        "success": [[(i + 1) * count, sum(piece) / len(piece)] for i, piece in enumerate(pieces)],
        "optimizer_steps": sum(curves["learner/steps"]), "discarded": sum(curves["learner/discarded"]),
        "rollout_s": mean[0], "update_s": mean[1],
    }  # fmt: skip
