"""The embedded engine's key/value buffer: it grows, is reused by right and no further, and has an end."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from agentrl.config.schema import ModelConfig
from agentrl.errors import UserError
from agentrl.model.load import load_model
from agentrl.model.tiny import build_tokenizer
from agentrl.rollout.engines.base import Sampling
from agentrl.rollout.engines.local import LocalEngine
from tests.agentrl.helpers import TEXTS, tiny_policy

MODULE, TOKENIZER = tiny_policy()
SAMPLING = Sampling(max_new_tokens=6)


def row(length: int, *, seed: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(5, 30, size=length)]


@pytest.mark.parametrize(
    ("first", "second", "prefilled"),
    [
        (row(252), [], 1),  # goes on beyond the 256 positions that the buffer begins with; only the last token is new
        (row(20), row(300, seed=1), 300),  # another conversation: nothing of the old one is used
        (row(20), row(9, seed=2), 9),
    ],
    ids=["grows", "other and longer", "other and shorter"],
)
def test_logprobs_of_a_sessions_second_turn_are_those_of_a_plain_pass(
    first: list[int], second: list[int], prefilled: int
) -> None:
    engine = LocalEngine(MODULE, TOKENIZER, max_concurrent=2, max_context_tokens=400)

    async def play() -> None:
        turn = await engine.generate(first, SAMPLING, key=(0,), session="a")
        ids = second or [*first, *turn.ids]
        before = engine.counts()["prefilled_tokens"]
        answer = await engine.generate(ids, SAMPLING, key=(1,), session="a")
        whole = [*ids, *answer.ids]
        assert answer.logprobs == pytest.approx((await engine.score(whole))[len(ids) - 1 :], abs=1e-3)
        assert engine.counts()["prefilled_tokens"] - before == prefilled

    asyncio.run(play())


def test_more_sessions_than_slots_are_refused_until_one_is_released() -> None:
    engine = LocalEngine(MODULE, TOKENIZER, max_concurrent=1, max_context_tokens=64)

    async def play() -> None:
        await engine.generate(row(4), SAMPLING, key=(0,), session="a")
        with pytest.raises(RuntimeError, match=r"more rows at once than rollout\.max_concurrent"):
            await engine.generate(row(4), SAMPLING, key=(1,), session="b")
        engine.release("a")
        assert (await engine.generate(row(4), SAMPLING, key=(1,), session="b")).ids

    asyncio.run(play())


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(TEXTS)
    tokenizer.chat_template = None
    tiny_policy()[0].save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no chat template; use an instruct model"):
        load_model(ModelConfig(path=str(tmp_path)))


def test_a_model_loaded_to_recompute_activations_does_so() -> None:
    module, _ = load_model(ModelConfig(gradient_checkpointing=True), texts=TEXTS)
    assert all(layer.gradient_checkpointing for layer in module.model.layers)
