"""vLLM in this process: weights that arrive, and whole runs (`test_engine.py` holds what every engine must do)."""

import asyncio
import copy
import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from agentrl import evaluate, train
from agentrl.command.guard import main_guard
from agentrl.common.extras import MissingExtraError
from agentrl.config.read import build_config, load_config
from agentrl.errors import InfrastructureError, RunError, UserError
from agentrl.model.logprobs import row_logprobs
from agentrl.rollout.chat import Chat
from agentrl.rollout.engines.base import Sampling
from agentrl.rollout.engines.factory import make_engine
from agentrl.rollout.engines.vllm import VllmEngine, request_parameters, scores_from_table
from agentrl.rollout.engines.weight_sync import check_sync, opening_row
from agentrl.runs.checkpoint import newest_checkpoint, save_model
from agentrl.runs.folder import read_metrics
from agentrl.types import Row
from tests.agentrl.engines import MODULE, TOKENIZER, start_vllm, weights
from tests.agentrl.helpers import tiny_policy

ROOT = Path(__file__).resolve().parents[2]
CHAT = Chat(TOKENIZER, stop_ids=[TOKENIZER.eos_token_id])
NEEDS_NO_VLLM = pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
CONFIG = """
[env]
id = "tests.toy:ColourEnv"
eval_split = "test"
[model.tiny]
hidden_size = 64
intermediate_size = 64
num_heads = 2
num_kv_heads = 1
tie_embeddings = true
[rollout]
engine = "vllm"
max_turns = 2
max_new_tokens = 4
max_context_tokens = 128
max_concurrent = 16
env_workers = 0
sync_tolerance = 1e-3
[train]
steps = 2
groups_per_step = 4
group_size = 4
[advantage]
invalid_action_penalty = 0.5
[learner]
lr = 1e-2
[eval]
tasks = 8
[checkpoint]
every = 1
"""


def gap(engine: Any, module: Any, *, tolerance: float = 1e-3) -> dict[str, float]:
    """What `train` checks after a sync."""
    score = partial(row_logprobs, module)
    return check_sync(engine, [opening_row(CHAT)], score, temperature=0.7, tolerance=tolerance)


def disturbed(module: Any) -> Any:
    """A model whose embeddings have moved."""
    with torch.no_grad():
        module.model.embed_tokens.weight.add_(0.3 * torch.randn(module.model.embed_tokens.weight.shape))
    return module


@NEEDS_NO_VLLM
def test_without_vllm_the_error_names_the_extra() -> None:
    with pytest.raises(MissingExtraError, match=r"pip install .*\[vllm\]"):
        start_vllm()


def test_importance_sampling_corrects_vllm_by_default_and_can_be_set() -> None:
    assert build_config({"rollout": {"engine": "vllm"}}).loss.tis_cap == 2.0
    assert build_config({}).loss.tis_cap == 0.0
    assert build_config({"rollout": {"engine": "vllm"}, "loss": {"tis_cap": 0.0}}).loss.tis_cap == 0.0


def test_requests_switch_off_whatever_reshapes_the_distribution() -> None:
    sampling = Sampling(max_new_tokens=8, temperature=0.7, stop=("x",), stop_ids=frozenset([3, 1]))
    parameters = request_parameters(sampling, num_ids=95, max_context_tokens=100, key=(1, 2))
    assert parameters["max_tokens"] == 5
    assert (parameters["top_p"], parameters["top_k"], parameters["min_p"], parameters["repetition_penalty"]) == (
        1.0, 0, 0.0, 1.0,
    )  # fmt: skip
    assert parameters["stop_token_ids"] == [1, 3]
    again = request_parameters(sampling, num_ids=95, max_context_tokens=100, key=(1, 2))
    other = request_parameters(sampling, num_ids=95, max_context_tokens=100, key=(1, 3))
    assert parameters["seed"] == again["seed"] != other["seed"]
    assert 0 <= parameters["seed"] < 2**63


def test_scores_at_a_temperature_come_from_whole_distributions() -> None:
    logprobs = torch.tensor([0.5, 0.3, 0.2]).log()
    table = [dict(enumerate(logprobs.tolist()))]
    expected = (logprobs / 0.5).log_softmax(-1)[2]
    assert scores_from_table(table, [9, 2], 0.5) == pytest.approx([float(expected)])
    assert scores_from_table(table, [9, 2], 1.0) == pytest.approx([float(logprobs[2])])


def test_a_sync_check_passes_equal_weights_and_stops_at_others() -> None:
    config = build_config({"rollout": {"max_context_tokens": 400}}).rollout
    engine = make_engine(config, MODULE, TOKENIZER)
    measured = gap(engine, MODULE)
    assert measured["sync/gap"] <= measured["sync/gap_max"] < 1e-4
    assert measured["sync/tokens"] == 4 * 16 + 4 * len(opening_row(CHAT).ids[1:])
    other, _ = tiny_policy(seed=1, hidden_size=64)
    with pytest.raises(RunError, match=r"learner and engine disagree after a weight sync: .* nats"):
        gap(engine, other)


def test_a_sync_check_continues_rows_from_their_last_turn() -> None:
    asked: list[tuple[list[int], float]] = []

    def score(ids: list[int], temperature: float) -> list[float]:
        asked.append((ids, temperature))
        return row_logprobs(MODULE, ids, temperature)

    trained = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1, 1]).bool().numpy()
    row = Row(torch.arange(10, 19, dtype=torch.int32).numpy(), trained, trained * -1.0)
    engine = make_engine(build_config({}).rollout, MODULE, TOKENIZER)
    check_sync(engine, [row], score, temperature=0.7, tolerance=1e-3)
    assert [(ids[:6], len(ids), temperature) for ids, temperature in asked] == [
        *[([10, 11, 12, 13, 14, 15], 6 + 16, 0.7)] * 4,
        *[([10, 11, 12, 13, 14, 15], 9, 1.0)] * 4,
    ]


@pytest.mark.vllm
def test_a_turn_that_takes_too_long_is_an_infrastructure_failure_and_frees_its_place(
    vllm_engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm_engine.load_weights(weights(MODULE), version=0)
    monkeypatch.setattr(vllm_engine, "patience_s", 0.01)
    with pytest.raises(InfrastructureError, match="has not finished a turn"):
        asyncio.run(vllm_engine.generate([6, 7], Sampling(max_new_tokens=390), key=(0,)))
    monkeypatch.undo()
    assert len(asyncio.run(vllm_engine.generate([6], Sampling(max_new_tokens=2, temperature=0), key=(0,))).ids) == 2


@pytest.mark.vllm
def test_a_failing_forward_pass_reaches_every_caller(vllm_engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode() -> None:
        raise RuntimeError("out of memory")

    async def three() -> list[Any]:
        turns = [vllm_engine.generate([6, i], Sampling(max_new_tokens=4), key=(i,)) for i in range(3)]
        return await asyncio.gather(*turns, return_exceptions=True)

    vllm_engine.load_weights(weights(MODULE), version=0)
    monkeypatch.setattr(vllm_engine._engine, "step", explode)
    failures = asyncio.run(three())
    assert [type(failure) for failure in failures] == [RunError] * 3
    assert "out of memory" in str(failures[0])
    monkeypatch.undo()
    assert all(len(completion.ids) == 4 for completion in asyncio.run(three()))


# Behind the tests that share an engine: closing one takes vLLM's groups away from all engines of a process.
@pytest.mark.vllm
@pytest.mark.parametrize("tie", [True, False])
def test_a_tied_head_reaches_vllm_and_without_it_the_check_stops_the_run(tie: bool) -> None:
    torch.manual_seed(0)
    module, _ = tiny_policy(hidden_size=64, tie=tie)
    engine = start_vllm(module)
    engine.load_weights(weights(module), version=0)
    assert gap(engine, module)["sync/gap_max"] < 1e-3
    disturbed(module)
    # What a Hugging Face checkpoint of a tied model holds: no head, no error, and vLLM keeps the old one.
    engine.load_weights(module.named_parameters(), version=1)
    if tie:
        with pytest.raises(RunError, match="learner and engine disagree"):
            gap(engine, module, tolerance=0.1)
    engine.load_weights(weights(module), version=1)
    assert gap(engine, module)["sync/gap_max"] < 1e-3
    engine.close()


@pytest.mark.vllm
def test_logits_leave_the_head_in_float32_and_are_closer_to_the_learners_than_those_of_bfloat16() -> None:
    torch.manual_seed(0)
    module, _ = tiny_policy(hidden_size=64)
    # Logits that share tens, which log-probs do not see and bfloat16 knows to 1/8 and worse.
    module.lm_head.weight.data += 5 * torch.randn(module.config.hidden_size)
    ids = torch.randint(5, 200, (100,)).tolist()
    rounded = copy.deepcopy(module).bfloat16()
    hidden = rounded.model(torch.tensor([ids]))[0][0, :-1].float()
    logits = (hidden @ rounded.lm_head.weight.float().t()).detach()
    assert float(logits.abs().mean()) > 16
    expected = logits.log_softmax(-1).gather(1, torch.tensor(ids)[1:, None])[:, 0]
    gaps = []
    for override in ({}, {"hf_overrides": {"head_dtype": "model"}}):
        engine = start_vllm(module, dtype="bfloat16", **override)
        engine.load_weights(weights(module), version=0)
        found = torch.tensor(asyncio.run(engine.score(ids)))
        gaps.append(float((found - expected).abs().mean()))
        engine.close()
    assert gaps[0] < 0.5 * gaps[1], gaps


@pytest.mark.vllm
def test_an_option_that_vllm_refuses_is_the_users_error() -> None:
    with pytest.raises(UserError, match="vLLM refuses this set-up"):
        start_vllm(no_such_option=1)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "toy.toml"
    path.write_text(CONFIG)
    return path


def run(*words: str | Path) -> int:
    return main_guard(lambda: train.main([str(word) for word in words]))


@pytest.mark.vllm
def test_a_run_with_vllm_learns_checks_every_sync_and_resumes(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run(config, "--run-dir", folder) == 0
    assert json.loads((folder / "config.json").read_text())["loss"]["tis_cap"] == 2.0
    assert run("--resume", folder, "--train.steps", "3") == 0
    steps = [record for record in read_metrics(folder) if record["kind"] == "train"]
    assert [record["step"] for record in steps] == [1, 2, 3]
    for record in steps:
        assert record["sync/gap"] <= record["sync/gap_max"] < 1e-3
        assert record["sync/tokens"] > 0
        assert record["engine/generated_tokens"] > 0
    first, last = (
        AutoModelForCausalLM.from_pretrained(path).lm_head.weight
        for path in (folder / "initial", newest_checkpoint(folder))
    )
    assert not torch.equal(first, last)


@pytest.mark.vllm
def test_in_mixed_precision_vllm_decodes_in_bfloat16_and_the_gap_stays_in_the_default_tolerance(
    config: Path, tmp_path: Path
) -> None:
    words = ["--model.dtype", "mixed", "--rollout.sync_tolerance", "0.1", "--train.steps", "1"]
    assert run(config, "--run-dir", tmp_path / "run", *words) == 0
    (step,) = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "train"]
    assert 1e-5 < step["sync/gap"] < 0.1
    weights = AutoModelForCausalLM.from_pretrained(newest_checkpoint(tmp_path / "run"))
    assert weights.dtype == torch.float32


@pytest.mark.vllm
def test_an_evaluation_leaves_the_weights_to_vllm_and_plays_what_the_learners_own_module_plays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, tokenizer = tiny_policy(hidden_size=64, tie=True)
    save_model(tmp_path / "model", module, tokenizer)
    (tmp_path / "model" / "trainer").mkdir()  # as beside the weights of a checkpoint
    save_file({"model.embed_tokens.weight/exp_avg": torch.ones(1)}, tmp_path / "model" / "trainer" / "o.safetensors")
    settings = {
        "env": {"id": "tests.toy:ColourEnv", "eval_split": "test"}, "eval": {"tasks": 8, "temperature": 0.0},
        "model": {"path": str(tmp_path / "model")},
        "rollout": {"max_turns": 2, "max_new_tokens": 4, "max_context_tokens": 128, "env_workers": 0},
    }  # fmt: skip

    def played(engine: str) -> list[list[int]]:
        config = load_config(settings, {"rollout.engine": engine})
        result = evaluate.run(tmp_path / "model", config=config, out=tmp_path / engine)
        return [row.ids.tolist() for trajectory in result.trajectories for row in trajectory.rows]

    expected = played("local")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("a second copy"))
    assert played("vllm") == expected


@pytest.mark.vllm
def test_a_run_whose_weights_do_not_arrive_stops_with_the_cause(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = VllmEngine.load_weights

    def forgetful(self: VllmEngine, named_tensors: Any, *, version: int) -> None:
        real(self, named_tensors if version == 0 else (), version=version)

    monkeypatch.setattr(VllmEngine, "load_weights", forgetful)
    assert run(config, "--run-dir", tmp_path / "run") == 3
    assert "learner and engine disagree after a weight sync" in capsys.readouterr().err


@pytest.mark.vllm
def test_two_processes_with_shards_have_an_engine_each_and_every_sync_arrives(config: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = ["--run-dir", str(tmp_path / "run"), "--learner.shard", "true", "--train.steps", "1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([*launcher, "-m", "agentrl.train", str(config), *words], cwd=ROOT, env=env, check=True)
    (step,) = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "train"]
    assert step["batch/groups"] == 4
    assert step["cost/episodes"] == 16
    assert step["sync/gap_max"] < 1e-3
