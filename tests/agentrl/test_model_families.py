"""The architectures people train, as tiny random models with tied and untied heads: engine, learner, and whole runs."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig

from agentrl import train
from agentrl.command.guard import main_guard
from agentrl.learner.learner import TorchLearner
from agentrl.model.logprobs import row_logprobs
from agentrl.model.tiny import build_tokenizer
from agentrl.rollout.engines.base import Sampling
from agentrl.rollout.engines.local import LocalEngine
from agentrl.runs.checkpoint import newest_checkpoint, save_model
from agentrl.runs.folder import read_metrics
from tests.agentrl.helpers import TEXTS, toy_config
from tests.agentrl.test_learner import assert_same_gradient, make_batch, random_rows

TOKENIZER = build_tokenizer(TEXTS)
SHAPE: dict[str, Any] = {
    "vocab_size": len(TOKENIZER), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": None,
    "eos_token_id": TOKENIZER.eos_token_id, "pad_token_id": TOKENIZER.pad_token_id, "initializer_range": 0.2,
}  # fmt: skip
FAMILIES = {
    "qwen2": lambda tie: Qwen2Config(**SHAPE, tie_word_embeddings=tie),
    "qwen3": lambda tie: Qwen3Config(**SHAPE, head_dim=8, tie_word_embeddings=tie),
    "llama": lambda tie: LlamaConfig(**SHAPE, tie_word_embeddings=tie),
    "qwen3_moe": lambda tie: Qwen3MoeConfig(
        **SHAPE, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, tie_word_embeddings=tie
    ),
}
CASES = [(family, tie) for family in FAMILIES for tie in (True, False)]


def make_model(family: str, tie: bool, **options: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(FAMILIES[family](tie), **options).eval()


def make_double(family: str, tie: bool) -> Any:
    """In float64, for which torch has no grouped matrix product: experts one by one."""
    return make_model(family, tie, experts_implementation="eager").double()


@pytest.mark.parametrize(("family", "tie"), CASES)
def test_the_engine_decodes_what_the_model_generates_with_the_learners_logprobs(family: str, tie: bool) -> None:
    module = make_model(family, tie)
    engine = LocalEngine(module, TOKENIZER, max_concurrent=4, max_context_tokens=64)
    rows = [[5, 9, 30, 7], [8, 8, 12], list(range(10, 30))]
    greedy = Sampling(max_new_tokens=6, temperature=0.0)

    async def play() -> list[Any]:
        return await asyncio.gather(*(engine.generate(ids, greedy, key=(i,)) for i, ids in enumerate(rows)))

    for ids, turn in zip(rows, asyncio.run(play()), strict=True):
        expected = module.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False, eos_token_id=None)
        assert turn.ids == expected[0, len(ids) :].tolist()
        assert turn.logprobs == pytest.approx(row_logprobs(module, ids + turn.ids, 1.0)[len(ids) - 1 :], abs=1e-4)


@pytest.mark.parametrize(("family", "tie"), CASES)
def test_the_learners_gradient_is_plain_autograds(family: str, tie: bool) -> None:
    rows = random_rows(4)
    config = toy_config(gate={"kind": "none"}, learner={"lr": 1e-2, "max_reuse": 2})
    learner = TorchLearner(make_double(family, tie), config, pad_id=0)
    metrics, _ = learner.backward(learner.prepare(make_batch(rows))[0], 1)
    gradient = {n: p.grad.clone() for n, p in learner.module.named_parameters() if p.grad is not None}
    plain = make_double(family, tie)
    total = sum(int(row.trained.sum()) for row in rows)
    for row in rows:
        ids = torch.from_numpy(row.ids).long()[None]
        logprobs = plain(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        (-(logprobs - logprobs.detach()).exp() * torch.from_numpy(row.advantages[1:]) / total).sum().backward()
    assert_same_gradient(gradient, {n: p.grad for n, p in plain.named_parameters() if p.grad is not None})
    before = {name: tensor.clone() for name, tensor in learner.weights()}
    assert "lm_head.weight" in before
    assert metrics["head_energy"] > 0
    learner.update(make_batch(rows))
    assert all(not torch.equal(before[name], tensor) for name, tensor in learner.weights() if "experts" not in name)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "tie"), CASES)
def test_a_run_starts_from_a_folder_of_any_family_and_its_checkpoint_loads(
    family: str, tie: bool, tmp_path: Path
) -> None:
    save_model(tmp_path / "model", make_model(family, tie), TOKENIZER)
    config = tmp_path / "toy.toml"
    config.write_text(
        """
        env = { id = "tests.toy:ColourEnv", eval_split = "test" }
        rollout = { max_turns = 2, max_new_tokens = 4, max_context_tokens = 128, env_workers = 0 }
        train = { steps = 2, groups_per_step = 2, group_size = 4 }
        advantage = { invalid_action_penalty = 0.5 }
        learner = { lr = 1e-2 }
        eval = { tasks = 4 }
        """
    )
    words = [str(config), "--model.path", str(tmp_path / "model"), "--run-dir", str(tmp_path / "run")]
    assert main_guard(lambda: train.main(words)) == 0
    assert len([record for record in read_metrics(tmp_path / "run") if record["kind"] == "train"]) == 2
    trained = AutoModelForCausalLM.from_pretrained(newest_checkpoint(tmp_path / "run"))
    assert trained.config.tie_word_embeddings == tie
    assert (trained.lm_head.weight is trained.model.embed_tokens.weight) == tie
    assert not torch.equal(trained.lm_head.weight, make_model(family, tie).lm_head.weight)
