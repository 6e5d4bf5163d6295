"""Batches played in turn and one step ahead, side by side: wall time, CPU time, success; and who waits for whom.

    python benchmarks/ahead.py runs configs/quickstart.toml --seeds 5 --out runs/ahead     # whole runs
    python benchmarks/ahead.py runs configs/quickstart.toml --steps 10 --out runs/ahead    # only the first batches
    python benchmarks/ahead.py slow --steps 6 --out runs/ahead-slow    # an environment that waits 0.1 to 2 s a step
    python benchmarks/ahead.py lag benchmarks/results/math_lag.json    # a study's stage `lag`: success lost to the lag

The arms take turns, so that a machine that others use as well is as slow for each: in turn with one thread of torch, in
turn with two, and ahead with one thread for the learner and one for the rollout process; with and without groups to
spare. `batches` is the wall time of the batches alone (rollouts, updates, waiting), without start, warm start and
evaluation. Success is that of the last evaluation; its difference comes with a 95 % interval over seeds (t
distribution). Runs that are finished are read. Further options are overrides of the experiments: --eval.tasks 32.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.analysis.speedup import paired_difference
from agentrl.envs.alfworld.env import ALFWorldEnv
from agentrl.runs.metrics import clock_seconds
from agentrl.study.results import final_success

# arm -> (rollout.ahead, threads of torch, rollout.spare_groups)
ARMS = {
    "in turn, 1 thread": (0, 1, 0), "in turn, 2 threads": (0, 2, 0), "ahead, 1 + 1": (1, 1, 0),
    "in turn, 1 thread, 4 groups to spare": (0, 1, 4), "ahead, 1 + 1, 4 groups to spare": (1, 1, 4),
}  # fmt: skip
# A run in a process of its own, with a number of threads that a tiny model would not be given.
_RUN = (
    "import sys, torch; from agentrl import build, train; "
    "build.set_threads = lambda _: torch.set_num_threads(int(sys.argv[1])); sys.exit(train.main(sys.argv[2:]))"
)


class SlowRooms(ALFWorldEnv):
    """ALFWorld, but every answer takes 0.1 to 2 s: a Pareto tail (shape 1.2) that the task's seed decides."""

    metadata = {**ALFWorldEnv.metadata, "blocking": True}  # noqa: RUF012

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Seeds the waiting times too."""
        self._waits = np.random.default_rng(seed)
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Waits first."""
        time.sleep(min(2.0, 0.1 * (1 + float(self._waits.pareto(1.2)))))
        return super().step(action)


def measure(config: str, arm: str, seed: int, folder: Path, more: list[str]) -> dict[str, float]:
    """Run one arm, or read what it measured before."""
    ahead, threads, spare = ARMS[arm]
    note = folder / "measured.json"
    if not note.exists():
        command = [sys.executable, "-c", _RUN, str(threads), config, "--run-dir", str(folder)]
        command += ["--rollout.ahead", str(ahead), "--rollout.spare_groups", str(spare)]
        command += ["--train.seed", str(seed), *more]
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        note.write_text(json.dumps({"wall": wall, "cpu": cpu, "load": os.getloadavg()[1]}))
    measured: dict[str, float] = json.loads(note.read_text())
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return measured | batch_times([r for r in records if r["kind"] == "train"]) | last_success(records)


def batch_times(records: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds of all batches, the share of them that the learner waited, and their CPU seconds."""
    seconds, updates = sum(map(clock_seconds, records)), sum(r["time/update_s"] for r in records)
    cpu = sum(r["time/rollout_cpu_s"] + r["time/update_cpu_s"] for r in records)
    return {"batches": seconds, "idle": 1 - updates / seconds, "batches_cpu": cpu}


def last_success(records: list[dict[str, Any]]) -> dict[str, float]:
    """Held-out success at the end, and effective tokens of the second batch where it was played ahead."""
    found = {"success": [r for r in records if r["kind"] == "eval"][-1]["eval/success"]}
    lags = [r["learner/lag_ess"] for r in records if "learner/lag_ess" in r]
    return found | ({"lag_ess": statistics.mean(lags[1:])} if len(lags) > 1 else {})


def slow_rooms(config: str, overrides: list[str]) -> list[str]:
    """Overrides for rooms that are slow, in which the agent plays on from what it imitated in rooms that are not."""
    command = [sys.executable, "-m", "agentrl.warmstart", config, *overrides]
    model = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]
    options = tomllib.loads(Path(config).read_text())["env"]["options"]
    return [
        "--env.id", "benchmarks.ahead:SlowRooms", "--rollout.env_workers", "0", "--eval.tasks", "8",
        *(word for name, value in options.items() for word in (f"--env.options.{name}", str(value))),
        "--model.path", model, "--warmstart.episodes", "0",
    ]  # fmt: skip


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Means over seeds, one line an arm."""
    base = next(iter(found.values()))
    lines = [
        "| arm | wall s | CPU s | batches, wall s | of the first arm | learner idle | success | difference [95 %] |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, runs in found.items():
        mean = {key: statistics.mean(run[key] for run in runs) for key in runs[0]}
        gap = paired_difference([run["success"] for run in runs], [run["success"] for run in base])
        ratio = statistics.mean(b["batches"] for b in base) / mean["batches"]
        lines.append(
            f"| {arm} | {mean['wall']:.0f} | {mean['cpu']:.0f} | {mean['batches']:.1f} | {ratio:.2f}x faster | "
            f"{mean['idle']:.0%} | {mean['success']:.3f} | {gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}] |"
        )
    loads = [run["load"] for runs in found.values() for run in runs]
    return "\n".join([*lines, "", f"Load of the machine meanwhile (5 minutes): {min(loads):.1f} to {max(loads):.1f}."])


def lag_table(study: dict[str, Any]) -> str:
    """Success of each arm of the stage `lag` in turn and ahead, and their difference over the seeds that have both."""
    found: dict[str, dict[tuple[int, int], float]] = {}
    for run in study["runs"]:
        if run["stage"] == "lag":
            success = 100 * final_success(run)
            found.setdefault(run["arm"], {})[run["axes"]["rollout.ahead"], run["seed"]] = success
    lines = ["| arm | seeds | in turn | ahead | difference [95 %] |", "|---|---|---|---|---|"]
    for arm, ends in found.items():
        seeds = sorted(seed for ahead, seed in ends if ahead == 0 and (1, seed) in ends)
        before, after = ([ends[ahead, seed] for seed in seeds] for ahead in (0, 1))
        if len(seeds) < 2:
            continue
        gap = paired_difference(after, before)
        lines.append(
            f"| {arm} | {len(seeds)} | {statistics.mean(before):.1f} % | {statistics.mean(after):.1f} % | "
            f"{gap.mean:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}] |"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["runs", "slow", "lag"])
    parser.add_argument(
        "configs", nargs="*", default=["configs/quickstart.toml"], help="experiments, or of lag a study's results"
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs of each arm (default 1)")
    parser.add_argument(
        "--arms", type=int, nargs="+", choices=range(len(ARMS)), default=range(len(ARMS)), metavar="NUMBER",
        help=f"which of them: {', '.join(f'{number} {arm}' for number, arm in enumerate(ARMS))} (default all)",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, help="rollout batches; default: what the experiment says")
    parser.add_argument("--out", type=Path, default=Path("runs/ahead"), help="folder for the runs (default runs/ahead)")
    options, overrides = parser.parse_known_args()
    if options.what == "lag":
        for path in options.configs:
            print(f"{path}\n\n{lag_table(json.loads(Path(path).read_text()))}\n")
        return
    more = ["--tracking.trackers", "[]", "--checkpoint.every", "0", *overrides]
    more += ["--train.steps", str(options.steps)] if options.steps else []
    for config in options.configs:
        words = [*more, *(slow_rooms(config, overrides) if options.what == "slow" else [])]
        arms = {number: arm for number, arm in enumerate(ARMS) if number in options.arms}
        found: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms.values()}
        for seed in range(options.seeds):
            for number, arm in arms.items():
                folder = options.out / Path(config).stem / f"{number}-{seed}"
                found[arm].append(measure(config, arm, seed, folder, words))
        print(f"{config}, {options.seeds} seeds\n\n{table(found)}\n", flush=True)


if __name__ == "__main__":
    main()
