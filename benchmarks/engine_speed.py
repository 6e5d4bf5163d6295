"""Embedded engine against a plain Hugging Face loop, and against prefilling every turn anew.

Prints two ratios, each measured side by side in one run, in tokens per CPU second at one thread:
1. 64 concurrent single-turn prompts of 64 tokens, 64 new tokens each: engine / hand-written loop with DynamicCache.
2. 64 episodes of 20 turns, each 40 tokens of observation and 8 new ones: keys and values kept / prefilled each turn.

    python benchmarks/engine_speed.py [--repeat 5]
"""

import argparse
import asyncio
import os
import statistics
import time

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM

from agentrl.rollout.engines.base import Sampling
from agentrl.rollout.engines.local import LocalEngine

CONCURRENT, PROMPT, NEW = 64, 64, 64
TURNS, OBSERVATION, ANSWER = 20, 40, 8


def make_module() -> Qwen3ForCausalLM:
    """2 layers, hidden 64, vocabulary 1,024."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=1024, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=False, max_position_embeddings=4096,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval().requires_grad_(False)


@torch.inference_mode()
def hand_loop(module: Qwen3ForCausalLM, ids: torch.Tensor) -> int:
    """The usual loop: one padded batch, sampling with recorded log-probs. Returns the tokens generated."""
    cache = DynamicCache(config=module.config)
    out = module(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    for step in range(NEW):
        logprobs = torch.log_softmax(out.logits[:, -1].float(), -1)
        token = torch.multinomial(logprobs.exp(), 1)
        logprobs.gather(1, token)
        if step < NEW - 1:
            out = module(token, past_key_values=cache, use_cache=True)
    return ids.shape[0] * NEW


def engine_single_turn(engine: LocalEngine, ids: torch.Tensor) -> int:
    """The same work through the engine's public call."""

    async def run() -> None:
        sampling = Sampling(max_new_tokens=NEW)
        await asyncio.gather(*(engine.generate(row, sampling, key=(i,)) for i, row in enumerate(ids.tolist())))

    asyncio.run(run())
    return ids.shape[0] * NEW


def engine_episodes(engine: LocalEngine, *, keep: bool) -> int:
    """Episodes that grow turn by turn; with `keep` a session holds keys and values. Returns the tokens generated."""
    observation = list(range(5, 5 + OBSERVATION))

    async def episode(number: int) -> None:
        row: list[int] = []
        session = str(number) if keep else None
        for turn in range(TURNS):
            row += observation
            sampling = Sampling(max_new_tokens=ANSWER)
            row += (await engine.generate(row, sampling, key=(number, turn), session=session)).ids
        if session:
            engine.release(session)

    async def run() -> None:
        await asyncio.gather(*(episode(number) for number in range(CONCURRENT)))

    asyncio.run(run())
    return CONCURRENT * TURNS * ANSWER


def rate(work: object, *arguments: object, **keywords: object) -> float:
    """Tokens per CPU second of one call."""
    started = time.process_time()
    tokens = work(*arguments, **keywords)  # type: ignore[operator]
    return tokens / (time.process_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="alternating measurements; medians are printed")
    repeat = parser.parse_args().repeat
    torch.set_num_threads(1)
    module = make_module()
    engine = LocalEngine(module, None, max_concurrent=CONCURRENT, max_context_tokens=2048)
    ids = torch.randint(5, 1024, (CONCURRENT, PROMPT))
    pairs = {
        "single turn: engine / hand loop": (
            lambda: rate(engine_single_turn, engine, ids),
            lambda: rate(hand_loop, module, ids),
        ),
        "20 turns: cache kept / prefilled anew": (
            lambda: rate(engine_episodes, engine, keep=True),
            lambda: rate(engine_episodes, engine, keep=False),
        ),
    }
    for name, (ours, theirs) in pairs.items():
        ours(), theirs()
        measured = [(ours(), theirs()) for _ in range(repeat)]
        a, b = (statistics.median(column) for column in zip(*measured, strict=True))
        ratio = statistics.median(x / y for x, y in measured)
        print(f"{name}: {a:,.0f} / {b:,.0f} tokens per CPU second = {ratio:.2f}x (median of {repeat})")


if __name__ == "__main__":
    main()
