"""TorchLearner against TRL's GRPOTrainer: same weights, same tokens, one thread, process CPU seconds and peak memory.

    python benchmarks/learner_vs_trl.py --trl-python TRL_VENV/bin/python            # all cases, about 10 CPU-minutes
    python benchmarks/learner_vs_trl.py --trl-python ... --cases small ragged       # about 2 CPU-minutes
    python benchmarks/learner_vs_trl.py --only agentrl                              # without TRL

One rollout batch is 16 rows of 512 tokens (32 prompt, 480 completion) of a Qwen3 with 4 layers, width 256, tied
embeddings, fp32; `ragged` has completions of 48 .. 480 tokens whose mean row is a third of the longest. Each batch is
used for two optimizer steps, clip 0.2 / 0.28, token mean over the batch, AdamW. TRL 1.16 (an environment of its own:
pip install "trl==1.16.*" datasets) gets the same ids through its rollout_func, so neither side generates. Its
old-log-prob pass belongs to the batch; agentrl needs none. Both sides run at the same time, each in its process.
The physical limit replays agentrl's own matrix products, shape by shape, with nothing in between.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

Shape = tuple[int, int, int, bool, bool]
PROMPT, LONGEST = 32, 512
VOCABULARIES = {"small": 4096, "ragged": 4096, "qwen": 151_936}
TARGETS = {
    "small": {"batch": 1.6, "update": 1.4}, "qwen": {"batch": 1.6, "update": 1.4, "memory": 0.5},
    "ragged": {"batch": 2.5},
}  # fmt: skip


def make_case(case: str, folder: Path, num_rows: int) -> None:
    """Weights, tokenizer and token ids that both sides load."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    shape = Qwen3Config(
        vocab_size=VOCABULARIES[case], hidden_size=256, intermediate_size=768, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=4096,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    Qwen3ForCausalLM(shape).save_pretrained(folder)
    words = {f"w{i}": i for i in range(4096)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w2")),
        eos_token="w1", pad_token="w0", unk_token="w2", padding_side="left",
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    random = np.random.default_rng(0)
    lengths = [LONGEST] * num_rows
    if case == "ragged":  # 80 .. 512 tokens, mean a third of the longest
        lengths = [LONGEST, 300, 224, 208, 192, 176, 160, 144, 128, 128, 112, 112, 96, 96, 80, 63][:num_rows]
    ids = [random.integers(3, 4096, size=length).tolist() for length in lengths]
    rewards = random.permutation(len(ids)).astype(float).tolist()
    (folder / "rows.json").write_text(json.dumps({"ids": ids, "rewards": rewards}))


def load_rows(folder: Path) -> tuple[list[list[int]], list[float]]:
    rows = json.loads((folder / "rows.json").read_text())
    return rows["ids"], rows["rewards"]


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def run_agentrl(folder: Path, batches: int, warmup: int, microbatch_tokens: int) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    from agentrl.config.read import build_config
    from agentrl.learner.advantage import grpo
    from agentrl.learner.batch import Batch, BatchRow
    from agentrl.learner.learner import TorchLearner

    ids, rewards = load_rows(folder)
    worth = np.concatenate([grpo(half) for half in np.split(np.array(rewards), 2)])
    rows = []
    for row, value in zip(ids, worth, strict=True):
        trained = np.arange(len(row)) >= PROMPT
        advantage = np.where(trained, value, 0).astype(np.float32)
        rows.append(BatchRow(np.array(row, np.int32), trained, advantage, np.zeros(len(row), np.float32)))
    batch = Batch(rows, sum(int(row.trained.sum()) for row in rows), 2, 2)
    config = build_config(
        {
            "loss": {"clip_high": 0.28, "kl_coef": 0.0, "normalization": "token_mean"},
            "learner": {"max_reuse": 2, "lr": 1e-5, "microbatch_tokens": microbatch_tokens},
            "rollout": {"max_context_tokens": LONGEST},
            "tracking": {"divergence_every": 0},
        }
    )
    learner = TorchLearner(AutoModelForCausalLM.from_pretrained(folder).eval(), config, pad_id=0)
    energy = Stopwatch()
    learner.policy.head.energy = energy.of(learner.policy.head.energy)  # type: ignore[method-assign]
    for _ in range(warmup):
        learner.update(batch)
    seconds = []
    for _ in range(batches):
        energy.seconds = 0.0
        update = learner.update(batch)
        assert (update.num_steps, update.num_discarded) == (2, 0)
        seconds.append(update.seconds[1])
    result = {"batch": float(np.mean(seconds)), "update": float(np.mean(seconds)) / 2, "logprob": 0.0}
    result |= {"peak_mib": peak_mib(), "loss": update.steps[0]["loss"], "energy": energy.seconds / 2}
    shapes, flops, spent = observe(learner, batch)
    return {**result, **physical_limit(shapes, flops), "spent": spent}


class Stopwatch:
    """Adds up the CPU seconds of a function."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def of(self, function: Any) -> Any:
        """The function, timed."""

        def timed(*values: Any) -> Any:
            started = time.process_time()
            result = function(*values)
            self.seconds += time.process_time() - started
            return result

        return timed


def observe(learner: Any, batch: Any) -> tuple[Counter[Shape], float, dict[str, float]]:
    """Two updates watched: matrix products by shape, FLOPs, and the share of time by kind of operation."""
    from torch.profiler import ProfilerActivity, profile
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    shapes: Counter[Shape] = Counter()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, values: Any = (), kwargs: Any = None) -> Any:
            if function.overloadpacket.__name__ in ("mm", "addmm", "addmm_"):
                a, b = values[-2:]
                shapes[a.shape[0], a.shape[1], b.shape[1], a.is_contiguous(), b.is_contiguous()] += 1
            return function(*values, **(kwargs or {}))

    kinds = {
        "matrix products": ("mm", "bmm"), "attention": ("scaled_dot", "flash"), "head softmax": ("softmax", "exp_"),
        "copies and allocation": ("copy_", "empty", "zero", "cat", "clone", "fill_", "index", "embedding"),
        "optimizer and norms": ("adam", "foreach", "norm", "dot"),
    }  # fmt: skip
    learner.config.learner.max_reuse = 1
    with FlopCounterMode(display=False) as counter, Recorder():
        learner.update(batch)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:  # apart: what the two above cost is not the learner's
        learner.update(batch)
    spent = dict.fromkeys([*kinds, "elementwise and the rest"], 0.0)
    for event in profiler.key_averages():
        kind = next((k for k, names in kinds.items() if any(name in event.key for name in names)), None)
        spent[kind or "elementwise and the rest"] += event.self_cpu_time_total
    total = sum(spent.values())
    return (
        shapes,
        float(counter.get_total_flops()),
        {kind: microseconds / total for kind, microseconds in spent.items()},
    )


def physical_limit(shapes: Counter[Shape], flops: float) -> dict[str, float]:
    """CPU seconds per update of the bare matrix products; attention is counted at the rate of the others."""
    replayed = seconds = 0.0
    for (m, k, n, plain_a, plain_b), count in shapes.items():
        a = torch.randn(m, k) if plain_a else torch.randn(k, m).t()
        b = torch.randn(k, n) if plain_b else torch.randn(n, k).t()
        out = torch.empty(m, n)
        torch.mm(a, b, out=out)
        times = min(count, 8)
        started = time.process_time()
        for _ in range(times):
            torch.mm(a, b, out=out)
        seconds += (time.process_time() - started) * count / times
        replayed += 2.0 * m * k * n * count
    return {"flops": flops, "limit": seconds * flops / replayed, "gflops": replayed / seconds / 1e9}


def run_trl(folder: Path, batches: int, warmup: int) -> dict[str, Any]:
    """TRL's side; runs under an interpreter that has trl 1.16 and touches private methods of it."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    ids, rewards = load_rows(folder)
    clock: dict[str, list[float]] = {"logprob": [], "update": []}
    losses: list[float] = []
    warm = False

    def rollout(prompts: Any, trainer: Any) -> dict[str, Any]:
        completions = [row[PROMPT:] for row in ids]
        return {
            "prompt_ids": [row[:PROMPT] for row in ids], "completion_ids": completions,
            "logprobs": [[-1.0] * len(row) for row in completions],
        }  # fmt: skip

    class Timed(GRPOTrainer):  # type: ignore[misc]
        """Clocks around the old-log-prob pass and around forward + backward + optimizer of each step."""

        def _get_per_token_logps_and_entropies(self, *values: Any, **kwargs: Any) -> Any:
            if torch.is_grad_enabled():
                return super()._get_per_token_logps_and_entropies(*values, **kwargs)
            started = time.process_time()
            result = super()._get_per_token_logps_and_entropies(*values, **kwargs)
            if warm:
                clock["logprob"].append(time.process_time() - started)
            return result

        def _prepare_inputs(self, generation_batch: Any) -> Any:
            nonlocal warm
            warm = self.state.global_step >= 2 * warmup
            started = time.process_time()
            result = super()._prepare_inputs(generation_batch)
            self.preparing = time.process_time() - started
            return result

        def training_step(self, *values: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            result = super().training_step(*values, **kwargs)
            losses.append(float(result))
            if warm:
                clock["update"].append(time.process_time() - started - self.preparing)
            return result

        def create_optimizer(self, *values: Any, **kwargs: Any) -> Any:
            optimizer = super().create_optimizer(*values, **kwargs)
            inner = optimizer.step

            def step(*a: Any, **b: Any) -> Any:
                started = time.process_time()
                result = inner(*a, **b)
                if warm:
                    clock["update"][-1] += time.process_time() - started
                return result

            optimizer.step = step
            return optimizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    with tempfile.TemporaryDirectory() as output:
        arguments = GRPOConfig(
            output_dir=output, per_device_train_batch_size=len(ids), gradient_accumulation_steps=1,
            num_generations=len(ids) // 2, num_iterations=2, max_completion_length=LONGEST - PROMPT, beta=0.0,
            learning_rate=1e-5, max_steps=2 * (batches + warmup), bf16=False, fp16=False, use_cpu=True,
            gradient_checkpointing=False, report_to=[], logging_steps=1, save_strategy="no", disable_tqdm=True,
            loss_type="dapo", epsilon_high=0.28, seed=0, mask_truncated_completions=False,
        )  # fmt: skip
        Timed(
            model=AutoModelForCausalLM.from_pretrained(folder),
            reward_funcs=lambda completions, **_: rewards,
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": ["w5 w6"] * 64}),
            processing_class=tokenizer,
            rollout_func=rollout,
        ).train()
    logprob, update = sum(clock["logprob"]) / batches, sum(clock["update"]) / (2 * batches)
    return {
        "batch": logprob + 2 * update, "update": update, "logprob": logprob, "peak_mib": peak_mib(), "loss": losses[-2]
    }  # fmt: skip


def run_sides(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both sides at the same time, each in a process of its own: what else the machine does meets both."""
    pythons = {"agentrl": sys.executable} | ({} if options.only else {"trl": options.trl_python})
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    running = {}
    for side, python in pythons.items():
        words = [python, __file__, "--side", side, "--folder", str(folder), "--batches", str(options.batches)]
        words += ["--microbatch-tokens", str(options.microbatch_tokens), "--warmup", str(options.warmup)]
        running[side] = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    results = []
    for side, process in running.items():
        out, err = process.communicate()
        if process.returncode:
            sys.exit(f"{side} failed:\n{err[-4000:]}")
        results.append(dict(json.loads(out.splitlines()[-1])))
    return results


def report(case: str, num_rows: int, ours: dict[str, Any], theirs: dict[str, Any] | None) -> bool:
    """Print a case; whether every target is met."""
    print(f"\n{case}: vocabulary {VOCABULARIES[case]:,}, {num_rows} rows, CPU-seconds, one thread")
    print(f"{'':34}{'agentrl':>10}{'TRL 1.16':>10}{'ratio':>8}{'target':>9}")
    reached = True
    names = {
        "batch": "rollout batch, two updates", "logprob": "  old log-probs", "update": "  one update",
        "peak_mib": "peak memory, MiB",
    }  # fmt: skip
    for key, name in names.items():
        line = f"{name:34}{ours[key]:10.2f}"
        if theirs is not None:
            line += f"{theirs[key]:10.2f}"
            target = TARGETS[case].get({"peak_mib": "memory"}.get(key, key))
            if key == "peak_mib":
                ratio = ours[key] / theirs[key]
                line += f"{ratio:8.2f}" + (f"   <= {target}" if target else "")
                reached &= target is None or ratio <= target
            elif ours[key]:
                ratio = theirs[key] / ours[key]
                line += f"{ratio:8.2f}" + (f"   >= {target}" if target else "")
                reached &= target is None or ratio >= target
        print(line)
    print(
        f"physical limit: {ours['limit']:.2f} CPU-s an update ({ours['flops'] / 1e9:.0f} GFLOP at "
        f"{ours['gflops']:.0f} GFLOP/s); agentrl is at {ours['limit'] / ours['update']:.0%} of it"
    )
    print("where an update's time goes: " + ", ".join(f"{k} {v:.0%}" for k, v in ours["spent"].items()))
    share = ours["energy"] / ours["update"]
    print(f"head energy: {1e3 * ours['energy']:.2f} ms of {ours['update']:.2f} s, {share:.3%} of an update (<= 1 %)")
    if theirs is not None:
        print(f"first-update loss: agentrl {ours['loss']:.6f}, TRL {theirs['loss']:.6f}")
    return reached and share <= 0.01


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(VOCABULARIES), default=list(VOCABULARIES))
    parser.add_argument("--trl-python", help="interpreter of an environment with trl 1.16 and datasets")
    parser.add_argument("--only", choices=["agentrl"], help="leave TRL out")
    parser.add_argument("--batches", type=int, default=2, help="rollout batches measured")
    parser.add_argument("--rows", type=int, default=16, help="rows of a batch, even; fewer for a quick look")
    parser.add_argument("--warmup", type=int, default=1, help="rollout batches trained before")
    parser.add_argument("--microbatch-tokens", type=int, default=1024, help="agentrl's learner.microbatch_tokens")
    parser.add_argument("--side", choices=["agentrl", "trl"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.side == "agentrl":
        print(json.dumps(run_agentrl(options.folder, options.batches, options.warmup, options.microbatch_tokens)))
        return 0
    if options.side == "trl":
        print(json.dumps(run_trl(options.folder, options.batches, options.warmup)))
        return 0
    if not options.only and not options.trl_python:
        parser.error('give --trl-python (an environment with "trl==1.16.*" and datasets), or --only agentrl')
    if options.trl_python and not shutil.which(options.trl_python):
        parser.error(f"--trl-python: no interpreter at {options.trl_python}")
    reached = True
    for case in options.cases:
        with tempfile.TemporaryDirectory() as name:
            make_case(case, Path(name), options.rows)
            ours, *theirs = run_sides(Path(name), options)
        reached &= report(case, options.rows, ours, theirs[0] if theirs else None)
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
