"""The proof for GPUs: what it measures is what the learner does, and all of it runs on a CPU at a tiny size."""

import json
import sys
from pathlib import Path

import pytest
import torch

from agentrl.learner.batch import micro_batches
from agentrl.learner.learner import TorchLearner
from agentrl.runs.folder import read_metrics

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu_measures  # noqa: E402
import gpu_page  # noqa: E402
import gpu_proof  # noqa: E402
import gpu_runs  # noqa: E402

CPU = torch.device("cpu")


def test_other_updates_move_the_weights_as_the_learner_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_measures, "LR", 1e-2)
    batch = gpu_measures.make_batch(4, 32, 512)
    before = gpu_measures.make_module("tiny", "float32", CPU)
    ours = gpu_measures.make_module("tiny", "float32", CPU)
    TorchLearner(ours, gpu_measures.make_config("float32", 32, 64), pad_id=0).update(batch)
    assert not torch.equal(ours.lm_head.weight, before.lm_head.weight)
    for name in ("no_sink", "full_logits"):
        module = gpu_measures.make_module("tiny", "float32", CPU)
        gpu_measures.OtherUpdate(module, gpu_measures.OTHERS[name], batch, 64).step()
        for (key, weight), theirs in zip(module.named_parameters(), ours.parameters(), strict=True):
            # Adam's first step is a sign where the gradient is large, and rounding where it is not.
            assert (weight - theirs).abs().median() < 1e-5, (name, key)


@pytest.mark.reference
def test_trl_computes_the_same_logprobs() -> None:
    module = gpu_measures.make_module("tiny", "float32", CPU)
    batch = gpu_measures.make_batch(4, 32, 512)
    (part,) = micro_batches(batch.rows, [1.0] * 4, budget=1000, pad_id=0, keep=lambda row: True)
    expected = gpu_measures.full_logits(module, part)
    torch.testing.assert_close(gpu_measures.trl_logprobs(module, part), expected, rtol=1e-4, atol=1e-4)


def test_operations_are_counted_by_hand() -> None:
    module, batch = gpu_measures.make_module("tiny", "float32", CPU), gpu_measures.make_batch(2, 8, 512)
    matrices = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128)  # two blocks: q, k and v, o, the MLP
    expected = 3 * (16 * (2 * matrices + 2 * 2 * 4 * 16 * 8) + 8 * 2 * 512 * 64)
    assert gpu_measures.flops(module, batch, passes=3) == expected


@pytest.mark.slow
def test_measures_run_at_a_tiny_size_and_are_written_after_each_stage(tmp_path: Path) -> None:
    words = ["--tiny", "--stages", "card", "learner", "agreement", "engine", "--out", str(tmp_path)]
    assert gpu_proof.main(words) == 0
    results = json.loads((tmp_path / "proof.json").read_text())
    (updates,) = results["learner"].values()
    assert {name for name, found in updates.items() if found.get("tokens_per_s", 0) > 0} >= {"agentrl", "full_logits"}
    assert results["agreement"]["mixed"]["head_energy_difference"] < 0.05
    assert results["engine"]["decode_tokens_per_s"] > 0
    assert "tokens_per_s" in (tmp_path / "index.html").read_text()


def test_a_stage_that_fails_is_told_and_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(proof: gpu_proof.Proof) -> dict[str, object]:
        raise RuntimeError("no kernel image")

    monkeypatch.setitem(gpu_proof.STAGES, "agreement", breaks)
    assert gpu_proof.main(["--tiny", "--stages", "agreement", "engine", "--out", str(tmp_path)]) == 1
    results = json.loads((tmp_path / "proof.json").read_text())
    assert "no kernel image" in results["agreement"]["error"]
    assert results["engine"]["prefill_tokens_per_s"] > 0
    assert "no kernel image" in gpu_page.page(results)


@pytest.mark.evidence  # a minute of compiling
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_updates_are_measured_beside_plain_ones(tmp_path: Path) -> None:
    assert gpu_proof.main(["--tiny", "--stages", "compiled", "--out", str(tmp_path)]) == 0
    (found,) = json.loads((tmp_path / "proof.json").read_text())["compiled"].values()
    assert found["agentrl"]["seconds"] > 0
    assert found["compiled"]["first_s"] > found["compiled"]["seconds"], found


def test_a_run_that_fails_is_told_with_what_it_printed(tmp_path: Path) -> None:
    job = gpu_runs.Job("whole", ["agentrl.train", "nowhere.toml"], tmp_path / "whole")
    gpu_runs.run_all([job], at_once=1, seconds=60)
    assert "nowhere.toml" in gpu_runs._failures([job])["error"]


@pytest.mark.slow
def test_all_runs_go_through_at_a_tiny_size(tmp_path: Path) -> None:
    assert gpu_proof.main(["--tiny", "--stages", "quickstart", "runs", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "proof.json").read_text())
    assert results["quickstart"]["whole"]["batches"] == 2
    assert {name.split("-")[1] for name in results["runs"]} == set(gpu_runs.ARMS)
    for run in results["runs"].values():
        assert run["exit_code"] == 0
        assert run["batches"] == 2
    assert len(read_metrics(tmp_path / "runs" / "math-dgg-0")) == 4
