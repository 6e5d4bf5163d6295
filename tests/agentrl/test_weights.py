"""Adapters, checkpoints of them, heads that are refused, and sums over processes of mixed tensors."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from agentrl.config.schema import ModelConfig
from agentrl.errors import CheckpointError, UserError
from agentrl.learner.policy import Policy
from agentrl.model import processes as processes_module
from agentrl.model.processes import Processes
from agentrl.model.weights import adapter_tensors, add_lora, gather_weights
from agentrl.runs.checkpoint import TrainerState, find_damage, load_adapter, newest_checkpoint, save_checkpoint
from tests.agentrl.helpers import tiny_policy
from tests.agentrl.processes import together

IDS = torch.tensor([[5, 9, 30, 7]])


def adapted(*, rank: int = 2, targets: tuple[str, ...] = ("q_proj", "lm_head"), tie: bool = False) -> Any:
    """A LoRA policy whose adapters change what it says."""
    pytest.importorskip("peft", reason="the extra lora is not installed")
    module, _ = tiny_policy(tie=tie)
    add_lora(module, ModelConfig(lora_rank=rank, lora_targets=list(targets)), seed=1)
    for name, factor in adapter_tensors(module).items():
        torch.manual_seed(len(name))
        factor.copy_(torch.randn_like(factor) / 5)
    return module


@pytest.mark.parametrize(("targets", "tie"), [(("q_proj", "lm_head"), False), (("q_proj", "down_proj"), True)])
def test_plain_weights_of_a_lora_policy_make_a_plain_model_that_says_the_same(
    targets: tuple[str, ...], tie: bool
) -> None:
    module, (plain, _) = adapted(targets=targets, tie=tie), tiny_policy(tie=tie)
    before = plain(input_ids=IDS).logits
    weights = gather_weights(module, keep=True)
    assert weights.keys() == dict(plain.named_parameters()).keys()
    plain.load_state_dict(weights, strict=False)
    torch.testing.assert_close(plain(input_ids=IDS).logits, module(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)
    assert float((plain(input_ids=IDS).logits - before).detach().abs().max()) > 0.1
    assert gather_weights(module, keep=False) == {}


def test_an_adapter_for_layers_that_the_model_lacks_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"model\.lora_targets: this model has no layer named 'query'"):
        adapted(targets=("query", "q_proj"))


def save(run: Path, module: Any, *, step: int = 1) -> Path:
    _, tokenizer = tiny_policy()
    plain, _ = tiny_policy()
    learner: dict[str, Any] = {
        "weights": gather_weights(module, keep=True), "adapter": adapter_tensors(module), "monitor": {},
        "optimizer": {"a": {"exp_avg": torch.ones(2)}}, "counters": {}, "gate": {},
    }  # fmt: skip
    return save_checkpoint(run, TrainerState(step, learner, {}, {}), shape=plain, tokenizer=tokenizer, keep=2)


def test_an_adapter_comes_back_from_a_checkpoint_and_only_into_its_own_shape(tmp_path: Path) -> None:
    module = adapted()
    folder = save(tmp_path, module)
    fresh, _ = tiny_policy()
    add_lora(fresh, ModelConfig(lora_rank=2, lora_targets=["q_proj", "lm_head"]), seed=7)
    load_adapter(folder, fresh)
    assert torch.equal(fresh(input_ids=IDS).logits, module(input_ids=IDS).logits)
    for other in (adapted(rank=3), adapted(targets=("q_proj",))):
        with pytest.raises(CheckpointError, match="another rank or other targets"):
            load_adapter(folder, other)
    with pytest.raises(CheckpointError, match="holds no adapter"):
        load_adapter(save(tmp_path, tiny_policy()[0], step=2), module)


@pytest.mark.parametrize(
    ("name", "damage", "problem"),
    [
        ("trainer/manifest.json", lambda path: path.write_text("{"), "no readable trainer/manifest.json"),
        ("trainer/state.json", lambda path: path.unlink(), "trainer/state.json is missing"),
        ("config.json", lambda path: path.write_bytes(path.read_bytes()[::-1]), "config.json has changed"),
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, .* were written"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    tmp_path: Path, name: str, damage: Any, problem: str
) -> None:
    module, _ = tiny_policy()
    first, second, third = (save(tmp_path, module, step=step) for step in (1, 2, 3))
    assert not first.exists(), "two are kept"
    assert find_damage(third) is None
    assert newest_checkpoint(tmp_path) == third
    damage(third / name)
    with pytest.warns(UserWarning, match=f"is damaged \\(.*{problem}"):
        assert newest_checkpoint(tmp_path) == second


def test_no_run_folder_has_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run folder at"):
        newest_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="ended before the first one was written"):
        newest_checkpoint(tmp_path)


def test_heads_with_unknown_logits_are_refused() -> None:
    module, _ = tiny_policy()
    Policy(copy.deepcopy(module), temperature=1.0)
    forward = module.forward

    def squared(**words: Any) -> Any:
        output = forward(**words)
        output.logits = output.logits.square()
        return output

    module.forward = squared
    with pytest.raises(UserError, match="logits are changed behind the head"):
        Policy(module, temperature=1.0)


def add_up(processes: Processes) -> tuple[list[torch.Tensor], torch.Tensor, Any, list[int]]:
    rank = processes.rank + 1
    tensors = [torch.full((size,), float(rank), dtype=dtype) for size, dtype in SIZES]
    tensors.append(torch.arange(6.0).view(2, 3) * rank)
    largest = torch.tensor([float(rank), -float(rank)])
    processes.sum_(tensors)
    processes.max_(largest)
    return tensors, largest, processes.from_first({"rank": rank}), processes.gather(rank)


SIZES = [(3, torch.float32), (4, torch.float32), (5, torch.float64), (9, torch.float64), (1, torch.float32)]


def test_sums_of_tensors_of_several_types_and_sizes_are_whole_in_every_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes_module, "_BUCKET", 8)  # several messages, as large models need
    for tensors, largest, first, everyone in together(2, add_up):
        for tensor, (size, dtype) in zip(tensors[:-1], SIZES, strict=True):
            assert torch.equal(tensor, torch.full((size,), 3.0, dtype=dtype))
        assert torch.equal(tensors[-1], torch.arange(6.0).view(2, 3) * 3)
        assert largest.tolist() == [2.0, -1.0]
        assert (first, everyone) == ({"rank": 1}, [1, 2])
