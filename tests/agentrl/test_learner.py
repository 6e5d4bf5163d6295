import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.config.schema import Config
from agentrl.learner.batch import Batch, BatchRow
from agentrl.learner.gates import StepSignal, Verdict
from agentrl.learner.gates.rivals import FixedGate
from agentrl.learner.learner import TorchLearner, learning_rate_factor
from agentrl.model.load import recompute_activations
from agentrl.types import Group, Metrics, Row, Status, Task, Trajectory, Turn
from tests.agentrl.helpers import frozen_logprobs, tiny_policy, toy_config


def random_rows(count: int, *, seed: int = 0, equal: bool = False) -> list[BatchRow]:
    random = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        length = int(random.integers(6, 40))
        trained = random.random(length) < 0.4
        trained[0], trained[-1] = False, True
        value = 0.0 if equal else (1.0 if i % 2 else -1.0) * (1 + i % 3)
        rows.append(
            BatchRow(
                random.integers(5, 200, size=length).astype(np.int32),
                trained,
                np.where(trained, value, 0.0).astype(np.float32),
                np.zeros(length, np.float32),
            )
        )
    return rows


def make_batch(rows: list[BatchRow]) -> Batch:
    return Batch(rows, sum(int(row.trained.sum()) for row in rows), 2, 2)


def make_learner(
    config: Config, *, tie: bool = False, seed: int = 0, dtype: torch.dtype = torch.float64
) -> TorchLearner:
    module, tokenizer = tiny_policy(seed=seed, tie=tie, dtype=dtype)
    return TorchLearner(module, config, pad_id=tokenizer.pad_token_id)


def first_gradient(
    config: Config, rows: list[BatchRow], *, tie: bool = False
) -> tuple[dict[str, torch.Tensor], Metrics]:
    """Gradient of the first update, before clipping, and its monitors."""
    learner = make_learner(config, tie=tie)
    metrics, _ = learner.backward(learner.prepare(make_batch(rows))[0], 1)
    return {n: p.grad.clone() for n, p in learner.module.named_parameters() if p.grad is not None}, metrics


def plain_gradient(rows: list[BatchRow], *, tie: bool) -> dict[str, torch.Tensor]:
    """Policy gradient by plain autograd, one row at a time, logits and all."""
    module, _ = tiny_policy(tie=tie, dtype=torch.float64)
    total = sum(int(row.trained.sum()) for row in rows)
    for row in rows:
        ids = torch.from_numpy(row.ids.astype(np.int64))[None]
        logprobs = module(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        worth = torch.from_numpy(row.advantages[1:]).double()
        (-(logprobs - logprobs.detach()).exp() * worth / total).sum().backward()
    return {n: p.grad for n, p in module.named_parameters()}


def assert_same_gradient(gradient: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Equal up to the fp32 that Qwen3's RMSNorm computes in, whatever the dtype of the model."""
    assert gradient.keys() == expected.keys()
    for name, value in expected.items():
        assert float((gradient[name] - value).norm()) <= 1e-6 * float(value.norm()), name


CONFIG = toy_config(gate={"kind": "none"}, learner={"lr": 1e-2, "max_reuse": 3})


@pytest.mark.parametrize("tie", [False, True])
def test_the_gradient_equals_plain_autograd_on_the_whole_batch(tie: bool) -> None:
    rows = random_rows(10)
    gradient, metrics = first_gradient(CONFIG, rows, tie=tie)
    expected = plain_gradient(rows, tie=tie)
    assert_same_gradient(gradient, expected)
    norm = np.sqrt(sum(float(v.square().sum()) for v in expected.values()))
    assert metrics["grad_norm"] == pytest.approx(norm)
    if not tie:
        assert metrics["head_energy"] == pytest.approx(float(expected["lm_head.weight"].square().sum()))


@settings(deadline=None, max_examples=15)
@given(st.integers(40, 400), st.permutations(range(10)))
def test_micro_batches_and_the_order_of_rollouts_do_not_change_the_gradient(budget: int, order: list[int]) -> None:
    rows = random_rows(10)
    config = toy_config(gate={"kind": "none"}, learner={"microbatch_tokens": budget})
    gradient, metrics = first_gradient(config, [rows[i] for i in order])
    expected, whole = first_gradient(toy_config(gate={"kind": "none"}), rows)
    assert_same_gradient(gradient, expected)
    assert metrics["head_energy"] == pytest.approx(whole["head_energy"])


@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_zero_variance_rows_stay_in_the_denominator(kl: float) -> None:
    rows = random_rows(6)
    dull = random_rows(4, seed=1, equal=True)
    config = toy_config(gate={"kind": "none"}, loss={"kl_coef": kl})
    learner = make_learner(config)
    learner.reference = copy.deepcopy(learner.module)
    parts, _ = learner.prepare(make_batch(rows + dull))
    assert sum(len(part.ids) for part in parts) == (10 if kl else 6)
    tokens = sum(int(row.trained.sum()) for row in rows + dull)
    assert float(parts[0].weights[0]) == pytest.approx(1 / tokens)


def test_equal_rewards_give_no_update_and_the_gate_sees_nothing() -> None:
    learner = make_learner(toy_config())
    before = copy.deepcopy(learner.module.state_dict())
    update = learner.update(make_batch(random_rows(6, equal=True)))
    assert (update.num_steps, update.steps, learner.num_batches) == (0, [], 1)
    assert all(torch.equal(v, before[k]) for k, v in learner.module.state_dict().items())
    assert learner.gate.state_dict()["gate"]["previous"] is None


def test_gate_none_is_bit_identical_to_a_loop_without_a_gate() -> None:
    class NoGate(FixedGate):
        def judge(self, signal: StepSignal) -> Verdict:
            return Verdict(apply=True, stop=False)

    with_gate, without = make_learner(CONFIG), make_learner(CONFIG)
    without.gate = NoGate(None)
    for seed in range(3):
        for learner in (with_gate, without):
            assert learner.update(make_batch(random_rows(8, seed=seed))).num_steps == 3
    for a, b in zip(with_gate.module.parameters(), without.module.parameters(), strict=True):
        assert torch.equal(a, b)


class ScriptedGate(FixedGate):
    """Applies or discards as told, then stops."""

    def __init__(self, plan: list[bool]) -> None:
        super().__init__(None)
        self.plan = plan

    def judge(self, signal: StepSignal) -> Verdict:
        apply = self.plan[signal.reuse_index - 1]
        return Verdict(apply=apply, stop=not apply, reason="" if apply else "surge")


def test_a_discarded_step_leaves_weights_moments_and_generators_untouched() -> None:
    once, thrice = make_learner(CONFIG), make_learner(CONFIG)
    once.gate, thrice.gate = ScriptedGate([True, False]), ScriptedGate([True, False])
    batch = make_batch(random_rows(8))
    once.config = toy_config(gate={"kind": "none"}, learner={"lr": 1e-2, "max_reuse": 1})
    torch_state = torch.get_rng_state()
    assert once.update(batch).num_discarded == 0
    update = thrice.update(batch)
    assert (update.num_steps, update.num_discarded, update.gate_closed) == (1, 1, True)
    assert torch.equal(torch.get_rng_state(), torch_state)
    for a, b in zip(once.module.parameters(), thrice.module.parameters(), strict=True):
        assert torch.equal(a, b)
        assert b.grad is None
    moments = [learner.optimizer.state_dict()["state"] for learner in (once, thrice)]
    for index, kinds in moments[0].items():
        assert all(torch.equal(value, moments[1][index][kind]) for kind, value in kinds.items())


def test_reuse_measures_ratios_against_the_policy_before_the_first_update() -> None:
    config = toy_config(gate={"kind": "none"}, learner={"lr": 1e-4, "max_reuse": 3})
    update = make_learner(config).update(make_batch(random_rows(8)))
    assert [step["k"] for step in update.steps] == [1, 2, 3]
    first, *later = update.steps
    assert (first["kl"], first["max_ratio"], first["ess"]) == pytest.approx((0.0, 1.0, 1.0))
    assert all(step["kl"] > 0 for step in later)
    assert later[-1]["kl"] > later[0]["kl"]
    assert all(0 < step["ess"] < 1 for step in later)


def test_entropy_of_every_update_is_that_of_the_policy_before_it() -> None:
    learner, rows = make_learner(CONFIG), random_rows(4)
    expected = []
    for _ in range(2):
        entropies = []
        for row in rows:
            with torch.no_grad():
                logits = learner.module(input_ids=torch.from_numpy(row.ids.astype(np.int64))[None]).logits[0, :-1]
            entropies.append(torch.distributions.Categorical(logits=logits).entropy()[row.trained[1:]])
        expected.append(float(torch.cat(entropies).mean()))
        learner.gate = FixedGate(1)
        (step,) = learner.update(make_batch(rows)).steps
        assert step["entropy"] == pytest.approx(expected[-1])
    again = make_learner(CONFIG).update(make_batch(rows))
    assert [step["entropy"] for step in again.steps[:2]] == pytest.approx(expected)


def test_the_learner_saved_and_restored_goes_on_bit_by_bit() -> None:
    config = toy_config(gate={"window": 3}, learner={"lr": 1e-2})
    batches = [make_batch(random_rows(8, seed=seed)) for seed in range(6)]
    whole, first = make_learner(config), make_learner(config)
    for batch in batches:
        whole.update(batch)
    for batch in batches[:3]:
        first.update(batch)
    second = make_learner(config, seed=5)
    second.module.load_state_dict(first.module.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for batch in batches[3:]:
        second.update(batch)
    for a, b in zip(whole.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole.gate.state_dict() == second.gate.state_dict()


@pytest.mark.parametrize("kind", ["clip", "dual_clip", "gspo", "cispo", "decoupled", "m2po"])
def test_every_loss_raises_good_tokens_and_lowers_bad_ones(kind: str) -> None:
    config = toy_config(gate={"kind": "none"}, loss={"kind": kind}, learner={"lr": 3e-3, "max_reuse": 3})
    learner = make_learner(config)
    rows = random_rows(8)
    parts, _ = learner.prepare(make_batch(rows))

    def mean_logprob(sign: int) -> float:
        values = [frozen_logprobs(learner, part)[part.advantages * sign > 0] for part in parts]
        return float(torch.cat(values).mean())

    before = mean_logprob(1), mean_logprob(-1)
    for _ in range(5):
        learner.update(make_batch(rows))
    assert mean_logprob(1) > before[0]
    assert mean_logprob(-1) < before[1]


@pytest.mark.slow
def test_a_kl_to_the_reference_pulls_back_towards_it() -> None:
    def distance(kl: float) -> float:
        learner = make_learner(toy_config(gate={"kind": "none"}, loss={"kl_coef": kl}, learner={"lr": 1e-2}))
        learner.reference = copy.deepcopy(learner.module)
        start = [p.detach().clone() for p in learner.module.parameters()]
        for _ in range(8):
            learner.update(make_batch(random_rows(8)))
        pairs = zip(learner.module.parameters(), start, strict=True)
        return sum(float((p.detach() - s).square().sum()) for p, s in pairs)

    assert distance(5.0) < 0.7 * distance(0.0)


def test_warmup_raises_the_learning_rate_with_rollout_batches() -> None:
    learner = make_learner(toy_config(learner={"lr": 1.0, "warmup_batches": 4, "max_reuse": 2}))
    rates: list[Any] = []
    for _ in range(6):
        rates.append(learner.learning_rate())
        learner.num_batches += 1
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_learning_rate_factor_rises_stays_and_falls_as_stated() -> None:
    constant = [learning_rate_factor(n, warmup=2, total=None) for n in range(4)]
    assert constant == [0.5, 1.0, 1.0, 1.0]
    linear = [learning_rate_factor(n, warmup=2, total=6) for n in range(8)]
    assert linear == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.25, 0.25])


def test_further_padding_does_not_change_the_gradient() -> None:
    rows = random_rows(6)
    expected, _ = first_gradient(CONFIG, rows)
    learner = make_learner(CONFIG)
    parts, _ = learner.prepare(make_batch(rows))
    for part in parts:
        width = part.ids.shape[1]
        part.ids = torch.nn.functional.pad(part.ids, (0, 9), value=3)
        part.predecessors = part.predecessors + part.predecessors // width * 9
    learner.backward(parts, 1)
    assert_same_gradient({n: p.grad for n, p in learner.module.named_parameters() if p.grad is not None}, expected)


def test_recomputed_activations_give_the_same_gradient_and_leave_the_module_as_it_was() -> None:
    rows = random_rows(6)
    expected, _ = first_gradient(CONFIG, rows)
    module, tokenizer = tiny_policy(dtype=torch.float64)
    recompute_activations(module)
    learner = TorchLearner(module, CONFIG, pad_id=tokenizer.pad_token_id)
    calls = []
    module.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    parts, _ = learner.prepare(make_batch(rows))
    learner.backward(parts, 1)
    assert len(calls) == 2 * len(parts), "once forward, once again in backward"
    assert not any(m.training for m in module.modules()), "the engine must find its keys and values kept"
    assert_same_gradient({n: p.grad for n, p in module.named_parameters() if p.grad is not None}, expected)


def test_the_whole_tied_gradient_can_be_the_gates_energy() -> None:
    rows = random_rows(6)
    expected = plain_gradient(rows, tie=True)["model.embed_tokens.weight"]
    learner = make_learner(toy_config(gate={"energy": "tied"}), tie=True)
    metrics, signal = learner.backward(learner.prepare(make_batch(rows))[0], 1)
    assert signal.tied_energy == pytest.approx(float(expected.square().sum()))
    assert metrics["head_energy"] == signal.head_energy != pytest.approx(signal.tied_energy)


def test_a_kl_in_the_reward_is_the_coefficient_times_the_sum_over_a_trajectorys_sampled_tokens() -> None:
    learner = make_learner(toy_config(loss={"kl_coef": 0.5, "kl_kind": "k1", "kl_in": "reward"}))
    learner.reference = copy.deepcopy(learner.module)
    random, trajectories, expected = np.random.default_rng(0), [], []
    for member in range(3):
        rows = []
        for length in (7, 5)[: 1 + member % 2]:  # some in two rows, as in the window context
            trained = np.arange(length) >= 3
            logprobs = np.where(trained, -random.random(length), 0).astype(np.float32)
            rows.append(Row(random.integers(5, 200, size=length).astype(np.int32), trained, logprobs))
        turns = [Turn(i, 3, len(row.ids), "", "", 0.0) for i, row in enumerate(rows)]
        trajectories.append(Trajectory(Task("toy", "train", 0), member, rows, turns, "", Status.TERMINATED))
        total = 0.0
        for row in rows:
            ids = torch.from_numpy(row.ids.astype(np.int64))[None]
            with torch.no_grad():
                reference = learner.module(input_ids=ids).logits[0, :-1].log_softmax(-1)
            reference = reference.gather(1, ids[0, 1:, None])[:, 0].numpy()
            total += float(((row.logprobs[1:] - reference) * row.trained[1:]).sum())
        expected.append(0.5 * total)
    (penalties,) = learner.kl_penalties([Group(Task("toy", "train", 0), trajectories)])
    np.testing.assert_allclose(penalties, expected, rtol=1e-5)


GOLDEN = Path(__file__).with_name("golden_20_steps.json")


def test_a_golden_run_of_20_batches_repeats_its_recorded_numbers() -> None:
    """Renewed with AGENTRL_RENEW_GOLDEN=1, in a commit of its own that says why."""
    config = toy_config(gate={"window": 6, "tau": -0.4}, learner={"lr": 3e-3, "max_reuse": 3})
    learner = make_learner(config)
    steps = [step for seed in range(20) for step in learner.update(make_batch(random_rows(8, seed=seed))).steps]
    keys = ("loss", "head_energy", "grad_norm", "kl", "entropy", "z_score", "applied", "reason")
    record = [{key: step[key] for key in ("k", *keys) if key in step} for step in steps]
    if os.environ.get("AGENTRL_RENEW_GOLDEN"):
        GOLDEN.write_text("[\n" + ",\n".join(json.dumps(step) for step in record) + "\n]\n")
    golden = json.loads(GOLDEN.read_text())
    assert {step["reason"] for step in golden} == {"", "surge"}
    assert [(s["k"], s["applied"], s["reason"]) for s in record] == [
        (s["k"], s["applied"], s["reason"]) for s in golden
    ]
    for step, wanted in zip(record, golden, strict=True):
        for key in wanted.keys() - {"k", "applied", "reason"}:
            assert step[key] == pytest.approx(wanted[key], rel=1e-4, abs=1e-7), (step["k"], key)
