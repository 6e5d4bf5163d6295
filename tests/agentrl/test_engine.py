"""What every engine must do: the same tests for the embedded one, for vLLM in this process, and for vLLM servers."""

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
import torch

from agentrl.model.head import token_logprobs
from agentrl.rollout.engines.base import Completion, Engine, Sampling, random_stream
from agentrl.rollout.engines.local import LocalEngine
from tests.agentrl.engines import MODULE, TOKENIZER, weights
from tests.agentrl.helpers import tiny_policy

GREEDY = Sampling(max_new_tokens=8, temperature=0.0)
SAMPLED = Sampling(max_new_tokens=8, temperature=0.7)
VLLM = [pytest.param(name, marks=pytest.mark.vllm) for name in ("vllm", "fleet")]


@pytest.fixture
def local() -> LocalEngine:
    return LocalEngine(MODULE, TOKENIZER, max_concurrent=16, max_context_tokens=400)


@pytest.fixture(params=["local", *VLLM])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Every engine in turn, with the weights of `MODULE`."""
    if request.param == "local":
        return request.getfixturevalue("local")
    shared: Engine = request.getfixturevalue(f"{request.param}_engine")
    shared.load_weights(weights(MODULE), version=0)
    return shared


def prompts(count: int) -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [[int(i) for i in generator.integers(5, 200, size=generator.integers(1, 40))] for _ in range(count)]


def run(
    engine: Engine, rows: list[list[int]], sampling: Sampling, *, first_key: int = 0, session: str | None = None
) -> list[Completion]:
    async def all_of_them() -> list[Completion]:
        turns = [engine.generate(r, sampling, key=(0, first_key + i), session=session) for i, r in enumerate(rows)]
        return await asyncio.gather(*turns)

    return asyncio.run(all_of_them())


@torch.no_grad()
def plain_greedy(ids: list[int], count: int) -> list[int]:
    """Greedy decoding by whole forward passes: the reference."""
    ids = list(ids)
    for _ in range(count):
        ids.append(int(MODULE(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-count:]


@torch.no_grad()
def learner_logprobs(ids: list[int], *, temperature: float) -> list[float]:
    """What the learner would compute, [L - 1]."""
    hidden = MODULE.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    logprobs, _ = token_logprobs(hidden[:-1], MODULE.lm_head.weight, torch.tensor(ids[1:]), temperature=temperature)
    return [float(x) for x in logprobs]


def test_greedy_tokens_of_concurrent_rows_equal_plain_decoding(engine: Engine) -> None:
    rows = prompts(12)
    for ids, completion in zip(rows, run(engine, rows, GREEDY), strict=True):
        assert completion.ids == plain_greedy(ids, 8)
        assert completion.finish == "length"


def test_logprobs_equal_the_learners_and_a_separate_scoring_pass(engine: Engine) -> None:
    rows = prompts(12)
    for ids, completion in zip(rows, run(engine, rows, SAMPLED), strict=True):
        whole = ids + completion.ids
        assert completion.logprobs == pytest.approx(learner_logprobs(whole, temperature=0.7)[len(ids) - 1 :], abs=1e-3)
        scored = asyncio.run(engine.score(whole, temperature=0.7))
        assert scored == pytest.approx(learner_logprobs(whole, temperature=0.7), abs=1e-3)
        assert completion.logprobs == pytest.approx(scored[len(ids) - 1 :], abs=1e-3)


def test_logprobs_of_greedy_tokens_are_at_temperature_one(engine: Engine) -> None:
    ids = prompts(1)[0]
    completion = run(engine, [ids], GREEDY)[0]
    expected = learner_logprobs(ids + completion.ids, temperature=1.0)
    assert completion.logprobs == pytest.approx(expected[len(ids) - 1 :], abs=1e-3)
    assert asyncio.run(engine.score(ids + completion.ids)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name", ["local", *VLLM])
def test_sampling_follows_the_models_distribution(request: pytest.FixtureRequest, name: str) -> None:
    if name == "local":
        engine: Engine = LocalEngine(MODULE, TOKENIZER, max_concurrent=3000, max_context_tokens=64)
    else:
        engine = request.getfixturevalue(f"{name}_engine")
        engine.load_weights(weights(MODULE), version=0)
    ids = prompts(1)[0]
    logits = MODULE(input_ids=torch.tensor([ids])).logits[0, -1]
    expected = (logits / 0.7).softmax(-1).detach().numpy()
    one = Sampling(max_new_tokens=1, temperature=0.7)
    counts = np.bincount([c.ids[0] for c in run(engine, [ids] * 3000, one)], minlength=len(expected))
    likely = expected > 0.02
    assert likely.sum() >= 3
    deviation = np.sqrt(expected * (1 - expected) / 3000)
    assert (np.abs(counts / 3000 - expected)[likely] < 4.5 * deviation[likely]).all()


def test_a_turn_depends_on_its_key_and_not_on_its_company(engine: Engine) -> None:
    rows = prompts(8)
    together = run(engine, rows, SAMPLED)
    alone = [asyncio.run(engine.generate(ids, SAMPLED, key=(0, i))) for i, ids in enumerate(rows)]
    assert [c.ids for c in together] == [c.ids for c in alone]
    assert run(engine, rows[:1], SAMPLED)[0].ids == together[0].ids
    assert asyncio.run(engine.generate(rows[0], SAMPLED, key=(1, 0))).ids != together[0].ids


def three_turns(engine: Engine, session: str | None) -> list[int]:
    async def play() -> list[int]:
        row = prompts(1)[0]
        for turn in range(3):
            completion = await engine.generate(row, SAMPLED, key=(turn,), session=session)
            row += [*completion.ids, 7, 8, 9]
        return row

    return asyncio.run(play())


def test_a_session_changes_nothing(engine: Engine) -> None:
    assert three_turns(engine, "a") == three_turns(engine, None)
    engine.release("a")


def test_a_session_prefills_only_new_tokens(local: LocalEngine) -> None:
    three_turns(local, "a")
    # first turn: the prompt; later turns: the last sampled token and three new ones
    assert local.counts()["prefilled_tokens"] == len(prompts(1)[0]) + 2 * 4


def test_stop_ids_and_stop_strings_end_a_turn_and_are_kept(engine: Engine) -> None:
    ids = prompts(1)[0]
    plain = asyncio.run(engine.generate(ids, SAMPLED, key=(3,))).ids
    stop = Sampling(max_new_tokens=8, temperature=0.7, stop_ids=frozenset([plain[4]]))
    completion = asyncio.run(engine.generate(ids, stop, key=(3,)))
    assert completion.ids == plain[: plain.index(plain[4]) + 1]
    assert completion.finish == "stop"


def test_a_stop_string_ends_a_turn_with_the_token_that_completes_it(engine: Engine) -> None:
    ids = prompts(1)[0]
    turns = [completion.ids for completion in run(engine, [ids] * 16, SAMPLED)]
    # a turn that begins with whole characters, so that its text grows token by token
    key = next(i for i, turn in enumerate(turns) if TOKENIZER.decode(turn[:3]).isascii())
    plain, texts = turns[key], [TOKENIZER.decode(turns[key][: i + 1]) for i in range(3)]
    stop = texts[2][-2:]
    sampling = Sampling(max_new_tokens=8, temperature=0.7, stop=("never said", stop))
    completion = run(engine, [ids], sampling, first_key=key)[0]
    expected = next(i for i, text in enumerate(texts) if stop in text)
    assert completion.ids == plain[: expected + 1]
    assert completion.finish == "stop"
    assert len(completion.logprobs) == len(completion.ids)


def test_a_row_at_the_limit_is_cut_and_a_longer_one_refused(engine: Engine) -> None:
    ids = [6] * 397
    assert len(asyncio.run(engine.generate(ids, GREEDY, key=(0,))).ids) == 3
    with pytest.raises(ValueError, match="at most 400"):
        asyncio.run(engine.generate([6] * 400, GREEDY, key=(0,)))


def test_a_cancelled_turn_frees_its_place(engine: Engine) -> None:
    async def cancel_some() -> list[Completion]:
        long = Sampling(max_new_tokens=300)
        doomed = [asyncio.create_task(engine.generate([6, 7], long, key=(i,))) for i in range(16)]
        await asyncio.sleep(0.05)
        for task in doomed:
            task.cancel()
        await asyncio.gather(*doomed, return_exceptions=True)
        return await asyncio.gather(*(engine.generate([6], GREEDY, key=(i,)) for i in range(16)))

    assert len(asyncio.run(cancel_some())) == 16


@pytest.mark.parametrize("name", ["local", *VLLM])
def test_new_weights_drop_what_old_ones_computed(request: pytest.FixtureRequest, name: str) -> None:
    ids = prompts(1)[0] * 10  # long enough to be kept by a prefix cache
    if name == "local":
        replica, _ = tiny_policy(hidden_size=64)
        engine: Engine = LocalEngine(replica, TOKENIZER, max_concurrent=2, max_context_tokens=400, shares_weights=False)
    else:
        engine = request.getfixturevalue(f"{name}_engine")
        engine.load_weights(weights(MODULE), version=0)
    before = run(engine, [ids], GREEDY, session="a")[0]
    other, _ = tiny_policy(seed=9, hidden_size=64)
    engine.load_weights(weights(other), version=4)
    assert engine.version == 4
    fresh = LocalEngine(other, TOKENIZER, max_concurrent=2, max_context_tokens=400)
    after, expected = run(engine, [ids], GREEDY, session="a")[0], run(fresh, [ids], GREEDY)[0]
    assert after.ids == expected.ids != before.ids
    assert after.logprobs == pytest.approx(expected.logprobs, abs=1e-3)
    engine.release("a")


def test_a_paused_engine_wakes_by_itself(engine: Engine) -> None:
    before = run(engine, prompts(3), GREEDY)
    engine.pause()
    assert [c.ids for c in run(engine, prompts(3), GREEDY)] == [c.ids for c in before]


def test_tokens_generated_are_counted(engine: Engine) -> None:
    before = engine.counts()["generated_tokens"]
    run(engine, prompts(3), GREEDY)
    assert engine.counts()["generated_tokens"] - before == 24
    assert engine.counts() == engine.counts()


def test_a_failing_forward_pass_reaches_every_caller(local: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(**_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(local.module.model, "forward", explode)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(local, prompts(3), GREEDY)


@pytest.mark.parametrize("make", [lambda: random_stream((1, 2), 5)])
def test_random_stream_depends_on_the_key_alone(make: Callable[[], np.ndarray]) -> None:
    assert (make() == random_stream((1, 2), 5)).all()
    assert (make() != random_stream((1, 3), 5)).all()
    assert (random_stream((1, 2), 3) == make()[:3]).all()
