"""What becomes of a policy before training: references of the same type after a resume, shapes without weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from agentrl.build import frozen_copy, load_models, make_environments, without_weights
from agentrl.config.schema import ModelConfig
from agentrl.learner.learner import TorchLearner
from agentrl.model.load import load_model
from agentrl.model.processes import ALONE
from agentrl.model.weights import adapter_tensors, add_lora
from agentrl.runs.checkpoint import save_model
from tests.agentrl.helpers import tiny_policy, toy_config
from tests.agentrl.test_learner import make_batch, random_rows


def test_the_reference_of_a_resumed_run_has_the_type_of_the_first_ones(tmp_path: Path) -> None:
    module, tokenizer = tiny_policy(dtype=torch.float64)
    with torch.no_grad():
        module.lm_head.weight.add_(1e-12)  # lost in float32
    for name in ("initial", "checkpoint"):
        save_model(tmp_path / name, module, tokenizer)
    config = toy_config(model={"dtype": "float64"}, loss={"kl_coef": 0.1})
    places = make_environments(config, ALONE)
    models = load_models(config, places, folder=tmp_path, checkpoint=tmp_path / "checkpoint", processes=ALONE)
    assert models.initial is not None
    assert torch.equal(models.initial.lm_head.weight, module.lm_head.weight)
    assert torch.equal(models.reference.lm_head.weight, module.lm_head.weight)
    assert torch.equal(models.policy.lm_head.weight, module.lm_head.weight)


def test_the_reference_is_frozen_and_has_the_type_of_the_products() -> None:
    module = tiny_policy(tie=True)[0]
    module.compute_dtype = torch.bfloat16
    reference = frozen_copy(module, torch.device("cpu"))
    assert {p.dtype for p in reference.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in reference.parameters())
    assert reference.lm_head.weight is reference.model.embed_tokens.weight
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_the_reference_of_a_policy_with_adapters_is_the_policy_without_them() -> None:
    pytest.importorskip("peft", reason="the extra lora is not installed")
    config = toy_config(
        loss={"kl_coef": 0.3}, learner={"lr": 1e-2, "max_reuse": 2}, gate={"kind": "none"},
        model={"lora_rank": 4, "lora_targets": ["q_proj", "lm_head"], "gradient_checkpointing": True},
    )  # fmt: skip

    def learn(own: bool) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
        module, base = tiny_policy()[0], tiny_policy()[0]
        add_lora(module, config.model, seed=0)
        learner = TorchLearner(module, config, pad_id=0, reference=module if own else base)
        steps = [step for seed in range(3) for step in learner.update(make_batch(random_rows(6, seed=seed))).steps]
        return steps, adapter_tensors(module)

    steps, factors = learn(own=True)
    expected, same = learn(own=False)
    assert [step["loss"] for step in steps] == pytest.approx([step["loss"] for step in expected], rel=1e-5)
    assert any(factor.abs().max() > 1e-3 for name, factor in factors.items() if "lora_B" in name)
    for name, factor in factors.items():
        torch.testing.assert_close(factor, same[name], rtol=1e-4, atol=1e-6)


def test_a_copy_without_weights_keeps_shape_ties_and_settings() -> None:
    module, _ = tiny_policy(tie=True)
    hollow = without_weights(module)
    assert {parameter.device.type for parameter in hollow.parameters()} == {"meta"}
    assert {parameter.device.type for parameter in module.parameters()} == {"cpu"}
    assert hollow.lm_head.weight is hollow.model.embed_tokens.weight
    assert [(n, p.shape) for n, p in hollow.named_parameters()] == [(n, p.shape) for n, p in module.named_parameters()]
    assert hollow.generation_config.eos_token_id == module.generation_config.eos_token_id


def test_a_loaded_model_knows_the_type_of_its_products(tmp_path: Path) -> None:
    save_model(tmp_path / "model", *tiny_policy())
    plain = load_model(ModelConfig(path=str(tmp_path / "model")))[0]
    mixed = load_model(ModelConfig(path=str(tmp_path / "model"), dtype="mixed"))[0]
    assert (plain.dtype, plain.compute_dtype) == (torch.float32, torch.float32)
    assert (mixed.dtype, mixed.compute_dtype) == (torch.float32, torch.bfloat16)
