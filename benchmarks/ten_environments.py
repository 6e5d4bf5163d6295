"""Ten small environments learned by the tiny model: what it reaches with given settings, of what is possible.

Each run is `python -m agentrl.train --env.id benchmarks.small_environments:NAME` and nothing else, but for what its
author would set (`OWN_SETTINGS`) and the words behind `--`. The budget is 300 CPU-seconds, all processes of the run
together. What counts is the mean reward on held-out tasks, before and after.

    export OMP_NUM_THREADS=1 RESULTS=benchmarks/results/ten_environments
    python benchmarks/ten_environments.py --out runs/ten --seeds 3 --results $RESULTS.json > $RESULTS.md
    python benchmarks/ten_environments.py --out runs/trial --environments Guess Sum -- --learner.lr 2e-3
    python benchmarks/ten_environments.py --table $RESULTS.json > $RESULTS.md

Runs that are finished below --out are read, not run again.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.small_environments import ENVIRONMENTS  # noqa: E402

BUDGET_S = 300
"""CPU-seconds of one run: five minutes of one of two cores."""
GOAL = 0.8
"""Share of what is possible that a run shall reach."""
MEASURE = {"eval.tasks": 256, "eval.temperature": 1.0, "tracking.trackers": "[]", "tracking.trajectories_every": 0}
"""How a run is measured: tasks for a standard error of 3 points at most, the policy as it is (temperature 1)."""
OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "Count": {"rollout.max_new_tokens": 8},  # five numbers and an end
    "Price": {
        "env.format": "benchmarks.small_environments:ToldTools",
        "rollout.max_new_tokens": 40,  # a call has 30 tokens
        "rollout.max_turns": 3,
        "warmstart.episodes": 400,  # short of perfect: the rest is left to RL
    },
}
"""What the author of an environment sets beside its name."""


@dataclass(frozen=True)
class Result:
    """One run."""

    environment: str
    seed: int
    start: float
    """Mean reward on held-out tasks before training."""
    end: float
    """The same after it."""
    share: float
    """end / possible."""
    wall_s: float
    cpu_s: float
    """Of all processes of the run, imports and evaluations included."""
    episodes: int
    batches: int
    cut_turns: float
    """Share of turns cut at `rollout.max_new_tokens` in the last batch."""


def train(name: str, seed: int, folder: Path, words: Sequence[str]) -> Result:
    """Train one environment with one seed in a process of its own."""
    settings = {**MEASURE, "train.seed": seed}
    settings |= dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2], strict=True))
    settings |= OWN_SETTINGS.get(name, {})
    command = [sys.executable, "-m", "agentrl.train", "--run-dir", str(folder)]
    command += ["--env.id", f"benchmarks.small_environments:{name}"]
    command += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    started, before = time.perf_counter(), _children_cpu()
    places = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": places}, stdout=subprocess.DEVNULL)
    return read(name, seed, folder, wall_s=time.perf_counter() - started, cpu_s=_children_cpu() - before)


def read(name: str, seed: int, folder: Path, *, wall_s: float, cpu_s: float) -> Result:
    """The figures of a finished run."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evaluations = [record for record in records if record["kind"] == "eval"]
    batches = [record for record in records if record["kind"] == "train"]
    possible = float(next(env.possible for env in ENVIRONMENTS if env.__name__ == name))
    end = evaluations[-1]["eval/reward"]
    return Result(
        name, seed, start=evaluations[0]["eval/reward"], end=end, share=end / possible,
        wall_s=round(wall_s, 1), cpu_s=round(cpu_s, 1), episodes=batches[-1]["cost/episodes"], batches=len(batches),
        cut_turns=batches[-1]["rollout/cut_turns"],
    )  # fmt: skip


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _machine() -> str:
    """Processor, cores and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    processor = f"{os.cpu_count()} cores of {(names or [platform.processor()])[0]}"
    return f"{processor}, Python {platform.python_version()}, {versions}"


def table(results: Sequence[Result]) -> str:
    """Markdown: a row an environment, over its seeds."""
    lines = [
        "| environment | possible | chance | start | end, by seed | of what is possible "
        f"| {GOAL:.0%} in {BUDGET_S} CPU-s | episodes | most CPU-s | most wall s |",
        "|---|---:|---:|---:|---:|---:|---|---:|---:|---:|",
    ]
    for env in ENVIRONMENTS:
        runs = [result for result in results if result.environment == env.__name__]
        if not runs:
            continue
        share = statistics.mean(run.share for run in runs)
        good = sum(run.share >= GOAL and run.cpu_s <= BUDGET_S for run in runs)
        lines.append(
            f"| {env.__name__} | {float(env.possible):.3f} | {float(env.chance):.3f} "
            f"| {statistics.mean(run.start for run in runs):.3f} | {', '.join(f'{run.end:.3f}' for run in runs)} "
            f"| {share:.0%} | {good} of {len(runs)} | {max(run.episodes for run in runs):,} "
            f"| {max(run.cpu_s for run in runs):.0f} | {max(run.wall_s for run in runs):.0f} |"
        )
    return "\n".join(lines)


def page(report: dict[str, Any]) -> str:
    """Markdown of a whole report."""
    words = " ".join(report["settings"]) or "the defaults"
    own = "; ".join(
        f"{name}: {' '.join(f'--{key} {value}' for key, value in settings.items())}"
        for name, settings in report["own_settings"].items()
    )
    results = [Result(**run) for run in report["runs"]]
    played = {result.environment for result in results}
    below = {result.environment for result in results if result.share < GOAL or result.cpu_s > BUDGET_S}
    verdict = f"short of {GOAL:.0%} in {BUDGET_S} CPU-seconds with some seed: {', '.join(sorted(below)) or 'none'}"
    if missing := [env.__name__ for env in ENVIRONMENTS if env.__name__ not in played]:
        verdict += f"; not measured: {', '.join(missing)}"
    return (
        "# Ten small environments\n\nMean reward on 256 held-out tasks at temperature 1, before and after training the "
        "tiny model from scratch (Price: after a short warm start); environments and what is possible in them are in "
        "`benchmarks/small_environments.py`, the runs in `benchmarks/ten_environments.py`.\n\n"
        f"- settings: `{words}`\n- of single environments: `{own}`\n- machine: {report['machine']}\n- {verdict}\n\n"
        f"{table(results)}"
    )


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [env.__name__ for env in ENVIRONMENTS]
    parser.add_argument("--out", type=Path, help="folder of the run folders")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to SEEDS - 1 of each environment")
    parser.add_argument("--environments", nargs="+", default=names, choices=names, metavar="NAME")
    parser.add_argument("--results", type=Path, help="JSON file for the figures")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print the table of such a file, run nothing")
    parser.add_argument("words", nargs="*", help="behind --: overrides of every run, such as --learner.lr 2e-3")
    options = parser.parse_args()
    if options.table:
        print(page(json.loads(options.table.read_text())))
        return
    if options.out is None:
        parser.error("--out or --table is needed")
    results = []
    for seed in range(options.seeds):
        for name in options.environments:
            folder = options.out / f"{name}-seed{seed}"
            kept = folder / "result.json"
            if not kept.exists():
                kept.write_text(json.dumps(asdict(train(name, seed, folder, options.words))))
            results.append(Result(**json.loads(kept.read_text())))
            last = results[-1]
            print(
                f"{name} seed {seed}: {last.start:.3f} -> {last.end:.3f}, {last.share:.0%} of what is possible, "
                f"{last.cpu_s:.0f} CPU-s, {last.wall_s:.0f} s, cut {last.cut_turns:.0%}",
                file=sys.stderr, flush=True,
            )  # fmt: skip
    report = {
        "settings": options.words, "own_settings": OWN_SETTINGS, "measured_with": MEASURE, "machine": _machine(),
        "runs": [asdict(result) for result in results],
    }  # fmt: skip
    if options.results:
        options.results.write_text(json.dumps(report, indent=1) + "\n")
    print(page(report))


if __name__ == "__main__":
    main()
