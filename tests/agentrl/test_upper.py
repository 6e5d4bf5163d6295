"""Training the topmost blocks alone: the gradient of a plain pass, frozen weights that stay, and their output kept."""

import copy
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch

from agentrl import evaluate, train
from agentrl.build import refuse_frozen
from agentrl.command.guard import main_guard
from agentrl.config.read import build_config
from agentrl.dry_run.estimate import CPU, Shape, batch_seconds, learner_memory, trained_parameters, trained_shape
from agentrl.envs.spaces import FreeText
from agentrl.errors import UserError
from agentrl.learner.learner import TorchLearner
from agentrl.learner.policy import Policy
from agentrl.model.compiled import Compiler
from agentrl.model.pretrained import load_pretrained
from agentrl.model.upper import FrozenBlocks, freeze_lower_layers
from agentrl.runs.checkpoint import newest_checkpoint, save_model
from agentrl.runs.folder import read_metrics
from tests.agentrl.helpers import tiny_policy, toy_config
from tests.agentrl.test_learner import make_batch, random_rows
from tests.agentrl.test_model_families import CASES, TOKENIZER, make_double, make_model

NAIVE = {"learner": {"max_reuse": 3, "lr": 0.05, "microbatch_tokens": 64}, "gate": {"kind": "none"}}


def frozen(module: Any, num_trained: int = 1) -> Any:
    freeze_lower_layers(module, num_trained)
    return module


def learned(module: Any, *, keeps: bool) -> tuple[Any, list[dict[str, Any]]]:
    """The module after two batches of three uses, and what the learner saw; `keeps` as shipped, else each use anew."""
    module = copy.deepcopy(module)
    learner = TorchLearner(module, toy_config(**NAIVE), pad_id=0)
    if not keeps:
        learner.policy = Policy(module, temperature=learner.config.rollout.temperature)
    steps = [step for seed in (0, 1) for step in learner.update(make_batch(random_rows(7, seed=seed))).steps]
    return module, steps


@pytest.mark.parametrize(("family", "tie"), CASES)
def test_reuse_above_kept_outputs_is_reuse_to_the_last_bit_and_leaves_the_rest_alone(family: str, tie: bool) -> None:
    module = frozen(make_double(family, tie))
    start = copy.deepcopy(module.state_dict())
    kept, kept_steps = learned(module, keeps=True)
    plain, plain_steps = learned(module, keeps=False)
    assert len(kept_steps) == 6
    assert [step["head_energy"] for step in kept_steps] == [step["head_energy"] for step in plain_steps]
    assert [step["grad_norm"] for step in kept_steps] == [step["grad_norm"] for step in plain_steps]
    for name, weight in kept.state_dict().items():
        assert torch.equal(weight, plain.state_dict()[name]), name
        is_frozen = "embed_tokens" in name or "layers.0." in name
        assert torch.equal(weight, start[name]) == is_frozen, name


def test_the_gradient_of_the_trained_part_is_that_of_a_whole_model() -> None:
    whole, part = make_double("qwen3", False), frozen(make_double("qwen3", False))
    gradients = []
    for module in (whole, part):
        learner = TorchLearner(module, toy_config(**NAIVE), pad_id=0)
        parts, _ = learner.prepare(make_batch(random_rows(5)))
        learner.backward(parts, 1)
        gradients.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    assert set(gradients[1]) < set(gradients[0])
    assert all("layers.1." in name or name in ("lm_head.weight", "model.norm.weight") for name in gradients[1])
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradient, gradients[0][name], rtol=0, atol=0)


def test_frozen_blocks_are_computed_once_a_batch() -> None:
    module = frozen(make_double("qwen3", True))
    calls = {0: 0, 1: 0}
    for number, block in enumerate(module.model.layers):
        block.mlp.register_forward_hook(lambda *_, number=number: calls.__setitem__(number, calls[number] + 1))
    learner = TorchLearner(module, toy_config(**NAIVE), pad_id=0)
    before, batch = dict(calls), make_batch(random_rows(7))
    num_parts = len(learner.prepare(batch)[0])
    learner.update(batch)
    assert num_parts > 1
    assert calls[0] - before[0] == num_parts
    assert calls[1] - before[1] == 3 * num_parts


def test_kept_outputs_go_with_compiled_blocks() -> None:
    module = frozen(make_double("qwen3", True))
    steps = []
    for compiler in (None, Compiler("eager")):
        learner = TorchLearner(copy.deepcopy(module), toy_config(**NAIVE), pad_id=0, compiler=compiler)
        steps.append(
            [s["head_energy"] for seed in (0, 1) for s in learner.update(make_batch(random_rows(7, seed=seed))).steps]
        )
        assert not any("forward" in vars(block) for block in learner.module.model.layers)
    assert steps[0] == pytest.approx(steps[1], rel=1e-9)


def test_what_cannot_be_trained_so_is_one_line() -> None:
    with pytest.raises(UserError, match=r"train_layers = 3: Qwen3ForCausalLM has 2 blocks in a list\. Take at most"):
        freeze_lower_layers(make_model("qwen3", True), 3)
    for tree in ({"model": {"lora_rank": 2}}, {"rollout": {"engine": "vllm", "endpoints": ["http://a:1"]}}):
        tree["model"] = {**tree.get("model", {}), "train_layers": 1}
        with pytest.raises(UserError, match=r"model\.train_layers cannot be combined with (model|rollout)\."):
            refuse_frozen(build_config(tree), sharded=False)
    with pytest.raises(UserError, match=r"cannot be combined with learner\.shard"):
        refuse_frozen(build_config({"model": {"train_layers": 1}}), sharded=True)


def test_blocks_that_hand_on_more_than_their_states_are_refused() -> None:
    module = frozen(make_model("qwen3", True))
    top, sums = module.model.layers[1], []
    module.model.layers[0].mlp.register_forward_hook(lambda _m, _i, output: sums.append(output.sum()))
    top.register_forward_pre_hook(lambda _m, args: (args[0] + sums.pop() if sums else args[0], *args[1:]))
    with pytest.raises(UserError, match="more than one tensor goes from block to block"):
        FrozenBlocks(module)


def test_an_untied_head_is_saved_and_loaded(tmp_path: Path) -> None:
    module = frozen(make_model("qwen3", True))
    with torch.no_grad():
        module.lm_head.weight.add_(1.0)
    save_model(tmp_path / "model", module, TOKENIZER)
    again, _ = load_pretrained(str(tmp_path / "model"), dtype=torch.float32)
    assert torch.equal(again.lm_head.weight, module.lm_head.weight)
    assert torch.equal(again.model.embed_tokens.weight, module.model.embed_tokens.weight)


def test_the_estimate_counts_what_is_trained() -> None:
    module = make_model("qwen3", True)
    config = build_config({"model": {"train_layers": 1}, "learner": {"max_reuse": 4}})
    shape = trained_shape(Shape.of(module.config), config)
    frozen(module)
    assert shape.parameters == sum(p.numel() for p in module.parameters())
    assert trained_parameters(shape, config) == sum(p.numel() for p in module.parameters() if p.requires_grad)
    items = {item.name: item.value for item in learner_memory(shape, config, tokens=64, chunk=64)}
    whole = {item.name: item.value for item in learner_memory(shape, build_config({}), tokens=64, chunk=64)}
    assert items["activations"] == whole["activations"] / 2
    assert items["kept outputs"] > 0
    seconds = [batch_seconds(shape, c, updates=4, device=CPU) for c in (config, build_config({}))]
    upper, whole_model = ({item.name: item.value for item in items}["updates"] for items in seconds)
    assert upper < 0.8 * whole_model


class FirstLetter(gymnasium.Env[str, str]):
    """Won where the answer begins with a letter of odd number, which a random policy does half of the time."""

    metadata: dict[str, Any] = {}  # noqa: RUF012
    observation_space = action_space = FreeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        return "Say something.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "", float(ord(action[0]) % 2 if action else 0), True, False, {}


def test_a_run_trains_the_upper_layers_resumes_bit_for_bit_and_is_evaluated(tmp_path: Path) -> None:
    module, tokenizer = tiny_policy(tie=True)
    save_model(tmp_path / "model", module, tokenizer)
    words = [
        "--env.id", f"{__name__}:FirstLetter", "--rollout.max_turns", "1", "--learner.lr", "0.01",
        "--model.path", str(tmp_path / "model"), "--model.train_layers", "1", "--train.steps", "4",
        "--train.groups_per_step", "2", "--train.group_size", "4", "--rollout.max_new_tokens", "4", "--eval.tasks", "4",
        "--learner.max_reuse", "3", "--gate.kind", "none", "--checkpoint.every", "2", "--loss.kl_coef", "0.01",
        "--rollout.env_workers", "0",
    ]  # fmt: skip
    assert main_guard(lambda: train.main([*words, "--run-dir", str(tmp_path / "whole")])) == 0
    assert main_guard(lambda: train.main([*words, "--run-dir", str(tmp_path / "half"), "--train.steps", "2"])) == 0
    assert main_guard(lambda: train.main(["--resume", str(tmp_path / "half"), "--train.steps", "4"])) == 0
    ends = [newest_checkpoint(tmp_path / name) for name in ("whole", "half")]
    models = [load_pretrained(str(end), dtype=torch.float32)[0] for end in ends]
    for (name, a), b in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    first = module.state_dict()
    assert torch.equal(models[0].model.embed_tokens.weight, first["model.embed_tokens.weight"])
    assert not torch.equal(models[0].lm_head.weight, first["model.embed_tokens.weight"])
    records = [[r for r in read_metrics(tmp_path / name) if r["kind"] == "train"][-1] for name in ("whole", "half")]
    assert records[0]["learner/head_energy"] == records[1]["learner/head_energy"]
    out = str(tmp_path / "evaluation")
    assert main_guard(lambda: evaluate.main([str(tmp_path / "whole"), "--eval.tasks", "4", "--out", out])) == 0
