"""What `gpu_proof.py` measures in one process: the card, the learner, the embedded engine. Values in, numbers out.

An update is the learner's own, on random weights of a real model's shape. Beside it stand three updates
as others write them (`OTHERS`), with the same loss, clipping and AdamW, which differ in how log-probs are computed:
 - `no_sink`: our chunked head with its gradient straight into the weight, so that no head energy can be read;
 - `full_logits`: the logits of every position at once, a log-softmax, a gather;
 - `trl`: TRL's `selective_log_softmax` and `entropy_from_logits` on the completion's logits, where trl is installed.

Operations are counted as 2 P' + 2 n H d L a token and forward pass (P' the matrices of the blocks, causal attention in
a row of L), three such passes for forward and backward (`share`), four with the recomputation
(`share_with_recomputation`); the head's 2 V D count for trained tokens only.
"""

import asyncio
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

from agentrl.config.read import build_config
from agentrl.config.schema import Config, LearnerConfig
from agentrl.dry_run.estimate import Shape, learner_memory
from agentrl.learner.batch import Batch, BatchRow, MicroBatch, micro_batches
from agentrl.learner.learner import TorchLearner
from agentrl.model.compiled import Compiler
from agentrl.model.head import HeadGradient, default_chunk, token_logprobs
from agentrl.model.load import recompute_activations
from agentrl.model.processes import Processes
from agentrl.model.weights import computing
from agentrl.rollout.engines.base import Sampling
from agentrl.rollout.engines.local import LocalEngine

TEMPERATURE, CLIP, LR = 0.7, 0.2, 1e-6
_QWEN = {"vocab_size": 151_936, "tie_word_embeddings": True, "max_position_embeddings": 32_768, "use_cache": False}
SHAPES: dict[str, Any] = {
    "Qwen2.5-1.5B": transformers.Qwen2Config(
        hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
        **_QWEN,
    ),
    "Qwen3-4B": transformers.Qwen3Config(
        hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
        head_dim=128, **_QWEN,
    ),
    "tiny": transformers.Qwen3Config(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, **{**_QWEN, "vocab_size": 512},
    ),
}  # fmt: skip


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], Any], device: torch.device, *, repeat: int = 3, warmup: int = 1) -> float:
    """Median seconds of `work` with the device idle before and after."""
    taken = []
    for _ in range(warmup + repeat):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[warmup:])


def card(device: torch.device, *, tiny: bool) -> dict[str, Any]:
    """Name, memory, and the two ceilings: rate of square matrix products and of copies (bytes read and written)."""
    rates = {}
    for name in ("bfloat16", "float32"):
        best = 0.0
        for size in [256] if tiny else [4096, 8192]:
            a, b = (torch.randn(size, size, device=device, dtype=getattr(torch, name)) for _ in range(2))
            best = max(best, 2.0 * size**3 / seconds_of(lambda a=a, b=b: a @ b, device, repeat=10, warmup=3))  # type: ignore[misc]
        rates[name] = best
    source = torch.randn((1 << 20) if tiny else (1 << 30), device=device)
    target = torch.empty_like(source)
    copied = 2.0 * source.numel() * 4 / seconds_of(lambda: target.copy_(source), device, repeat=10, warmup=3)
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "memory_gib": torch.cuda.get_device_properties(device).total_memory / 2**30 if on_gpu else None,
        "torch": torch.__version__, "transformers": transformers.__version__,
        "matrix_flops_per_s": rates, "copy_bytes_per_s": copied,
    }  # fmt: skip


def make_module(shape: str, dtype: str, device: torch.device, *, seed: int = 0) -> Any:
    """A causal LM with random weights, made on the device; `dtype` as in `model.dtype`, activations recomputed."""
    weights = torch.float32 if dtype == "mixed" else getattr(torch, dtype)
    before = torch.get_default_dtype()
    torch.set_default_dtype(weights)
    try:
        torch.manual_seed(seed)
        with device:
            module = transformers.AutoModelForCausalLM.from_config(SHAPES[shape], attn_implementation="sdpa")
    finally:
        torch.set_default_dtype(before)
    module.compute_dtype = torch.bfloat16 if dtype == "mixed" else weights
    recompute_activations(module)
    return module.eval()


def make_batch(rows: int, length: int, vocabulary: int, *, seed: int = 0) -> Batch:
    """Rows of random tokens whose second half is trained on; advantages alternate between 1 and -1."""
    random = np.random.default_rng(seed)
    trained = np.arange(length) >= length // 2
    made = []
    for i in range(rows):
        ids = random.integers(0, vocabulary, length).astype(np.int32)
        made.append(BatchRow(ids, trained, np.float32((-1) ** i) * trained, np.zeros(length, np.float32)))
    return Batch(made, int(trained.sum()) * rows, rows // 2, rows // 2)


def make_config(dtype: str, length: int, budget: int) -> Config:
    """One update a batch, nothing ever discarded, what `configs/paper` has otherwise."""
    return build_config(
        {
            "model": {"dtype": dtype, "gradient_checkpointing": True},
            "rollout": {"temperature": TEMPERATURE, "max_context_tokens": length},
            "gate": {"kind": "none"},
            "loss": {"kl_coef": 0.0, "normalization": "token_mean"},
            "learner": {"max_reuse": 1, "lr": LR, "microbatch_tokens": budget},
            "tracking": {"divergence_every": 0},
        }
    )


def flops(module: Any, batch: Batch, *, passes: int) -> float:
    """Operations of an update, by the count in this file's head."""
    config, length = module.config, len(batch.rows[0].ids)
    blocks = sum(p.numel() for p in module.model.layers.parameters() if p.dim() == 2)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 2.0 * config.num_hidden_layers * config.num_attention_heads * head_size * length
    head = 2.0 * config.vocab_size * config.hidden_size
    return passes * (len(batch.rows) * length * (2.0 * blocks + attention) + batch.num_trained_tokens * head)


def full_logits(module: Any, part: MicroBatch) -> torch.Tensor:
    """Log-probs [N] through the logits of all positions, [B, L, V]."""
    with computing(module):
        logits = module(input_ids=part.ids, use_cache=False).logits
    scaled = logits.flatten(0, 1)[part.predecessors].float() / TEMPERATURE
    return scaled.log_softmax(-1).gather(1, part.targets[:, None])[:, 0]


def trl_logprobs(module: Any, part: MicroBatch) -> torch.Tensor:
    """Log-probs [N] as TRL's GRPOTrainer gets them: logits of the completion alone; the entropy is computed too."""
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    kept = len(part.targets) // len(part.ids)
    with computing(module):
        logits = module(input_ids=part.ids, use_cache=False, logits_to_keep=kept + 1).logits[:, :-1] / TEMPERATURE
        logprobs = selective_log_softmax(logits, part.ids[:, -kept:])
        with torch.no_grad():
            entropy_from_logits(logits)
    return logprobs.flatten()


def no_sink(module: Any, part: MicroBatch) -> torch.Tensor:
    """Log-probs [N] by our chunked head, whose gradient goes straight into the weight."""
    with computing(module):
        hidden = module.model(input_ids=part.ids, use_cache=False).last_hidden_state
    hidden = hidden.flatten(0, 1)[part.predecessors].to(module.compute_dtype)
    weight = module.lm_head.weight.to(module.compute_dtype)
    return token_logprobs(hidden, weight, part.targets, temperature=TEMPERATURE)[0]


OTHERS: dict[str, Callable[[Any, MicroBatch], torch.Tensor]] = {
    "no_sink": no_sink, "full_logits": full_logits, "trl": trl_logprobs,
}  # fmt: skip


class OtherUpdate:
    """A clipped policy-gradient step with AdamW, written as users write it; how log-probs are computed is given."""

    def __init__(self, module: Any, logprobs: Callable[[Any, MicroBatch], torch.Tensor], batch: Batch, budget: int):
        self.module, self.logprobs = module, logprobs
        self.optimizer = torch.optim.AdamW(
            module.parameters(), lr=LR, weight_decay=LearnerConfig().weight_decay, fused=True
        )
        weights = [1.0 / batch.num_trained_tokens] * len(batch.rows)
        parts = micro_batches(batch.rows, weights, budget=budget, pad_id=0, keep=lambda row: True)
        self.parts = [part.to(module.device) for part in parts]
        for layer in module.modules():
            if getattr(layer, "gradient_checkpointing", False):
                layer.training = True

    def step(self) -> None:
        """All micro-batches, clipping, AdamW."""
        for part in self.parts:
            logprobs = self.logprobs(self.module, part)
            ratio = (logprobs - logprobs.detach()).exp()
            clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
            losses = -torch.minimum(ratio * part.advantages, clipped * part.advantages)
            (losses * part.weights).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def updates(
    shape: str, dtype: str, rows: int, length: int, device: torch.device, *,
    budget: int, rate: float, which: tuple[str, ...] = ("agentrl",), repeat: int = 3,
) -> dict[str, Any]:  # fmt: skip
    """Speed and memory of whole updates; an entry says so where memory does not suffice or trl is absent.

    `which`: `agentrl`, the same `compiled` (`first_s`: its first update, compiling included), or names of `OTHERS`.
    """
    batch = make_batch(rows, length, SHAPES[shape].vocab_size)
    return {name: _measured(name, shape, dtype, batch, device, budget, rate, repeat) for name in which}


def _measured(
    name: str, shape: str, dtype: str, batch: Batch, device: torch.device, budget: int, rate: float, repeat: int
) -> dict[str, Any]:
    length = len(batch.rows[0].ids)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        module = make_module(shape, dtype, device)
        config = make_config(dtype, length, budget)
        if name in ("agentrl", "compiled"):
            compiler = Compiler("inductor") if name == "compiled" else None
            learner = TorchLearner(module, config, pad_id=0, processes=Processes(device=device), compiler=compiler)
            work: Callable[[], Any] = lambda: learner.update(batch)  # noqa: E731
        else:
            work = OtherUpdate(module, OTHERS[name], batch, budget).step
        started = time.perf_counter()
        work()
        wait(device)
        first = time.perf_counter() - started
        taken = seconds_of(work, device, repeat=repeat, warmup=0)
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    except Exception as error:  # what one way cannot do must not cost the others their numbers
        return {f"{type(error).__name__}: {str(error)[:200]}": True}
    tokens = len(batch.rows) * length
    found: dict[str, Any] = {
        "seconds": taken, "tokens_per_s": tokens / taken,
        "share": flops(module, batch, passes=3) / taken / rate,
        "share_with_recomputation": flops(module, batch, passes=4) / taken / rate,
    }  # fmt: skip
    if device.type == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    if name == "compiled":
        found["first_s"] = first
    if name == "agentrl":
        head = HeadGradient()
        head.buffer = torch.randn(module.lm_head.weight.shape, device=device)
        found["energy_s"] = seconds_of(lambda: float(head.energy()), device)
        chunk = min(max(budget, length), default_chunk(module.config.vocab_size, device))
        items = learner_memory(Shape.of(module.config), config, tokens=max(budget, length), chunk=chunk)
        found["dry_run_gib"] = sum(item.value for item in items) / 2**30
    return found


def agreement(shape: str, rows: int, length: int, device: torch.device, *, budget: int) -> dict[str, Any]:
    """Head energy and norm of one gradient at the same weights, with float32, mixed and bfloat16 products."""
    batch = make_batch(rows, length, SHAPES[shape].vocab_size, seed=1)
    found: dict[str, Any] = {}
    for dtype in ("float32", "mixed", "bfloat16"):
        module = make_module(shape, dtype, device)
        learner = TorchLearner(module, make_config(dtype, length, budget), pad_id=0, processes=Processes(device=device))
        step = learner.update(batch).steps[0]
        found[dtype] = {name: step[name] for name in ("head_energy", "grad_norm", "entropy")}
        del module, learner
    for dtype in ("mixed", "bfloat16"):
        for name in ("head_energy", "grad_norm"):
            found[dtype][f"{name}_difference"] = abs(found[dtype][name] / found["float32"][name] - 1)
    return found


def engine(shape: str, device: torch.device, *, rows: int, prompt: int, new: int) -> dict[str, Any]:
    """Prefill and decode rates of the embedded engine, in bfloat16: one token a row, then `new` tokens a row."""
    module = make_module(shape, "bfloat16" if device.type == "cuda" else "float32", device)
    local = LocalEngine(module, None, max_concurrent=rows, max_context_tokens=prompt + new)
    random = np.random.default_rng(0)

    async def play(count: int, turn: int) -> None:
        ids = random.integers(0, module.config.vocab_size, (rows, prompt)).tolist()
        sampling = Sampling(max_new_tokens=count)
        await asyncio.gather(*(local.generate(row, sampling, key=(turn, i)) for i, row in enumerate(ids)))

    one = seconds_of(lambda: asyncio.run(play(1, 0)), device, repeat=2)
    many = seconds_of(lambda: asyncio.run(play(new, 1)), device, repeat=1, warmup=0)
    return {
        "rows": rows, "prompt_tokens": prompt, "new_tokens": new,
        "prefill_tokens_per_s": rows * prompt / one,
        "decode_tokens_per_s": rows * (new - 1) / (many - one), "decode_tick_s": (many - one) / (new - 1),
    }  # fmt: skip
