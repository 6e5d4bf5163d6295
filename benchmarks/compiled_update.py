"""Compiled blocks against plain ones: the same updates, side by side in one process, at one thread.

Prints CPU seconds of an update of ragged rows, whose lengths differ from update to update, their ratio, what compiling
cost once (with an empty cache: CPU seconds of this process and of the C++ compiler that it starts), and how many graphs
there are. A GPU is not needed; with one, seconds are the clock's.

    python benchmarks/compiled_update.py [--layers 4] [--hidden 256] [--repeat 5]
"""

import argparse
import os
import statistics
import tempfile
import time

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

import numpy as np
import torch
from torch._dynamo.utils import counters
from transformers import Qwen3Config, Qwen3ForCausalLM

from agentrl.config.read import build_config
from agentrl.learner.batch import Batch, BatchRow
from agentrl.learner.learner import TorchLearner
from agentrl.model.compiled import Compiler
from agentrl.model.load import compute_device
from agentrl.model.processes import Processes

VOCABULARY, PROMPT, LONGEST, ROWS = 1024, 32, 256, 16
USES = 2
"""Gradients a batch."""


def make_learner(layers: int, hidden: int, compiler: Compiler | None) -> TorchLearner:
    torch.manual_seed(0)
    shape = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 32, num_key_value_heads=hidden // 64, head_dim=32, tie_word_embeddings=False,
    )  # fmt: skip
    config = build_config(
        {
            "loss": {"kl_coef": 0.0},
            "gate": {"kind": "none"},
            "learner": {"max_reuse": USES, "lr": 1e-5, "microbatch_tokens": 1024},
            "rollout": {"max_context_tokens": LONGEST},
            "tracking": {"divergence_every": 0},
        }
    )
    device = compute_device()
    module = Qwen3ForCausalLM(shape).eval().to(device)
    return TorchLearner(module, config, pad_id=0, processes=Processes(device=device), compiler=compiler)


def make_batch(seed: int) -> Batch:
    """Rows of 64 to 256 tokens, of which those behind a prompt are trained."""
    random, rows = np.random.default_rng(seed), []
    for number, length in enumerate(random.integers(64, LONGEST + 1, size=ROWS)):
        trained = np.arange(length) >= PROMPT
        worth = np.where(trained, 1.0 if number % 2 else -1.0, 0).astype(np.float32)
        ids = random.integers(3, VOCABULARY, size=length).astype(np.int32)
        rows.append(BatchRow(ids, trained, worth, np.where(trained, -5.0, 0).astype(np.float32)))
    return Batch(rows, sum(int(row.trained.sum()) for row in rows), 2, 2)


def spent() -> float:
    """CPU seconds of this process and of those it has waited for; with a GPU the clock's."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return sum(os.times()[:4])


def seconds(learner: TorchLearner, batch: Batch) -> tuple[float, float]:
    """(seconds, head energy of the last gradient) of one gradient of an update."""
    started = spent()
    update = learner.update(batch)
    assert update.num_steps == USES
    return (spent() - started) / USES, update.steps[-1]["head_energy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256, help="a multiple of 64")
    parser.add_argument("--repeat", type=int, default=5, help="alternating updates; medians are printed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        plain, compiled = (
            make_learner(options.layers, options.hidden, compiler) for compiler in (None, Compiler("inductor"))
        )
        first = [0.0, 0.0]
        for seed in range(3):  # whose shapes may need graphs of their own
            for place, learner in enumerate((plain, compiled)):
                first[place] += seconds(learner, make_batch(seed))[0] * USES
        measured = []
        for seed in range(3, 3 + options.repeat):
            (a, energy), (b, other) = seconds(plain, make_batch(seed)), seconds(compiled, make_batch(seed))
            assert abs(other / energy - 1) < 1e-2, "both learn the same"
            measured.append((a, b))
    ours, theirs = (statistics.median(column) for column in zip(*measured, strict=True))
    ratios = sorted(a / b for a, b in measured)
    print(f"{options.layers} layers of width {options.hidden}, {ROWS} rows of 64 to {LONGEST} tokens, float32")
    print(f"a gradient: plain {ours:.3f} s, compiled {theirs:.3f} s")
    middle = statistics.median(ratios)
    print(f"plain / compiled = {middle:.2f}x (median of {options.repeat}; {ratios[0]:.2f} to {ratios[-1]:.2f})")
    made = counters["stats"]["unique_graphs"]
    print(f"compiling, once: {first[1] - first[0]:.0f} s for {made} graphs (of three updates, beyond plain ones)")


if __name__ == "__main__":
    main()
