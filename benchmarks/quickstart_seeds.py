"""The quickstart over seeds: DGG-gated reuse beside single use, each at a learning rate of its own.

Runs what is missing below --out (a killed run is started anew), then prints a Markdown table: held-out success before
and after, mean over seeds with a 95 % t-interval, optimizer steps and CPU seconds.

    OMP_NUM_THREADS=1 python benchmarks/quickstart_seeds.py --out runs/seeds [--seeds 5]
"""

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "quickstart.toml"
ARMS = {
    "gated reuse (DGG, K = 4, lr 1e-3)": [],
    "single use (lr 2.5e-3)": ["--gate.kind", "fixed", "--gate.k", "1", "--learner.lr", "2.5e-3"],
}
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t, two-sided 95 %, 1 to 9 degrees of freedom."""


def read_run(folder: Path) -> dict[str, float] | None:
    """Figures of a finished run; None where its last evaluation is missing."""
    if not (folder / "metrics.jsonl").exists():
        return None
    records: list[dict[str, Any]] = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    evaluations = [record for record in records if record["kind"] == "eval"]
    if not evaluations or not evaluations[-1]["final"]:
        return None
    steps = [record for record in records if record["kind"] == "train"]
    return {
        "before": 100 * evaluations[0]["eval/success"],
        "after": 100 * evaluations[-1]["eval/success"],
        "applied": sum(record["learner/steps"] for record in steps),
        "discarded": sum(record["learner/discarded"] for record in steps),
        "batches": len(steps),
        "seconds": sum(record["time/rollout_cpu_s"] + record["time/update_cpu_s"] for record in steps),
    }


def mean_and_interval(values: list[float]) -> str:
    """`mean [low, high]` of at least two values."""
    half = T95[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.mean(values)
    return f"{mean:.1f} [{mean - half:.1f}, {mean + half:.1f}]"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run folders")
    parser.add_argument("--seeds", type=int, default=5, choices=range(2, 11), metavar="2..10")
    options = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in range(options.seeds):
        for number, (arm, overrides) in enumerate(ARMS.items()):
            folder = options.out / f"arm{number}-seed{seed}"
            if read_run(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)
                words = [str(CONFIG), "--run-dir", str(folder), "--train.seed", str(seed), *overrides]
                subprocess.run([sys.executable, "-m", "agentrl.train", *words], check=True)
            figures = read_run(folder)
            assert figures is not None, f"{folder} holds no final evaluation"
            results[arm].append(figures)
    print(
        "| held-out success, % | before | after, mean [95 %] | after, by seed | optimizer steps (discarded) | CPU-s |"
    )
    print("|---|---|---|---|---|---|")
    for arm, runs in results.items():
        by_seed = ", ".join(f"{run['after']:.1f}" for run in runs)
        steps = (
            f"{statistics.mean(r['applied'] for r in runs):.0f} ({statistics.mean(r['discarded'] for r in runs):.0f})"
        )
        seconds = statistics.mean(run["seconds"] for run in runs)
        after = mean_and_interval([run["after"] for run in runs])
        print(f"| {arm} | {runs[0]['before']:.1f} | {after} | {by_seed} | {steps} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
