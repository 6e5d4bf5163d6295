"""The benchmark for GPUs: what it measures is what the learner does, and it runs on a CPU at a tiny size."""

import ast
import copy
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agentrl.config import build_config
from agentrl.learner.batch import Batch, BatchRow
from agentrl.learner.learner import Learner

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_learner.py"


@pytest.fixture(scope="module")
def benchmark() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_learner", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_needs_torch_and_transformers_alone() -> None:
    needed = set()
    for file in (FILE, FILE.parents[1] / "agentrl" / "learner" / "lm_head.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            needed |= {name.split(".")[0] for name in names} - sys.stdlib_module_names
    assert needed == {"torch", "transformers"}


def test_its_update_is_the_learners(benchmark: Any) -> None:
    cpu = torch.device("cpu")
    module = benchmark.make_model(benchmark.TINY, cpu, torch.float32)
    rows = benchmark.make_rows(4, 32, benchmark.TINY["vocab_size"], cpu)
    ours = copy.deepcopy(module).eval()
    config = build_config(
        {
            "rollout": {"temperature": benchmark.TEMPERATURE}, "gate": {"kind": "none"},
            "learner": {"max_reuse": 2, "lr": 1e-3, "max_grad_norm": benchmark.MAX_NORM, "microbatch_tokens": 64},
        }
    )  # fmt: skip
    trained = np.arange(32) >= rows.prompt
    batch = [
        BatchRow(ids.numpy().astype(np.int32), trained, trained * np.float32(worth), np.zeros(32, np.float32))
        for ids, worth in zip(rows.ids, rows.advantages.tolist(), strict=True)
    ]
    steps = Learner(ours, config, pad_id=0).update(Batch(batch, rows.num_trained, 2, 2)).steps
    update = benchmark.Update(module, torch.float32, 64, lr=1e-3)
    for expected in steps:
        energy, norm = update.step(rows)
        assert energy == pytest.approx(expected["head_energy"], rel=1e-4)
        assert norm == pytest.approx(expected["grad_norm"], rel=1e-4)
    for (name, weight), theirs in zip(module.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(weight, theirs, rtol=1e-3, atol=1e-5, msg=name)


def test_operations_are_counted_by_hand(benchmark: Any) -> None:
    module = benchmark.make_model({**benchmark.TINY, "num_hidden_layers": 1}, torch.device("cpu"), torch.float32)
    rows = benchmark.make_rows(2, 8, 512, torch.device("cpu"))
    matrices = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128  # q, k and v, o, the MLP
    expected = 3 * (16 * (2 * matrices + 2 * 4 * 16 * 8) + 8 * 2 * 512 * 64)
    assert benchmark.update_flops(module, rows, passes=3) == expected


def test_it_runs_at_a_tiny_size_and_says_where_no_gpu_is(
    benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--tiny", "--device", "cpu", "--repeat", "1", "--row-tokens", "16", "--out", str(tmp_path / "out.json")]
    assert benchmark.main(words) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["agreement"]["difference"]["energy"] < 0.05
    for update in result["updates"].values():
        assert update["tokens_per_s"] > 0
        assert 0 < update["energy_share"] < 1
    if not torch.cuda.is_available():
        assert benchmark.main([]) == 2
        assert "no CUDA device" in capsys.readouterr().err
