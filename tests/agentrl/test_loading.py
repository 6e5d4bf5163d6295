"""What becomes of a policy before training: references of the same type after a resume, shapes without weights."""

from pathlib import Path
from typing import Any

import torch

from agentrl.checkpoint import save_model
from agentrl.config import ModelConfig
from agentrl.loading import load_models, without_weights
from agentrl.model import load_model
from agentrl.processes import ALONE
from tests.agentrl.helpers import tiny_policy, toy_config


def test_the_reference_of_a_resumed_run_has_the_type_of_the_first_ones(tmp_path: Path) -> None:
    module, tokenizer = tiny_policy(dtype=torch.float64)
    with torch.no_grad():
        module.lm_head.weight.add_(1e-12)  # lost in float32
    for name in ("initial", "checkpoint"):
        save_model(tmp_path / name, module, tokenizer)
    config = toy_config(model={"dtype": "float64"}, loss={"kl_coef": 0.1})
    nobody: Any = None  # a checkpoint needs no expert
    models = load_models(config, nobody, folder=tmp_path, checkpoint=tmp_path / "checkpoint", processes=ALONE)
    assert models.initial is not None
    assert torch.equal(models.initial.lm_head.weight, module.lm_head.weight)
    assert torch.equal(models.policy.lm_head.weight, module.lm_head.weight)


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
