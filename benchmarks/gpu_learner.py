"""The learner on one GPU, in one file that needs only torch and transformers (and this checkout, for its `lm_head.py`).

    python benchmarks/gpu_learner.py                              # Qwen3-4B's shapes, random weights, rows of 8,192
    python benchmarks/gpu_learner.py --out gpu.json --rows 4 --row-tokens 16384
    python benchmarks/gpu_learner.py --tiny --device cpu          # does it run? (seconds; no figure for anybody)

Measures, and prints as one JSON object:
 - `matrix`: FLOP/s of square matrix products in bfloat16 and float32, the best of several sizes;
 - `agreement`: head energy and gradient norm of the same rows, bfloat16 products against float32, at the same weights;
 - `updates`: tokens per second, peak memory, and share of the matrix rate, of whole updates: forward with recomputed
   activations, chunked head, backward, head energy, norm, clipping, fused AdamW. Once as in `configs/paper` (float32
   weights, gradients and moments, bfloat16 products) and once in bfloat16 throughout; what does not fit is said.
   `energy_share` is the part of an update that measuring the head's energy takes.

Operations are counted as 2 P' + 2 n H d L a token and forward pass (P' the matrices of the blocks, causal attention in
a row of L), three such passes for forward and backward (`share`), four with the recomputation
(`share_with_recomputation`); the head's 2 V D count for trained tokens only. An update is what
`agentrl.learner.Learner` does with one micro-batch after another; `tests/agentrl/test_gpu_learner.py` holds the two
together.
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
import transformers

CLIP, MAX_NORM, TEMPERATURE = 0.2, 1.0, 0.7
QWEN3_4B = {
    "vocab_size": 151_936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
    "max_position_embeddings": 262_144,
}  # fmt: skip
TINY = {
    **QWEN3_4B, "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


def load_head() -> Any:
    """`agentrl/learner/lm_head.py`, which needs torch alone, without the rest of the package."""
    file = Path(__file__).resolve().parents[1] / "agentrl" / "learner" / "lm_head.py"
    if not file.exists():
        sys.exit(f"error: {file} is missing; run this script from a checkout of agentrl, whose head it measures.")
    spec = importlib.util.spec_from_file_location("agentrl_lm_head", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HEAD = load_head()


@dataclass
class Rows:
    """Rows of one length, of which the second half is trained on."""

    ids: torch.Tensor
    """[B, L]."""
    advantages: torch.Tensor
    """One a row, [B]."""
    prompt: int
    """Tokens before the first trained one."""

    @property
    def num_trained(self) -> int:
        """Trained tokens."""
        return len(self.ids) * (self.ids.shape[1] - self.prompt)

    def parts(self, budget: int) -> Iterator["Rows"]:
        """Micro-batches of at most `budget` tokens, or one row."""
        count = max(1, budget // self.ids.shape[1])
        for ids, advantages in zip(self.ids.split(count), self.advantages.split(count), strict=True):
            yield Rows(ids, advantages, self.prompt)


def make_rows(count: int, length: int, vocabulary: int, device: torch.device, *, seed: int = 0) -> Rows:
    """Random tokens; advantages alternate."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (count, length), generator=random).to(device)
    return Rows(ids, torch.tensor([(-1.0) ** i for i in range(count)], device=device), length // 2)


def make_model(shape: dict[str, Any], device: torch.device, dtype: torch.dtype, *, recompute: bool = True) -> Any:
    """A Qwen3 with random weights, made on the device in its final type."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            config = transformers.Qwen3Config(**shape, use_cache=False)
            module = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    finally:
        torch.set_default_dtype(before)
    if recompute:
        enable = getattr(module, "activation_checkpointing_enable", None) or module.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return module.train(recompute)  # Qwen3 has no dropout: training mode only turns recomputation on


class Update:
    """One optimizer step on rows, with a clock around the head's energy."""

    def __init__(self, module: Any, products: torch.dtype, budget: int, *, lr: float = 1e-6) -> None:
        self.module, self.products, self.budget = module, products, budget
        self.sink = HEAD.HeadGradient()
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=lr, fused=True)
        self.old: list[torch.Tensor] = []
        self.energy_s = 0.0

    def gradient(self, rows: Rows) -> tuple[float, float]:
        """Accumulate the gradient of all rows; head energy and norm of the whole."""
        device = rows.ids.device
        same = self.products == self.module.dtype
        factor = self.module.lm_head.weight.detach().to(self.products)
        first, old = not self.old, iter(self.old)
        for part in rows.parts(self.budget):
            with nullcontext() if same else torch.autocast(device.type, dtype=self.products):
                hidden = self.module.model(input_ids=part.ids, use_cache=False).last_hidden_state
            hidden = hidden[:, part.prompt - 1 : -1].flatten(0, 1).to(factor.dtype)
            targets = part.ids[:, part.prompt :].flatten()
            logprobs, _ = HEAD.token_logprobs(hidden, factor, targets, temperature=TEMPERATURE, sink=self.sink)
            if first:
                self.old.append(logprobs.detach())
            ratio = (logprobs - (logprobs.detach() if first else next(old))).exp()
            worth = part.advantages.repeat_interleave(len(targets) // len(part.ids))
            losses = -torch.minimum(ratio * worth, ratio.clamp(1 - CLIP, 1 + CLIP) * worth)
            (losses.sum() / rows.num_trained).backward()
        wait(device)
        started = time.perf_counter()
        energy = float(self.sink.energy())
        self.energy_s = time.perf_counter() - started
        self.sink.merge(self.module.lm_head.weight)
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        norm = float(torch.stack(torch._foreach_norm(gradients)).double().square().sum().sqrt())
        return energy, norm

    def step(self, rows: Rows) -> tuple[float, float]:
        """Gradient, clipping, AdamW."""
        energy, norm = self.gradient(rows)
        if norm > MAX_NORM:
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, MAX_NORM / (norm + 1e-6))
        self.optimizer.step()
        self.clear()
        return energy, norm

    def clear(self) -> None:
        """Forget the gradient."""
        self.optimizer.zero_grad()
        self.sink.clear()


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device, dtype: torch.dtype, sizes: list[int]) -> float:
    """FLOP/s of the fastest square matrix product."""
    best = 0.0
    for size in sizes:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        for _ in range(3):
            a @ b
        wait(device)
        started = time.perf_counter()
        for _ in range(10):
            a @ b
        wait(device)
        best = max(best, 10 * 2.0 * size**3 / (time.perf_counter() - started))
    return best


def update_flops(module: Any, rows: Rows, *, passes: int) -> float:
    """Operations of an update, by the count in this file's head."""
    config = module.config
    blocks = sum(p.numel() for p in module.model.layers.parameters() if p.dim() == 2)
    attention = 2.0 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * rows.ids.shape[1]
    head = 2.0 * config.vocab_size * config.hidden_size
    return passes * (rows.ids.numel() * (2.0 * blocks + attention) + rows.num_trained * head)


def measure_update(make: Callable[[], Update], rows: Rows, repeat: int, rate: float) -> dict[str, Any]:
    """Median of `repeat` updates after one to warm up; an entry that says so where memory does not suffice."""
    device = rows.ids.device
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        update = make()
        seconds, energy_s = [], []
        for _ in range(1 + repeat):
            wait(device)
            started = time.perf_counter()
            update.step(rows)
            wait(device)
            seconds.append(time.perf_counter() - started)
            energy_s.append(update.energy_s)
    except torch.cuda.OutOfMemoryError:
        return {"out_of_memory": True}
    taken, energy = statistics.median(seconds[1:]), statistics.median(energy_s[1:])
    flops = [update_flops(update.module, rows, passes=passes) / taken / rate for passes in (3, 4)]
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return {
        "seconds": taken, "tokens_per_s": rows.ids.numel() / taken, "peak_gib": peak,
        "share": flops[0], "share_with_recomputation": flops[1], "energy_s": energy, "energy_share": energy / taken,
    }  # fmt: skip


def measure_agreement(module: Any, rows: Rows, budget: int) -> dict[str, Any]:
    """Head energy and norm with float32 and with bfloat16 products at the same weights; the relative differences."""
    found = []
    for products in (torch.float32, torch.bfloat16):
        update = Update(module, products, budget)
        found.append(update.gradient(rows))
        update.clear()
    names = ("energy", "norm")
    exact, near = (dict(zip(names, pair, strict=True)) for pair in found)
    difference = {name: abs(near[name] / exact[name] - 1) for name in names}
    return {"float32": exact, "bfloat16": near, "difference": difference}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu with --tiny")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape and short rows")
    parser.add_argument("--layers", type=int, help="fewer blocks than the shape has")
    parser.add_argument("--rows", type=int, default=4, help="rows of an update")
    parser.add_argument("--row-tokens", type=int, help="tokens of a row (default: 8,192; tiny: 64)")
    parser.add_argument("--microbatch-tokens", type=int, default=8192, help="tokens of one forward pass, or one row")
    parser.add_argument("--repeat", type=int, default=3, help="measured updates")
    parser.add_argument("--out", type=Path, help="where to write the JSON as well")
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("error: torch finds no CUDA device; try --tiny --device cpu.", file=sys.stderr)
        return 2
    shape = {**(TINY if options.tiny else QWEN3_4B)}
    shape["num_hidden_layers"] = options.layers or shape["num_hidden_layers"]
    length = options.row_tokens or (64 if options.tiny else 8192)
    sizes = [256] if options.tiny else [4096, 8192, 16384]
    rates = {name: matrix_rate(device, getattr(torch, name), sizes) for name in ("bfloat16", "float32")}
    rows = make_rows(options.rows, length, shape["vocab_size"], device)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__, "transformers": transformers.__version__, "shape": shape, "rows": options.rows,
        "row_tokens": length, "microbatch_tokens": options.microbatch_tokens, "matrix_flops_per_s": rates,
    }  # fmt: skip
    few = make_rows(2, length, shape["vocab_size"], device, seed=1)
    result["agreement"] = measure_agreement(make_model(shape, device, torch.float32), few, options.microbatch_tokens)
    result["updates"] = {}
    for name, weights in (("float32 weights, bfloat16 products", torch.float32), ("bfloat16", torch.bfloat16)):

        def make(weights: torch.dtype = weights) -> Update:
            return Update(make_model(shape, device, weights), torch.bfloat16, options.microbatch_tokens)

        result["updates"][name] = measure_update(make, rows, options.repeat, rates["bfloat16"])
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
