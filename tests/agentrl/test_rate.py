import json
import math

import numpy as np
import pytest
import torch

from agentrl.learner.gates import Gate, KlRateConfig, StepSignal, Verdict, make_gate
from agentrl.learner.gates.rate import KlRateGate
from tests.agentrl.helpers import gate_config, toy_config
from tests.agentrl.test_learner import make_batch, make_learner, random_rows


def feed(gate: Gate, kls: list[float]) -> list[Verdict]:
    """One batch: KL at k = 1, 2, 3 ..."""
    return [gate.judge(StepSignal(k, 1.0, kl=kl)) for k, kl in enumerate(kls, 1)]


def outcomes(verdicts: list[Verdict]) -> list[tuple[bool, bool, str]]:
    return [(verdict.apply, verdict.stop, verdict.reason) for verdict in verdicts]


GO, STOP = (True, False, ""), (False, True, "kl")


def test_kl_rate_discards_and_stops_strictly_above_its_target_and_never_at_k_1() -> None:
    gate = make_gate(gate_config(kind="kl_rate"))
    assert outcomes(feed(gate, [0.5, 0.01, 0.0100001])) == [GO, GO, STOP]
    assert gate.judge(StepSignal(1, 1.0, kl=0.25)).statistics == {"kl": 0.25}
    assert outcomes(feed(gate, [0.0, math.nan])) == [GO, STOP]
    assert outcomes(feed(gate, [0.0, math.inf])) == [GO, STOP]


@pytest.mark.parametrize(
    ("last_kl", "factor"),
    [
        (0.0100001, 0.5 / 1.3),
        (0.01, 0.5),
        (0.0025, 0.5),
        (0.0024999, 0.55),
        (0.0, 0.55),
        (math.nan, 0.5 / 1.3),
        (math.inf, 0.5 / 1.3),
    ],
)
def test_kl_rate_after_a_batch_moves_by_the_kl_of_its_last_gradient(last_kl: float, factor: float) -> None:
    gate = KlRateGate(KlRateConfig())
    gate.load_state_dict({"factor": 1.0, "next_factor": 0.5})
    batch = feed(gate, [0.0, 0.004, last_kl])
    assert [verdict.rate_factor for verdict in batch] == [0.5, 0.5, 0.5]  # within a batch the rate stands
    assert feed(gate, [0.0])[0].rate_factor == pytest.approx(factor)


def test_kl_rate_never_exceeds_the_given_rate_and_comes_down_from_any() -> None:
    gate = KlRateGate(KlRateConfig())
    factors = [feed(gate, [0.0, 0.001])[0].rate_factor for _ in range(3)]
    assert factors == [1.0, 1.0, 1.0]
    # 1 / 1.3 = 0.76923; x 1.1 = 0.84615; x 1.1 = 0.93077; x 1.1 = 1.02385, held at 1
    feed(gate, [0.0, 0.02])
    factors = [feed(gate, [0.0, 0.001])[0].rate_factor for _ in range(5)]
    assert factors == pytest.approx([0.7692308, 0.8461538, 0.9307692, 1.0, 1.0])


def test_kl_rate_with_other_settings_stops_and_moves_by_them() -> None:
    config = gate_config(kind="kl_rate", threshold=0.5, target=0.1, most=1.2)
    gate = make_gate(config)
    assert outcomes(feed(gate, [0.0, 0.5, 0.51])) == [GO, GO, STOP]
    factors = [feed(gate, [0.0, 0.024])[0].rate_factor for _ in range(6)]
    assert factors == pytest.approx([0.7692308, 0.8461538, 0.9307692, 1.0238462, 1.1262308, 1.2])
    assert feed(gate, [0.0])[0].rate_factor == 1.2


def test_kl_rate_with_a_stop_at_zero_uses_every_batch_once_and_controls_the_rate() -> None:
    gate = make_gate(gate_config(kind="kl_rate", threshold=0.0))
    for kl, factor in ((0.02, 1.0), (0.001, 1 / 1.3), (0.0, 1.1 / 1.3)):
        verdicts = feed(gate, [0.0, kl])
        assert [verdict.apply for verdict in verdicts] == [True, kl == 0.0]
        assert verdicts[0].rate_factor == pytest.approx(factor)


def test_kl_rate_with_a_stop_out_of_reach_controls_the_rate_alone() -> None:
    gate = make_gate(gate_config(kind="kl_rate", threshold=1e9))
    assert outcomes(feed(gate, [0.0, 0.5, 40.0])) == [GO, GO, GO]
    assert feed(gate, [0.0])[0].rate_factor == pytest.approx(1 / 1.3)


def test_kl_rate_after_a_gradient_that_is_not_finite_falls() -> None:
    gate = make_gate(gate_config(kind="kl_rate"))
    assert gate.judge(StepSignal(1, 1.0)).apply
    assert gate.judge(StepSignal(2, math.inf)).reason == "non_finite"
    assert gate.judge(StepSignal(1, 1.0)).rate_factor == pytest.approx(1 / 1.3)
    # at k = 1 nothing was applied, so the factor of the failed batch is the one that falls
    assert gate.judge(StepSignal(2, 1.0, kl=0.005)).apply
    assert gate.judge(StepSignal(1, math.nan)).reason == "non_finite"
    assert gate.judge(StepSignal(1, 1.0)).rate_factor == pytest.approx(1.3**-2)


@pytest.mark.parametrize(("ess", "factor"), [(1.0, 1.0), (0.25, 0.5), (0.81, 0.9), (1.5, 1.0), (math.nan, 0.0)])
def test_ess_rate_is_the_root_of_the_effective_share_of_sequences(ess: float, factor: float) -> None:
    gate = make_gate(gate_config(kind="ess_rate"))
    verdict = gate.judge(StepSignal(2, 1.0, sequence_ess=ess))
    assert (verdict.apply, verdict.stop) == (True, False)
    assert verdict.rate_factor == pytest.approx(factor)
    assert verdict.statistics.keys() == {"sequence_ess"}
    assert gate.state_dict() == {"in_a_row": 0, "gate": {}}


def test_the_learner_under_ess_rate_steps_at_the_root_of_its_own_ess() -> None:
    config = toy_config(gate={"kind": "ess_rate"}, learner={"lr": 1e-3, "max_reuse": 3})
    learner = make_learner(config)
    update = learner.update(make_batch(random_rows(8)))
    assert update.steps[0]["rate_factor"] == pytest.approx(1.0)
    for step in update.steps[1:]:
        assert 0 < step["sequence_ess"] < step["ess"] < 1
        assert step["rate_factor"] == pytest.approx(math.sqrt(step["sequence_ess"]))
    assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * update.steps[-1]["rate_factor"])


def test_kl_rate_restored_between_batches_remembers_the_kl_that_moves_it() -> None:
    gate, again = KlRateGate(KlRateConfig()), KlRateGate(KlRateConfig())
    feed(gate, [0.0, 0.02])
    assert gate.state_dict() == {"factor": 1.0, "next_factor": pytest.approx(1 / 1.3)}
    again.load_state_dict(json.loads(json.dumps(gate.state_dict())))
    assert again.judge(StepSignal(1, 1.0)).rate_factor == pytest.approx(1 / 1.3)


def test_the_learner_multiplies_the_scheduled_rate_with_the_gates_factor() -> None:
    config = toy_config(gate={"kind": "kl_rate"}, learner={"lr": 3e-2, "max_reuse": 4, "warmup_batches": 2})
    learner, scheduled, factors = make_learner(config), [1.5e-2, 3e-2, 3e-2, 3e-2], []
    for seed, rate in enumerate(scheduled):
        update = learner.update(make_batch(random_rows(8, seed=seed)))
        factors.append(update.steps[0]["rate_factor"])
        assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(rate * factors[-1])
        assert update.gate_closed  # 3e-2 is far too high for this model
        assert update.steps[-1]["kl"] > 0.01
        assert update.num_discarded == 1
    assert factors == pytest.approx([1.3**-n for n in range(4)])


def test_a_smaller_factor_makes_a_proportionally_smaller_step() -> None:
    class Scripted(KlRateGate):
        def __init__(self, factor: float) -> None:
            super().__init__(KlRateConfig())
            self.next_factor = factor

    def step(factor: float) -> np.ndarray:
        config = toy_config(learner={"lr": 1e-2, "max_reuse": 1, "weight_decay": 0.0})
        learner = make_learner(config)
        before = torch.cat([p.detach().flatten().clone() for p in learner.module.parameters()])
        learner.gate = Scripted(factor)
        learner.update(make_batch(random_rows(8)))
        return (torch.cat([p.detach().flatten() for p in learner.module.parameters()]) - before).numpy()

    np.testing.assert_allclose(step(0.25), 0.25 * step(1.0), rtol=1e-6, atol=1e-12)


def test_the_learner_under_kl_rate_saved_and_restored_goes_on_bit_by_bit() -> None:
    config = toy_config(gate={"kind": "kl_rate"}, learner={"lr": 1e-2})
    batches = [make_batch(random_rows(8, seed=seed)) for seed in range(4)]
    whole, first, second = (make_learner(config, seed=seed) for seed in (0, 0, 5))
    for batch in batches:
        whole.update(batch)
    for batch in batches[:2]:
        first.update(batch)
    second.module.load_state_dict(first.module.state_dict())
    second.load_state_dict(first.state_dict())
    for batch in batches[2:]:
        second.update(batch)
    for a, b in zip(whole.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(a, b)
