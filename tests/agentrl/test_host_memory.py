"""Moments, reference and weights that wait on the host: the same numbers, and they are where they should be."""

import copy
from typing import Any

import pytest
import torch

from agentrl.config.schema import Config
from agentrl.learner.host_memory import step_tensor_by_tensor
from agentrl.learner.learner import TorchLearner
from agentrl.model.weights import gather_weights
from tests.agentrl.accelerator import DEVICE, Accelerator
from tests.agentrl.helpers import tiny_policy, toy_config
from tests.agentrl.test_learner import make_batch, random_rows


def test_a_step_tensor_by_tensor_is_the_step_of_all_tensors_to_the_last_bit() -> None:
    torch.manual_seed(0)
    start = [torch.randn(3, 4, dtype=torch.float64) for _ in range(3)]
    results = []
    for by_tensor in (False, True):
        parameters = [torch.nn.Parameter(tensor.clone()) for tensor in start]
        optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1, fused=True)
        for step in range(4):
            for number, parameter in enumerate(parameters):
                skipped = number == 2 and step < 2  # which has no moments yet
                parameter.grad = None if skipped else torch.full_like(parameter, step + number + 0.5)
            if by_tensor:
                step_tensor_by_tensor(optimizer, parameters)
                assert all(parameter.grad is None for parameter in parameters)
            else:
                optimizer.step()
        results.append((parameters, [optimizer.state[parameter] for parameter in parameters]))
    for plain, other in zip(*results, strict=True):
        torch.testing.assert_close(other, plain, rtol=0, atol=0)
    assert [int(state["step"]) for state in results[1][1]] == [4, 4, 2]


def test_moments_are_on_the_device_for_one_tensor_at_a_time() -> None:
    with Accelerator():
        parameters = [torch.nn.Parameter(torch.ones(3).to(DEVICE)) for _ in range(3)]
        optimizer = torch.optim.AdamW(parameters, fused=True)
        for _ in range(2):
            for parameter in parameters:
                parameter.grad = torch.ones(3).to(DEVICE)
            step_tensor_by_tensor(optimizer, parameters)
            kept = [value for state in optimizer.state.values() for value in state.values()]
            assert len(kept) == 9
            assert {value.device.type for value in kept} == {"cpu"}


def learn(config: Config, *, tie: bool) -> tuple[Any, ...]:
    """Steps, weights and state after two batches, the second by a learner that went on from the first's state."""
    module, tokenizer = tiny_policy(tie=tie, dtype=torch.float64)
    reference = copy.deepcopy(module).requires_grad_(False) if config.loss.kl_coef else None
    learner = TorchLearner(module, config, pad_id=tokenizer.pad_token_id, reference=reference)
    steps = list(learner.update(make_batch(random_rows(6))).steps)
    learner.rest()
    state = copy.deepcopy(learner.state_dict())
    learner = TorchLearner(module, config, pad_id=tokenizer.pad_token_id, reference=reference)
    learner.load_state_dict(state)
    learner.rest()
    steps += learner.update(make_batch(random_rows(6, seed=1))).steps
    return steps, gather_weights(module, keep=True), learner.state_dict()["optimizer"]


@pytest.mark.parametrize("tie", [True, False])
def test_offloaded_updates_are_the_plain_ones_to_the_last_bit(tie: bool) -> None:
    results = []
    for where in (False, "offload"):
        learner = {"lr": 1e-2, "max_reuse": 3, "shard": where}
        results.append(learn(toy_config(learner=learner, gate={"kind": "none"}, loss={"kl_coef": 0.1}), tie=tie))
    plain, offloaded = results
    assert len(plain[0]) == 6
    assert plain[0] == offloaded[0]
    torch.testing.assert_close(offloaded[1:], plain[1:], rtol=0, atol=0)
