"""Everything that one GPU can prove in half an hour, most worthy first; each stage alone, none ends the others.

    python benchmarks/gpu_proof.py --minutes 25 --out FOLDER              # on a GPU
    python benchmarks/gpu_proof.py --tiny --out FOLDER                    # does it run? (three minutes on a CPU)
    python benchmarks/gpu_proof.py --stages runs --model smollm2 --out FOLDER

Needs torch >= 2.11, transformers >= 5.17, accelerate, and what `agentrl` imports besides; the repository on PYTHONPATH.
Stages: card, learner, agreement, engine, quickstart, compiled, runs (of SmolLM2-135M, made by
`python -m agentrl.convert_smollm2 FOLDER` and named by --model). After every stage FOLDER/proof.json holds the numbers
so far, FOLDER/index.html shows them; the runs' curves are in FOLDER/runs.json.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import gpu_measures
import gpu_page
import gpu_runs
import torch

SAVING_S = 60.0
"""Kept at the end of the runs: a dozen that save at once took longer than 15 s."""


@dataclass
class Proof:
    """What is asked for and what is known so far."""

    options: argparse.Namespace
    device: torch.device
    deadline: float
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """The card's bf16 rate, measured first."""
        return float(self.results.get("card", {}).get("matrix_flops_per_s", {}).get("bfloat16", 1e15))

    @property
    def left_s(self) -> float:
        """Seconds that remain."""
        return self.deadline - time.monotonic()


def stage_card(proof: Proof) -> dict[str, Any]:
    """a. The two ceilings."""
    return gpu_measures.card(proof.device, tiny=proof.options.tiny)


def stage_learner(proof: Proof) -> dict[str, Any]:
    """b. Updates at the shapes of real models, beside updates as others write them, and long rows."""
    everyone = ("agentrl", *gpu_measures.OTHERS)
    plan: list[tuple[str, str, int, int, tuple[str, ...]]] = [
        ("Qwen2.5-1.5B", "mixed", 16, 2048, everyone),
        ("Qwen2.5-1.5B", "bfloat16", 16, 2048, ("agentrl",)),
        ("Qwen3-4B", "mixed", 8, 2048, ("agentrl", "full_logits")),
        ("Qwen2.5-1.5B", "mixed", 4, 8192, everyone),
        ("Qwen2.5-1.5B", "mixed", 2, 16384, ("agentrl", "full_logits")),
        ("Qwen3-4B", "bfloat16", 4, 8192, ("agentrl",)),
    ]
    budget = 8192
    if proof.options.tiny:
        plan, budget = [("tiny", "mixed", 4, 64, everyone)], 128
    found: dict[str, Any] = {}
    for shape, dtype, rows, length, which in plan:
        if proof.left_s < proof.options.reserve_s:
            break
        found[f"{shape}, {dtype}, {rows} x {length:,} tokens"] = gpu_measures.updates(
            shape, dtype, rows, length, proof.device, budget=budget, rate=proof.rate, which=which
        )
        proof.results["learner"] = found
        write(proof)
    return found


def stage_agreement(proof: Proof) -> dict[str, Any]:
    """c. Is the energy of bf16 products that of fp32?"""
    shape, rows, length = ("tiny", 2, 32) if proof.options.tiny else ("Qwen2.5-1.5B", 4, 1024)
    return gpu_measures.agreement(shape, rows, length, proof.device, budget=2048)


def stage_engine(proof: Proof) -> dict[str, Any]:
    """d. The embedded engine at the shape of a real model."""
    if proof.options.tiny:
        return gpu_measures.engine("tiny", proof.device, rows=4, prompt=16, new=8)
    return gpu_measures.engine("Qwen2.5-1.5B", proof.device, rows=64, prompt=512, new=128)


def stage_quickstart(proof: Proof) -> dict[str, Any]:
    """e. The quickstart on the card; its first batch beside the CPU's from the same warm start."""
    return gpu_runs.quickstart(proof.options.out, tiny=proof.options.tiny, seconds=min(proof.left_s, 300))


def stage_compiled(proof: Proof) -> dict[str, Any]:
    """Updates with compiled blocks beside plain ones."""
    shape, rows, length, budget = ("tiny", 4, 64, 128) if proof.options.tiny else ("Qwen2.5-1.5B", 16, 2048, 8192)
    found = gpu_measures.updates(
        shape, "mixed", rows, length, proof.device, budget=budget, rate=proof.rate, which=("agentrl", "compiled")
    )
    return {f"{shape}, mixed, {rows} x {length:,} tokens": found}


def stage_runs(proof: Proof) -> dict[str, Any]:
    """f. A pretrained model: single use, naive reuse, DGG, the KL-controlled rate."""
    return gpu_runs.smollm2(
        proof.options.out, proof.options.model, tiny=proof.options.tiny,
        seconds=proof.left_s - SAVING_S, at_once=proof.options.at_once, seeds=proof.options.seeds,
        tasks=proof.options.tasks,
    )  # fmt: skip


STAGES: dict[str, Callable[[Proof], dict[str, Any]]] = {
    "card": stage_card, "learner": stage_learner, "agreement": stage_agreement, "engine": stage_engine,
    "quickstart": stage_quickstart, "compiled": stage_compiled, "runs": stage_runs,
}  # fmt: skip


def write(proof: Proof) -> None:
    """The numbers so far, and the page."""
    (proof.options.out / "proof.json").write_text(json.dumps(proof.results, indent=1) + "\n")
    (proof.options.out / "index.html").write_text(gpu_page.page(proof.results))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where results are written")
    parser.add_argument("--minutes", type=float, default=25.0, help="time in all")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), help="which, in order")
    parser.add_argument("--model", default="smollm2", metavar="FOLDER", help="SmolLM2-135M for the runs")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the runs, as far as time suffices")
    parser.add_argument(
        "--tasks", nargs="+", choices=["math", "alfworld"], default=["math", "alfworld"], help="of the runs"
    )
    parser.add_argument("--at-once", type=int, default=6, help="runs that share the device")
    parser.add_argument("--reserve-s", type=float, default=30.0, help="the learner starts nothing with less time left")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: shows that it runs, no figure for anybody")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.tiny:
        print("torch finds no CUDA device: the tiny shapes are run, which prove nothing about a GPU", file=sys.stderr)
        options.tiny = True
    proof = Proof(options, device, time.monotonic() + 60 * options.minutes)
    for name in options.stages:
        started = time.monotonic()
        print(f"stage {name}, {proof.left_s:.0f} s left", flush=True)
        try:
            proof.results[name] = STAGES[name](proof)
        except Exception:  # one stage must not cost the others their numbers
            proof.results.setdefault(name, {})["error"] = traceback.format_exc()
            print(proof.results[name]["error"], file=sys.stderr, flush=True)
        proof.results.setdefault("seconds", {})[name] = round(time.monotonic() - started, 1)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        write(proof)
    print(gpu_page.text(proof.results))
    return int(any("error" in found for found in proof.results.values()))


if __name__ == "__main__":
    sys.exit(main())
