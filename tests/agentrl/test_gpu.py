"""What only a CUDA device can show; `pytest -m gpu` where one is."""

import asyncio

import pytest
import torch

from agentrl.config.schema import ModelConfig
from agentrl.learner.learner import TorchLearner
from agentrl.model.head import HeadGradient, token_logprobs
from agentrl.model.load import load_model
from agentrl.model.processes import Processes
from agentrl.rollout.engines.base import Sampling
from agentrl.rollout.engines.local import LocalEngine
from tests.agentrl.helpers import TEXTS, tiny_policy, toy_config
from tests.agentrl.test_learner import make_batch, random_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")


def test_models_load_where_the_process_computes() -> None:
    module, _ = load_model(ModelConfig(path="tiny"), texts=TEXTS)
    assert {p.device.type for p in module.parameters()} == {"cuda"}


@pytest.mark.parametrize("tie", [False, True])
def test_learner_on_a_gpu_learns_what_it_learns_on_the_cpu(tie: bool) -> None:
    config = toy_config(learner={"lr": 1e-3, "max_reuse": 3}, gate={"kind": "none"})
    steps, weights = {}, {}
    for device in (torch.device("cpu"), CUDA):
        module = tiny_policy(tie=tie)[0].to(device)
        learner = TorchLearner(module, config, pad_id=0, processes=Processes(device=device))
        steps[device.type] = learner.update(make_batch(random_rows(6))).steps
        weights[device.type] = module.lm_head.weight.detach().cpu()
    for ours, theirs in zip(steps["cuda"], steps["cpu"], strict=True):
        for key in ("loss", "head_energy", "grad_norm", "kl", "entropy"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-6), key
    torch.testing.assert_close(weights["cuda"], weights["cpu"], rtol=1e-3, atol=1e-4)


def test_an_offloading_learner_leaves_the_gpu_to_others_and_learns_the_same() -> None:
    config = toy_config(learner={"lr": 1e-3, "max_reuse": 3, "shard": "offload"}, gate={"kind": "none"})
    plain = config.model_copy(update={"learner": config.learner.model_copy(update={"shard": False})})
    weights = []
    for settings in (plain, config):
        module = tiny_policy(tie=True)[0].to(CUDA)
        learner = TorchLearner(module, settings, pad_id=0, processes=Processes(device=CUDA))
        for seed in range(2):
            learner.update(make_batch(random_rows(6, seed=seed)))
            learner.rest()
        weights.append({name: tensor.cpu() for name, tensor in learner.weights()})
    assert {p.device.type for p in learner.module.parameters()} == {"cuda"}
    learner.rest()
    assert {p.device.type for p in learner.module.parameters()} == {"cpu"}
    kept = [value for state in learner.optimizer.state.values() for value in state.values()]
    assert {value.device.type for value in kept} == {"cpu"}
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embedded_engine_on_a_gpu_says_what_a_plain_forward_pass_says(dtype: torch.dtype) -> None:
    module, tokenizer = tiny_policy(dtype=dtype)
    engine = LocalEngine(module.to(CUDA), tokenizer, max_concurrent=8, max_context_tokens=200)
    rows = [[(7 * i + j) % 200 for j in range(3 + 5 * i)] for i in range(6)]

    async def play() -> float:
        sampling = Sampling(max_new_tokens=12, temperature=1.0)
        turns = await asyncio.gather(*(engine.generate(r, sampling, key=(i,)) for i, r in enumerate(rows)))
        gaps = []
        for row, turn in zip(rows, turns, strict=True):
            scored = (await engine.score([*row, *turn.ids]))[len(row) - 1 :]
            gaps += [abs(a - b) for a, b in zip(scored, turn.logprobs, strict=True)]
        return max(gaps)

    assert asyncio.run(play()) < (1e-3 if dtype == torch.float32 else 0.5)


def test_logits_of_bfloat16_products_are_not_rounded_to_bfloat16() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(32, 64, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(500, 64, device=CUDA, dtype=torch.bfloat16)
    targets = torch.randint(0, 500, (32,), device=CUDA)
    logprobs, _ = token_logprobs(hidden, weight, targets, temperature=0.7, chunk=10, sink=HeadGradient())
    exact = (hidden.double() @ weight.double().t() / 0.7).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert float((logprobs.detach().double() - exact.detach()).abs().max()) < 1e-4
    rounded = ((hidden @ weight.t()).double() / 0.7).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert float((rounded - exact).detach().abs().max()) > 1e-3, "what this spares"
