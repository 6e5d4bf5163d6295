"""What a weight sync writes, for whom, and where: the parts that need no server."""

import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from agentrl.errors import UserError
from agentrl.rollout.engines.factory import make_engine
from agentrl.rollout.engines.vllm import shape_folder
from agentrl.rollout.engines.weight_sync import DiskSync, Host, NcclSync, address_towards
from tests.agentrl.helpers import tiny_policy, toy_config


def named(value: float = 1.0) -> list[tuple[str, torch.Tensor]]:
    head = torch.full((2, 3), value, requires_grad=True)
    return [("model.embed_tokens.weight", head), ("lm_head.weight", head), ("steps", torch.tensor([3]))]


def test_disk_sync_when_servers_compute_in_bfloat16_then_writes_half_the_bytes_and_keeps_integers(
    tmp_path: Path,
) -> None:
    sync = DiskSync(tmp_path, dtype=torch.bfloat16)
    sync.offer(named())
    (file,) = tmp_path.rglob("model.safetensors")
    tensors = load_file(file)
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "model.embed_tokens.weight": torch.bfloat16, "lm_head.weight": torch.bfloat16, "steps": torch.int64,
    }  # fmt: skip


def test_disk_sync_when_another_process_writes_then_reads_its_copy_and_still_gathers(tmp_path: Path) -> None:
    meetings: list[str] = []
    writer = DiskSync(tmp_path, host=Host(True, lambda: meetings.append("writer")))
    reader = DiskSync(tmp_path, host=Host(False, lambda: meetings.append("reader")))
    for value in (1.0, 2.0):
        gathered = iter(named(value))
        reader.offer(gathered)
        assert next(gathered, None) is None, "shards are gathered by all together"
        writer.offer(named(value))
    assert meetings == ["reader", "writer"] * 2
    assert reader._current == writer._current
    (file,) = tmp_path.rglob("model.safetensors")  # one copy, the newest
    assert float(load_file(file)["lm_head.weight"][0, 0]) == 2.0


def test_nccl_sync_when_offered_then_keeps_the_type_that_travels() -> None:
    sync = NcclSync(device=torch.device("cpu"), dtype=torch.bfloat16)
    sync.offer(named())
    assert [tensor.dtype for _, tensor in sync._tensors] == [torch.bfloat16, torch.bfloat16, torch.int64]


def test_address_when_a_server_is_elsewhere_then_is_the_one_on_the_way_to_it() -> None:
    assert address_towards("http://127.0.0.1:8000") == "127.0.0.1"
    if socket.has_ipv6:
        assert address_towards("http://[::1]:8000") == "::1"


@pytest.mark.parametrize("name", ["tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"])
def test_parallel_engine_in_a_learner_process_is_refused_with_the_way_that_works(name: str) -> None:
    module, tokenizer = tiny_policy()
    config = toy_config(rollout={"engine": "vllm", "engine_options": {name: 2}}).rollout
    with pytest.raises(UserError, match=rf"{name} = 2.*vllm serve MODEL --{name.replace('_', '-')} 2.*endpoints"):
        make_engine(config, module, tokenizer)


def test_shape_folder_when_asked_again_then_is_the_same_and_another_shape_has_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    module, tokenizer = tiny_policy()
    folder = shape_folder(module, tokenizer)
    assert shape_folder(module, tokenizer) == folder
    assert shape_folder(tiny_policy(hidden_size=64)[0], tokenizer) != folder
    assert not list(folder.glob("*.safetensors"))
    assert len(list(folder.parent.iterdir())) == 2, "no drafts are left"
