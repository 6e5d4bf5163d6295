"""Models by name: the hub's cache without a network, folders, adapters, one line for what is not there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from agentrl.config.schema import Config, ModelConfig
from agentrl.dry_run.schedule import model_shape
from agentrl.errors import UserError
from agentrl.model.load import load_model
from agentrl.model.pretrained import Source
from agentrl.rollout.chat import stop_token_ids
from agentrl.runs.checkpoint import save_model
from tests.agentrl.helpers import tiny_policy

COMMITS = {"main": "0123456789abcdef0123456789abcdef01234567", "v2": "89abcdef0123456789abcdef0123456789abcdef"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache on a machine without a network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def put(cache: Path, name: str, revision: str, module: Any, tokenizer: Any) -> Path:
    """Lay a model into the cache as a download would: refs, blobs, snapshots of links."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot, blobs = repository / "snapshots" / COMMITS[revision], repository / "blobs"
    save_model(snapshot, module, tokenizer)
    blobs.mkdir(exist_ok=True)
    for file in list(snapshot.iterdir()):
        file.rename(blobs / f"{revision}-{file.name}")
        file.symlink_to(blobs / f"{revision}-{file.name}")
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / revision).write_text(COMMITS[revision])
    return snapshot


def head(path: str) -> torch.Tensor:
    return load_model(ModelConfig(path=path))[0].lm_head.weight


def test_a_hub_name_in_the_cache_loads_offline_at_any_revision(cache: Path) -> None:
    first, tokenizer = tiny_policy(seed=0)
    second, _ = tiny_policy(seed=1)
    put(cache, "Org/tiny-model", "main", first, tokenizer)
    put(cache, "Org/tiny-model", "v2", second, tokenizer)
    put(cache, "plain", "main", first, tokenizer)
    assert torch.equal(head("Org/tiny-model"), first.lm_head.weight)
    assert torch.equal(head("plain"), first.lm_head.weight)
    assert torch.equal(head("Org/tiny-model@v2"), second.lm_head.weight)
    assert torch.equal(head(f"Org/tiny-model@{COMMITS['v2']}"), second.lm_head.weight)
    assert model_shape(Config.model_validate({"model": {"path": "Org/tiny-model@v2"}})).hidden_size == 32


@pytest.mark.parametrize("tie", [True, False])
def test_a_shape_without_weights_says_what_the_whole_model_says(cache: Path, tmp_path: Path, tie: bool) -> None:
    module, tokenizer = tiny_policy(tie=tie)
    module.generation_config.eos_token_id = [3, 5]
    put(cache, "Org/tiny-model", "main", module, tokenizer)
    whole, _ = load_model(ModelConfig(path="Org/tiny-model", dtype="mixed"))
    shape, again = load_model(ModelConfig(path="Org/tiny-model", dtype="mixed"), weights=False)
    assert {parameter.device.type for parameter in shape.parameters()} == {"meta"}
    assert shape.config.to_dict() == whole.config.to_dict()
    assert {n: (p.shape, p.dtype) for n, p in shape.named_parameters()} == {
        n: (p.shape, p.dtype) for n, p in whole.named_parameters()
    }
    assert shape.compute_dtype == whole.compute_dtype == torch.bfloat16
    assert stop_token_ids(again, shape) == stop_token_ids(tokenizer, whole) == sorted({3, 5, tokenizer.eos_token_id})
    assert not shape.training


def test_others_find_a_model_where_it_lies(cache: Path, tmp_path: Path) -> None:
    module, tokenizer = tiny_policy()
    snapshot = put(cache, "Org/tiny-model", "v2", module, tokenizer)
    save_model(tmp_path / "model", module, tokenizer)
    assert Source.of(str(tmp_path / "model")).place() == {"model": str(tmp_path / "model"), "revision": None}
    assert Source.of("Org/tiny-model@v2").place() == {"model": str(snapshot), "revision": None}
    for weights in snapshot.glob("*.safetensors"):
        weights.unlink()
    assert Source.of("Org/tiny-model@v2").place() == {"model": "Org/tiny-model", "revision": "v2"}


def test_a_cached_hub_name_asks_no_network_even_where_there_could_be_one(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, tokenizer = tiny_policy()
    put(cache, "Org/tiny-model", "main", module, tokenizer)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("looked for a network"))
    assert torch.equal(head("Org/tiny-model"), module.lm_head.weight)


def test_a_relative_folder_that_exists_wins_over_a_hub_name(cache: Path, tmp_path: Path) -> None:
    there, tokenizer = tiny_policy(seed=0)
    here, _ = tiny_policy(seed=1)
    put(cache, "out/model", "main", there, tokenizer)
    save_model(tmp_path / "out" / "model", here, tokenizer)
    assert torch.equal(head("out/model"), here.lm_head.weight)


@pytest.mark.parametrize(
    ("path", "why", "remedy"),
    [
        ("Qwen/Qwen3-0.6B", "HF_HUB_OFFLINE is set", "hf download Qwen/Qwen3-0.6B` where there is a network"),
        ("Qwen/Qwen3-0.6B@v9", "not (whole) in the Hugging Face cache", "--revision v9"),
        ("./out/model", "no folder at ./out/model", "a hub name such as"),
        ("/no/such/folder", "does not exist", "config.json"),
        ("a/b/c", "no folder at a/b/c", "a hub name such as"),
        ("file.txt", "it is a file", "Give a folder"),
        ("two words/name", "cannot be a hub name", "Give a folder"),
        ("empty", "cannot load a causal LM from 'empty'", "Give a folder"),
    ],
)
def test_a_model_that_is_not_to_be_had_is_told_in_one_line(
    cache: Path, tmp_path: Path, path: str, why: str, remedy: str
) -> None:
    (tmp_path / "file.txt").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"model\.path") as caught:
        load_model(ModelConfig(path=path))
    message = str(caught.value)
    assert "\n" not in message
    assert why in message
    assert remedy in message


def save_adapter(folder: Path, base: str, module: Any) -> torch.Tensor:
    """A random LoRA adapter of a model's first query projection; the matrix it makes of it."""
    peft = pytest.importorskip("peft")
    weight = module.model.layers[0].self_attn.q_proj.weight.detach().clone()
    wrapped = peft.get_peft_model(module, peft.LoraConfig(r=2, target_modules=["layers.0.self_attn.q_proj"]))
    layer = wrapped.base_model.model.model.layers[0].self_attn.q_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    factors = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    wrapped.peft_config["default"].base_model_name_or_path = base
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    return (weight + layer.scaling["default"] * factors).detach()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("base", ["Org/tiny-model", "BASE", "../base"])
def test_an_adapter_folder_is_loaded_on_its_base(cache: Path, tmp_path: Path, base: str) -> None:
    module, tokenizer = tiny_policy()
    put(cache, "Org/tiny-model", "main", module, tokenizer)
    save_model(tmp_path / "base", module, tokenizer)
    expected = save_adapter(tmp_path / "adapter", base.replace("BASE", str(tmp_path / "base")), module)
    loaded, again = load_model(ModelConfig(path=str(tmp_path / "adapter")))
    torch.testing.assert_close(loaded.model.layers[0].self_attn.q_proj.weight, expected)
    assert not any("lora" in name for name, _ in loaded.named_parameters())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert again.chat_template == tokenizer.chat_template
    # Nobody else can read what has to be merged first.
    merged, _ = load_model(ModelConfig(path=str(tmp_path / "adapter")), weights=False)
    torch.testing.assert_close(merged.model.layers[0].self_attn.q_proj.weight, expected)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_an_adapter_without_its_base_is_told_in_one_line(cache: Path, tmp_path: Path) -> None:
    module, _ = tiny_policy()
    save_adapter(tmp_path / "adapter", "/gone/base", module)
    with pytest.raises(UserError, match="adapter whose base '/gone/base' is not there") as caught:
        load_model(ModelConfig(path=str(tmp_path / "adapter")))
    assert "\n" not in str(caught.value)
    other, tokenizer = tiny_policy(hidden_size=64)
    save_model(tmp_path / "other", other, tokenizer)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(tmp_path / "other")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="does not fit its base") as caught:
        load_model(ModelConfig(path=str(tmp_path / "adapter")))
    assert "\n" not in str(caught.value)


def test_quantized_weights_and_too_large_vocabularies_are_refused(tmp_path: Path) -> None:
    module, tokenizer = tiny_policy()
    save_model(tmp_path / "model", module, tokenizer)
    tokenizer.add_tokens(["<new>"])
    tokenizer.chat_template += "<new>"
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="resize_token_embeddings"):
        load_model(ModelConfig(path=str(tmp_path / "model")))
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(UserError, match="quantized"):
        load_model(ModelConfig(path=str(tmp_path / "model")))
