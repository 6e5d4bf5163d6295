"""C_struct: measured against plain autograd, and the bound of Theorem 1 at every token and layer."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from agentrl.analysis.head_constants import Structure, measure_structure
from agentrl.command.guard import main_guard
from agentrl.structure import main
from tests.agentrl.helpers import tiny_policy
from tests.agentrl.toy_runs import toy_run


def test_gradient_ratio_when_one_token_is_the_context_then_it_is_that_of_plain_autograd() -> None:
    module, _ = tiny_policy()
    token = 7
    structure = measure_structure(module, [([5], token)])
    module.zero_grad()
    module(input_ids=torch.tensor([[5]])).logits[0, -1].log_softmax(-1)[token].backward()
    head = float(module.lm_head.weight.grad.square().sum())
    layers = [layer for layer in module.model.modules() if isinstance(layer, torch.nn.Linear)]
    expected = [float(layer.weight.grad.square().sum()) / head for layer in layers]
    np.testing.assert_allclose(structure.gradient_ratio, expected, rtol=1e-3, atol=1e-9)


def test_bound_when_the_expectation_is_sampled_well_then_theorem_1_holds_everywhere() -> None:
    module, _ = tiny_policy(seed=3)
    random = np.random.default_rng(0)
    contexts = [(random.integers(100, size=n).tolist(), int(random.integers(100))) for n in (1, 4, 9)]
    structure = measure_structure(module, contexts, num_samples=100)
    assert len(structure.ratio) == 3 * 14  # two blocks of seven matrices
    assert (structure.gradient_ratio <= structure.bound).all()
    assert (structure.gradient_ratio > 0).any()


def test_quantiles_when_taken_then_the_last_is_four_times_the_product() -> None:
    structure = Structure(np.array([0.01, 0.02, 0.03]), np.array([1.0, 2.0, 3.0]), np.zeros(3), np.zeros(3))
    assert structure.quantiles(0.5) == pytest.approx((0.02, 2.0, 0.16))


@pytest.mark.slow
def test_command_when_given_a_run_or_a_model_then_one_row_a_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = toy_run(tmp_path_factory.mktemp("structure") / "run")
    out = tmp_path / "numbers.json"
    assert main([str(run), "--tokens", "3", "--samples", "2", "--json", str(out)]) == 0
    numbers = json.loads(out.read_text())
    assert list(numbers) == ["run step-000000", "run step-000012"]
    assert all(0 < row["C_struct_median"] <= row["C_struct_p95"] for row in numbers.values())
    capsys.readouterr()
    assert main_guard(lambda: main([str(run / "initial")])) == 2
    assert "--text" in capsys.readouterr().err
