"""The relative weight change by hand, and of a policy that is cut over several processes."""

import copy
from typing import Any

import pytest
import torch

from agentrl.analysis.weight_change import relative_weight_change
from agentrl.config.schema import Config
from agentrl.learner.weight_monitor import WeightMonitor
from agentrl.model.processes import ALONE, Processes
from tests.agentrl.helpers import tiny_policy
from tests.agentrl.processes import sharded_like, together
from tests.agentrl.test_distributed import RECORDED, SHARD, learn_batch, make_learner, settings

EVERY = 2
BATCHES = 5
TRACKING = {"divergence_every": EVERY}
SETTINGS: dict[str, tuple[Config, bool]] = {
    "plain": (settings(tracking=TRACKING), False),
    "sharded": (settings(learner=SHARD, tracking=TRACKING), False),
    "sharded tied": (settings(learner=SHARD, tracking=TRACKING), True),
    "sharded lora": (settings(learner=SHARD, model={"lora_rank": 3}, tracking=TRACKING), False),
}


def test_the_change_is_the_norm_of_what_moved_over_the_norm_at_the_start() -> None:
    assert relative_weight_change({"mlp": 9.0, "other": 1.0}, {"mlp": 36.0, "other": 0.0}) == {"mlp": 0.5, "other": 0.0}


@pytest.mark.parametrize("tie", [True, False])
def test_a_measurement_sees_what_has_moved_since_the_one_before(tie: bool) -> None:
    module, _ = tiny_policy(tie=tie, dtype=torch.float64)
    monitor = WeightMonitor(module, every=2)
    up, table = module.model.layers[0].mlp.up_proj.weight, module.model.embed_tokens.weight
    kinds = (part for name, part in module.named_parameters() if ".mlp." in name)
    size = float(sum(part.detach().square().sum() for part in kinds)) ** 0.5
    with torch.no_grad():
        up += 0.5
    assert monitor.measure(1) == {}
    change = monitor.measure(2)
    assert change["weight_change/mlp"] == pytest.approx(0.5 * up.numel() ** 0.5 / size)
    assert change["weight_change/attention"] == change["weight_change/lm_head"] == 0.0
    whole = float(table.detach().norm())
    with torch.no_grad():
        table -= 0.25
    change = monitor.measure(4)
    assert change["weight_change/mlp"] == 0.0
    assert change["weight_change/embedding"] == pytest.approx(0.25 * table.numel() ** 0.5 / whole)
    assert change["weight_change/lm_head"] == (change["weight_change/embedding"] if tie else 0.0)


def follow(processes: Processes, config: Config, tie: bool, saved: dict[str, Any] | None = None) -> dict[str, Any]:
    """What is measured over some batches, or over the second part of them; the state after the first part."""
    learner = make_learner(config, processes, tie=tie)
    if saved is not None:
        weights = saved["weights"]
        for name, parameter in learner.module.named_parameters():
            parameter.data.copy_(sharded_like(weights[name], parameter))
        learner.load_state_dict(copy.deepcopy(saved))
    measured, state = [], saved
    for i in range(learner.num_batches, BATCHES):
        learn_batch(learner, RECORDED[i], config, processes)
        measured.append(learner.measure())
        if learner.num_batches == EVERY + 1:  # between two measurements
            state = copy.deepcopy(learner.state_dict())
    return {"measured": measured, "state": state}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("sharded", 2), *[(name, 4) for name in SETTINGS]])
def test_processes_that_hold_shards_measure_what_one_measures(name: str, count: int) -> None:
    config, tie = SETTINGS[name]
    if "lora" in name:
        pytest.importorskip("peft", reason="the extra lora is not installed")
    alone = follow(ALONE, config, tie)["measured"]
    assert [len(each) > 0 for each in alone] == [False, True, False, True, False]
    assert alone[1]["weight_change/mlp"] > 0
    for rank, result in enumerate(together(count, follow, config, tie)):
        for found, expected in zip(result["measured"], alone, strict=True):
            assert found == pytest.approx(expected if rank == 0 or config.learner.shard else {}, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("tie", [False, True])
def test_what_shards_keep_goes_on_in_any_number_of_processes(tie: bool) -> None:
    config, _ = SETTINGS["sharded"]
    alone = follow(ALONE, config, tie)
    first, second = together(2, follow, config, tie)
    assert second["state"]["monitor"] == {}
    for name, tensor in alone["state"]["monitor"].items():
        torch.testing.assert_close(first["state"]["monitor"][name], tensor)
    saved = first["state"]
    if tie:
        saved["weights"]["lm_head.weight"] = saved["weights"]["model.embed_tokens.weight"]
    assert follow(ALONE, config, tie, saved)["measured"][0] == pytest.approx(alone["measured"][3], rel=1e-6)
    for result in together(3, follow, config, tie, saved):
        assert result["measured"][0] == pytest.approx(alone["measured"][3], rel=1e-6)
