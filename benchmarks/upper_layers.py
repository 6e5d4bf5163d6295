"""What training the upper blocks alone saves, side by side in one run, in CPU-seconds at one thread.

A model of SmolLM2-135M's shape (random weights), one batch of 8 rows of 128 tokens used 4 times: all weights trained;
10 of 30 blocks trained, the frozen ones computed for each use; the same with their output kept (as shipped).

    python benchmarks/upper_layers.py [--repeat 3]
"""

import argparse
import copy
import os
import statistics
import time
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from agentrl.config.read import build_config
from agentrl.learner.batch import Batch, BatchRow
from agentrl.learner.learner import TorchLearner
from agentrl.learner.policy import Policy
from agentrl.model.upper import freeze_lower_layers

ROWS, LENGTH, USES, TRAINED = 8, 128, 4, 10
SHAPE: dict[str, Any] = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip


def make_batch() -> Batch:
    """Rows whose second half was sampled, half of them good."""
    generator = np.random.default_rng(0)
    trained = np.arange(LENGTH) >= LENGTH // 2
    rows = [
        BatchRow(
            generator.integers(5, 49000, LENGTH).astype(np.int32), trained,
            np.where(trained, (-1.0) ** number, 0.0).astype(np.float32), np.zeros(LENGTH, np.float32),
        )
        for number in range(ROWS)
    ]  # fmt: skip
    return Batch(rows, ROWS * int(trained.sum()), 1, 1)


def make_learner(module: Any, *, trained: int, keeps: bool) -> TorchLearner:
    """One way to train."""
    module = copy.deepcopy(module)
    freeze_lower_layers(module, trained)
    tree = {
        "learner": {"max_reuse": USES, "lr": 1e-5}, "gate": {"kind": "none"},
        "loss": {"kl_coef": 0.0}, "tracking": {"divergence_every": 0},
    }  # fmt: skip
    learner = TorchLearner(module, build_config(tree), pad_id=0)
    if not keeps:
        learner.policy = Policy(module, temperature=learner.config.rollout.temperature)
    return learner


def main() -> None:
    """Print seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="batches of each way")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    module, batch = LlamaForCausalLM(LlamaConfig(**SHAPE)).eval(), make_batch()
    ways = {
        "all weights": (0, True), f"{TRAINED} of 30 blocks, computed anew": (TRAINED, False),
        f"{TRAINED} of 30 blocks, output kept": (TRAINED, True),
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeat):
        for name, (trained, keeps) in ways.items():
            learner = make_learner(module, trained=trained, keeps=keeps)
            started = time.process_time()
            learner.update(batch)
            seconds[name].append(time.process_time() - started)
    first = statistics.median(seconds["all weights"])
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"{name:36} {middle:6.2f} CPU-s a batch of {USES} uses, {first / middle:.2f}x")


if __name__ == "__main__":
    main()
