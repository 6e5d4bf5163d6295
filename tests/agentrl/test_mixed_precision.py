"""bfloat16 products over float32 weights: what is kept exact, and how near it comes to float32."""

import asyncio
from typing import Any

import pytest
import torch

from agentrl.learner.learner import TorchLearner
from agentrl.model.load import recompute_activations
from agentrl.model.logprobs import row_logprobs
from agentrl.model.processes import Processes
from agentrl.model.weights import computing, plain_weights, shard
from agentrl.rollout.engines.base import Sampling
from agentrl.rollout.engines.local import LocalEngine
from tests.agentrl.helpers import tiny_policy, toy_config
from tests.agentrl.processes import together
from tests.agentrl.test_learner import make_batch, random_rows
from tests.agentrl.test_model_families import CASES, TOKENIZER, make_model

CONFIG = toy_config(gate={"kind": "none"}, learner={"lr": 1e-6, "max_reuse": 2, "microbatch_tokens": 64})
IDS = [5, 9, 30, 7, 8, 11]


def mixed(module: Any) -> Any:
    """As `load_model` returns it where `model.dtype = "mixed"`."""
    module.compute_dtype = torch.bfloat16
    return module


def first_step(module: Any, processes: Processes | None = None) -> dict[str, Any]:
    learner = TorchLearner(module, CONFIG, pad_id=0, processes=processes or Processes())
    rows = random_rows(6)
    if processes is not None:
        rows = processes.share(rows)
    return learner.update(make_batch(rows)).steps[0]


@pytest.mark.parametrize(("family", "tie"), CASES)
def test_energy_norm_and_logprobs_are_near_those_of_float32(family: str, tie: bool) -> None:
    exact, near = first_step(make_model(family, tie)), first_step(mixed(make_model(family, tie)))
    for key in ("head_energy", "grad_norm"):
        assert near[key] == pytest.approx(exact[key], rel=0.03), key
        assert near[key] != exact[key], "something was computed in bfloat16"
    ours, theirs = (row_logprobs(m, IDS, 0.7) for m in (mixed(make_model(family, tie)), make_model(family, tie)))
    assert ours == pytest.approx(theirs, abs=0.1)
    assert ours != theirs


def test_weights_gradients_and_moments_stay_in_float32_and_small_steps_count() -> None:
    module = mixed(tiny_policy(tie=True)[0])
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    learner = TorchLearner(module, CONFIG, pad_id=0)
    learner.backward(learner.prepare(make_batch(random_rows(6)))[0], 1)
    assert {p.grad.dtype for p in module.parameters() if p.grad is not None} == {torch.float32}
    learner.policy.clear()
    learner.update(make_batch(random_rows(6)))
    moments = learner.state_dict()["optimizer"][learner.policy.names[0]]
    assert {moments[kind].dtype for kind in ("exp_avg", "exp_avg_sq")} == {torch.float32}
    changes = [float((p - before[name]).detach().abs().max()) for name, p in module.named_parameters()]
    assert all(0 < change < 1e-5 for change in changes)
    # The same steps are lost on weights in bfloat16.
    small = tiny_policy(tie=True, dtype=torch.bfloat16)[0]
    norm = small.model.norm.weight.detach().clone()
    TorchLearner(small, CONFIG, pad_id=0).update(make_batch(random_rows(6)))
    assert torch.equal(small.model.norm.weight, norm)


def test_recomputed_activations_give_the_same_gradient() -> None:
    module = mixed(tiny_policy()[0])
    recompute_activations(module)
    assert first_step(module)["grad_norm"] == pytest.approx(first_step(mixed(tiny_policy()[0]))["grad_norm"], rel=1e-4)


def test_the_embedded_engine_decodes_with_the_learners_logprobs() -> None:
    module = mixed(make_model("qwen3", True))
    engine = LocalEngine(module, TOKENIZER, max_concurrent=2, max_context_tokens=64)
    turn = asyncio.run(engine.generate(IDS, Sampling(max_new_tokens=6), key=(0,)))
    ours = row_logprobs(module, IDS + turn.ids, 1.0)
    assert turn.logprobs == pytest.approx(ours[len(IDS) - 1 :], abs=0.1)
    assert asyncio.run(engine.score(IDS + turn.ids)) == pytest.approx(ours, abs=0.1)


def sharded_step(processes: Processes) -> dict[str, Any]:
    module = mixed(tiny_policy(tie=True)[0])
    shard(module)
    seen = []
    module.model.layers[0].self_attn.q_proj.register_forward_pre_hook(lambda layer, _: seen.append(layer.weight.dtype))
    step = first_step(module, processes)
    assert set(seen) == {torch.bfloat16}, "blocks are gathered in the type of the products"
    assert {tensor.dtype for _, tensor in plain_weights(module)} == {torch.float32}
    return step


def test_shards_are_gathered_in_bfloat16_and_stay_in_float32() -> None:
    alone = first_step(tiny_policy(tie=True)[0])
    first, second = together(2, sharded_step)
    assert first["head_energy"] == second["head_energy"] == pytest.approx(alone["head_energy"], rel=0.05)
    assert first["grad_norm"] == second["grad_norm"] == pytest.approx(alone["grad_norm"], rel=0.05)


def test_without_another_type_nothing_is_cast() -> None:
    module = tiny_policy()[0]
    with computing(module):
        assert not torch.is_autocast_enabled("cpu")
    with computing(mixed(module)):
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
