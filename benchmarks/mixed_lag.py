"""May the gate's window hold lagged and fresh batches side by side? Increments of head energy in runs that mix them.

    OMP_NUM_THREADS=1 python benchmarks/mixed_lag.py configs/study/math.toml --lr 3e-4 --seeds 5
    OMP_NUM_THREADS=1 python benchmarks/mixed_lag.py configs/study/alfworld.toml --lr 1.2e-3

Naive reuse, K = 4, in a study's set-up, three ways: every batch is played with the newest weights, with the weights
before the last batch's update (the lag of `rollout.ahead = 1`), or with either in turn. The gate closes nothing; it is
asked afterwards about the energies that were logged: how often would it have closed, with a window of one kind of batch
and with a window that holds both? Runs that are finished are read.
"""

import argparse
import copy
import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import agentrl
from agentrl.analysis.speedup import paired_difference
from agentrl.learner.gates.dgg import DggConfig
from agentrl.learner.gates.verdict import StepSignal
from agentrl.rollout.engines.local import LocalEngine

TAU = 0.1


class FreshEngine(LocalEngine):
    """The embedded engine with weights of its own, which are as many batches old as it likes."""

    mismatches = False  # weights differ from the learner's on purpose

    def __init__(self, *, module: Any, tokenizer: Any, config: Any, rank: int, count: int) -> None:
        own = copy.deepcopy(module)
        own.compute_dtype = module.compute_dtype
        super().__init__(
            own, tokenizer, max_concurrent=config.max_concurrent, max_context_tokens=config.max_context_tokens,
            shares_weights=False,
        )  # fmt: skip
        self._before: dict[str, torch.Tensor] = {}
        self._count = 0

    def lags(self, count: int) -> bool:
        """Whether the batch behind this many syncs is played with the weights before."""
        return False

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]], *, version: int) -> None:
        """Take the new weights, or those that came before them."""
        new = {name: tensor.clone() for name, tensor in named_tensors}
        self._count += 1
        chosen = self._before if self._before and self.lags(self._count) else new
        super().load_weights(chosen.items(), version=version)
        self._before = new


class LaggedEngine(FreshEngine):
    """Every batch is a batch late."""

    def lags(self, count: int) -> bool:
        """Always."""
        return True


class MixedEngine(FreshEngine):
    """Every other batch is a batch late."""

    def lags(self, count: int) -> bool:
        """By turns."""
        return count % 2 == 0


ENGINES = {"fresh": "FreshEngine", "lagged": "LaggedEngine", "by turns": "MixedEngine"}


@dataclass(frozen=True)
class Update:
    """What the gate is asked about."""

    k: int
    lagged: bool
    increment: float
    closes: bool
    """Whether DGG would discard it, had it seen the run so far."""


def play(study: Path, kind: str, seed: int, lr: float, folder: Path) -> list[Update]:
    """The updates of one run, which is made where it is not finished; behind a closing the batch's are left out."""
    if not (folder / "done").exists():
        told = tomllib.loads(study.read_text())
        keys = {
            **told["set"], "gate.kind": "none", "rollout.ahead": 0, "loss.tis_cap": 2.0, "train.seed": seed,
            "learner.lr": lr, "rollout.engine": f"benchmarks.mixed_lag:{ENGINES[kind]}",
        }  # fmt: skip
        agentrl.train(study.parent / told["base"], keys, run_dir=folder, log_level="quiet")
        (folder / "done").touch()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return judge([record["updates"] for record in records if record["kind"] == "train"])


def judge(batches: list[list[dict[str, Any]]]) -> list[Update]:
    """What DGG says of logged updates, a list a batch."""
    gate, previous, found = DggConfig(tau=TAU).make(seed=0), None, []
    for batch in filter(None, batches):  # of equal groups alone nothing is learned
        lagged = batch[0]["engine_kl"] > 1e-9  # at k = 1 it is rounding unless the weights that played were others
        for update in batch:
            k, energy = update["k"], update["head_energy"]
            verdict = gate.judge(StepSignal(reuse_index=k, head_energy=energy))
            if previous is not None:
                found.append(Update(k, lagged, energy - previous, not verdict.apply))
            previous = energy
            if verdict.stop:
                break
    return found


def table(runs: dict[str, list[list[Update]]]) -> str:
    """One line for the batches of a kind; rates with 95 % intervals over seeds, differences paired by seed."""
    alone = {"fresh": of_kind("fresh", runs["fresh"]), "lagged": of_kind("lagged", runs["lagged"])}
    mixed = {kind: of_kind(kind, runs["by turns"]) for kind in alone}
    rows = {
        "fresh": alone["fresh"], "lagged": alone["lagged"],
        "fresh, by turns with lagged": mixed["fresh"], "lagged, by turns with fresh": mixed["lagged"],
    }  # fmt: skip
    lines = [
        f"| batches | tests | increment at k = 1 | at k > 1, mean ± sd | energy rises | DGG, tau {TAU}, closes | "
        "minus alone [95 %] |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, mine in rows.items():
        tests = [update for run in mine for update in run if update.k > 1]
        first = [update.increment for run in mine for update in run if update.k == 1]
        later = [update.increment for update in tests]
        gap = ""
        if name not in alone:
            found = paired_difference(*([100 * closing(run) for run in of] for of in (mine, alone[name.split(",")[0]])))
            gap = f"{found.mean:+.1f} points [{found.low:+.1f}, {found.high:+.1f}]"
        lines.append(
            f"| {name} | {len(tests)} | {np.mean(first):+.2e} ± {np.std(first):.1e} | {np.mean(later):+.2e} ± "
            f"{np.std(later):.1e} | {np.mean([increment > 0 for increment in later]):.1%} | "
            f"{np.mean([closing(run) for run in mine]):.1%} | {gap} |"
        )
    return "\n".join(lines)


def of_kind(kind: str, runs: list[list[Update]]) -> list[list[Update]]:
    """The updates of fresh or of lagged batches; a lagged run's first batch is fresh."""
    return [[update for update in run if update.lagged == (kind == "lagged")] for run in runs]


def closing(updates: list[Update]) -> float:
    """The share of reuse that the gate would have discarded."""
    return float(np.mean([update.closes for update in updates if update.k > 1]))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="TOML file of a study, for its task and its evaluations")
    parser.add_argument("--lr", type=float, required=True, help="learning rate; the study's stage `lag` tells which")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (default 3)")
    parser.add_argument("--out", type=Path, default=Path("runs/mixed_lag"), help="folder (default runs/mixed_lag)")
    options = parser.parse_args()
    runs: dict[str, list[list[Update]]] = {kind: [] for kind in ENGINES}
    for seed in range(options.seeds):
        for kind, found in runs.items():
            folder = options.out / f"{options.study.stem}-{ENGINES[kind]}-{seed}"
            found.append(play(options.study, kind, seed, options.lr, folder))
    print(table(runs))


if __name__ == "__main__":
    main()
