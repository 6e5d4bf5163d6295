"""What the monitors of a run said: between its evaluations, and at the second, third ... use of its batches."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from statistics import fmean, median
from typing import Any

from agentrl.learner.gates.dgg import DggConfig
from agentrl.learner.gates.verdict import StepSignal

OF_UPDATES = {
    "head_energy": "lm_head energy",
    "grad_norm": "gradient norm",
    "kl": "KL to the first pass",
    "clip_fraction": "share of clipped tokens",
    "chi_square": "chi-square",
    "ess": "effective sample size, tokens",
    "sequence_ess": "effective sample size, rows",
    "m2": "mean squared log-ratio",
    "max_ratio": "largest ratio",
    "tail_share": "share of tail tokens",
    "tail_weight": "weight of tail tokens",
    "entropy": "entropy",
    "rises": "rises of the energy in reuse",
}
"""Key of a gradient -> name."""
OF_BATCHES = {
    "rollout/success": "success of rollouts",
    "rollout/tokens": "tokens an episode",
    "rollout/invalid_actions": "invalid actions",
    "health/truncated": "episodes cut off",
    "health/equal_groups": "groups without a difference",
    "health/repeated_answers": "repeated answers",
    "weight_change/lm_head": "weight change, lm_head",
    "weight_change/attention": "weight change, attention",
    "weight_change/mlp": "weight change, MLP",
    "weight_change/embedding": "weight change, embedding",
}
"""Key of a batch -> name."""
HIGHEST = {"z_score": "Z-score of the energy, highest"}
"""Key of a gradient whose highest value counts, not the mean."""
Values = Mapping[str, float]


def monitors(records: Iterable[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """The mean of each monitor's finite values since the evaluation before, four digits: key -> [E], None without any.

    `z_score` and `rises` (1 or 0) are of reuse steps, and of the energies that were logged: what DGG with the paper's
    window would have seen, had it discarded nothing.

    Args:
        records: of a run's metrics, in order.
    """
    rows: list[dict[str, float]] = []
    batches: list[Values] = []
    updates: list[Values] = []
    gate = DggConfig(tau=float("inf")).make(seed=0)
    for record in records:
        if record["kind"] == "train":
            batches.append(record)
            for update in record["updates"]:
                if math.isfinite(update["head_energy"]):  # no gate sees others
                    seen = gate.judge(StepSignal(update["k"], update["head_energy"])).statistics
                    updates.append(update | dict(_of_reuse(update["k"], seen)))
        else:
            means = [*_finite(batches, OF_BATCHES), *_finite(updates, OF_UPDATES)]
            row = {key: fmean(values) for key, values in means}
            rows.append(row | {key: max(values) for key, values in _finite(updates, HIGHEST)})
            batches, updates = [], []
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: [float(f"{row[key]:.4g}") if key in row else None for row in rows] for key in keys}


def reuse_by_k(updates: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Of the gradients at each k > 1: how many, at how many the energy rose, how many were discarded, the median KL.

    Args:
        updates: of a run, in order.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for earlier, later in itertools.pairwise(updates):
        if later["k"] > 1:
            columns = found.setdefault(str(later["k"]), {"rises": [], "discarded": [], "kl": []})
            columns["rises"].append(later["head_energy"] > earlier["head_energy"])
            columns["discarded"].append(not later["applied"])
            columns["kl"].append(later["kl"] if math.isfinite(later["kl"]) else math.inf)
    return {
        k: {
            "gradients": len(columns["kl"]),
            "rises": sum(columns["rises"]),
            "discarded": sum(columns["discarded"]),
            "kl": float(f"{median(columns['kl']):.4g}"),
        }
        for k, columns in found.items()
    }


def _of_reuse(k: int, statistics: Values) -> Iterator[tuple[str, float]]:
    if k > 1 and "increment" in statistics:
        yield "rises", float(statistics["increment"] > 0)
        if "z_score" in statistics:
            yield "z_score", statistics["z_score"]


def _finite(records: list[Values], keys: Iterable[str]) -> Iterator[tuple[str, list[float]]]:
    for key in keys:
        values = [record[key] for record in records if key in record and math.isfinite(record[key])]
        if values:
            yield key, values
