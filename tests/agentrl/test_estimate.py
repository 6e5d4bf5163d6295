"""The formulas of `--dry-run`, checked against what torch keeps, counts and allocates."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config

from agentrl import train
from agentrl.command.guard import main_guard
from agentrl.config.read import build_config, load_config
from agentrl.config.schema import TinyModelConfig
from agentrl.dry_run.estimate import (
    CPU,
    BatchSplit,
    Item,
    Shape,
    activation_bytes,
    batch_seconds,
    cache_bytes,
    checkpoint_bytes,
    checkpoint_memory,
    engine_memory,
    forward_flops,
    learner_memory,
    sync_memory,
    trained_parameters,
)
from agentrl.dry_run.schedule import _KNOWN_SHAPES, _phases, format_hours, model_shape, warnings_of
from agentrl.environment.pool import EnvPool
from agentrl.environment.spec import EnvironmentSpec
from agentrl.envs.spaces import FreeText
from agentrl.learner.credit import assign_credit
from agentrl.learner.learner import TorchLearner
from agentrl.model.head import default_chunk
from agentrl.model.processes import ALONE
from agentrl.model.tiny import build_tiny_model, build_tokenizer
from agentrl.model.weights import add_lora, computing
from agentrl.rollout.chat import Chat
from agentrl.rollout.engines.base import Sampling
from agentrl.rollout.engines.local import LocalEngine
from agentrl.rollout.rollout import Rollout
from agentrl.rollout.tasks import TaskSampler
from agentrl.runs.folder import read_metrics, read_run_config
from tests.agentrl.helpers import TEXTS
from tests.agentrl.test_model_families import FAMILIES, TOKENIZER, make_model

ROOT = Path(__file__).resolve().parents[2]


def kept_bytes(config: Any, dtype: torch.dtype, *, length: int, casts: bool = False) -> int:
    """Bytes that autograd keeps of one row between forward and backward, parameters (and their casts) apart."""
    module = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(dtype)
    if casts:
        module.compute_dtype = torch.bfloat16
    parameters = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), computing(module):
        states = module.model(input_ids=torch.zeros(1, length, dtype=torch.long), use_cache=False).last_hidden_state
    assert states.requires_grad
    inside = sum(p.numel() for name, p in module.named_parameters() if ".layers." in name and p.dim() > 1)
    return sum(storage.nbytes() for storage in kept.values()) - (2 * inside if casts else 0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("dtype", "size", "casts"), [(torch.float32, 4, False), (torch.bfloat16, 2, False), (torch.float32, 2, True)]
)
def test_a_block_keeps_what_the_formula_says(family: str, dtype: torch.dtype, size: int, casts: bool) -> None:
    config = FAMILIES[family](False)
    config.update({"hidden_size": 64, "intermediate_size": 160, "head_dim": 16, "moe_intermediate_size": 48})
    totals = []
    for layers in (1, 3):
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = ["full_attention"] * layers
        totals.append(kept_bytes(config, dtype, length=128, casts=casts))
    measured = (totals[1] - totals[0]) / 2 / 128
    assert activation_bytes(Shape.of(config), size, casts=casts) == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_operations_are_those_that_torch_counts(family: str) -> None:
    # torch counts no grouped matrix products: experts one by one
    module, length = make_model(family, False, experts_implementation="eager"), 96
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        module(input_ids=torch.full((2, length), 7))
    # torch counts the whole square of attention, of which a causal model needs half.
    shape = Shape.of(module.config)
    square = 2.0 * shape.layers * shape.heads * shape.head_size * length
    counted = counter.get_total_flops() / (2 * length) - square
    assert forward_flops(shape, length=length) == pytest.approx(counted, rel=0.05)


def test_the_cache_is_what_the_embedded_engine_allocates() -> None:
    module = make_model("qwen3", True)
    config = build_config({"rollout": {"max_concurrent": 8, "max_context_tokens": 200}})
    engine = LocalEngine(module, TOKENIZER, max_concurrent=8, max_context_tokens=200)
    asyncio.run(engine.generate(list(range(5, 150)), Sampling(max_new_tokens=50), key=(0,)))
    allocated = sum(t.nbytes for pair in engine._cache.buffers.values() for t in pair)
    shape = Shape.of(module.config)
    assert cache_bytes(shape, 4) * 8 * 200 == allocated
    assert [item.value for item in engine_memory(shape, config)] == [allocated]


def test_parameters_of_the_papers_models_are_the_published_ones() -> None:
    small, smallest, large = (Shape.of(config) for config in _KNOWN_SHAPES.values())
    assert smallest.parameters == pytest.approx(1.54e9, rel=0.005)  # 1.54B, 1.31B outside the embedding
    assert smallest.parameters - smallest.vocabulary * smallest.width == pytest.approx(1.31e9, rel=0.005)
    assert small.parameters == pytest.approx(
        4.02e9, rel=0.005
    )  # model cards: 4.0B, of which 3.6B outside the embedding
    assert small.parameters - small.vocabulary * small.width == pytest.approx(3.6e9, rel=0.01)
    assert large.parameters == pytest.approx(7.61e9, rel=0.005)  # 7.61B, 6.53B outside the embeddings
    assert large.parameters - 2 * large.vocabulary * large.width == pytest.approx(6.53e9, rel=0.005)


def test_vllm_takes_its_whole_share_and_a_sync_comes_before_its_keys_and_values() -> None:
    shape = Shape.of(_KNOWN_SHAPES["Qwen/Qwen2.5-7B-Instruct"])
    options = {"gpu_memory_utilization": 0.5}
    config = build_config(
        {"model": {"dtype": "mixed"}, "rollout": {"engine": "vllm", "engine_options": options, "max_concurrent": 1}}
    )
    for processes in (1, 16):
        engine = engine_memory(shape, config, processes=processes, device_bytes=80 * 2**30)
        assert sum(item.value for item in engine) == 40 * 2**30
    weights, gathered = sync_memory(shape, config)
    assert weights.value == 2 * shape.parameters
    assert gathered.value == 6 * 152_064 * 3_584  # float32 from the shards, bfloat16 for the engine


def test_a_checkpoint_is_held_by_the_first_process_or_of_a_sharded_policy_by_all_its_largest_tensor_by_one() -> None:
    shape = Shape.of(_KNOWN_SHAPES["Qwen/Qwen2.5-7B-Instruct"])
    tables: dict[str, Any] = {"model": {"dtype": "mixed"}, "tracking": {"divergence_every": 0}}
    whole, cut = build_config(tables), build_config({**tables, "learner": {"shard": True}})
    assert checkpoint_bytes(shape, whole) == checkpoint_bytes(shape, cut) == 12 * shape.parameters
    assert {checkpoint_memory(shape, whole, processes=n).value for n in (1, 8)} == {12 * shape.parameters}
    assert checkpoint_memory(shape, cut).value == 12 * shape.parameters
    assert checkpoint_memory(shape, cut, processes=8).value == 12 * shape.parameters / 8
    assert checkpoint_memory(shape, cut, processes=16).value == pytest.approx(12 * 152_064 * 3_584)  # > P / 16
    for every, steps, size in ((25, 100, 12), (25, 110, 16), (20, 100, 16)):  # measured weights lie beside newer ones
        tables["tracking"], tables["checkpoint"] = {"divergence_every": 25}, {"every": every}
        assert checkpoint_bytes(shape, build_config({**tables, "train": {"steps": steps}})) == size * shape.parameters
    tables["model"]["lora_rank"] = 16
    assert checkpoint_bytes(shape, build_config(tables)) < 8.2 * shape.parameters
    assert "2 adapters' " in checkpoint_memory(shape, build_config(tables)).formula


def test_the_reference_is_counted_in_its_own_type_cut_as_the_policy_and_not_at_all_with_adapters() -> None:
    def reference(processes: int = 1, **model: Any) -> float:
        tree = {"model": {"dtype": "mixed", **model}, "loss": {"kl_coef": 0.01}, "learner": {"shard": True}}
        items = learner_memory(shape, build_config(tree), tokens=64, chunk=64, processes=processes)
        return sum(item.value for item in items if item.name == "reference policy")

    shape = Shape.of(FAMILIES["qwen3"](False))
    assert reference() == 2 * shape.parameters
    assert reference(4) == 2 * shape.parameters / 4
    assert reference(lora_rank=4) == 0


def test_offloaded_moments_leave_the_device_and_all_weights_of_4b_train_on_one_card_of_80_gb() -> None:
    def phases(shard: Any, processes: int = 1) -> dict[str, float]:
        config = load_config(ROOT / "configs/paper/alfworld_qwen3_4b.toml", {"learner.shard": shard})
        shape = Shape.of(model_shape(config))
        return {name: sum(item.value for item in items) for name, items, _ in _phases(config, shape, processes)}

    shape = Shape.of(_KNOWN_SHAPES["Qwen/Qwen3-4B-Instruct-2507"])
    plain, offloaded = phases(False), phases("offload")
    largest = shape.vocabulary * shape.width * 4
    reference = 2 * shape.parameters
    moved = 8 * shape.parameters - 2 * largest + reference
    assert plain["memory of an update"] - offloaded["memory of an update"] == pytest.approx(moved)
    assert offloaded["memory of a rollout"] == pytest.approx(0.4 * 80 * 2**30, rel=0.01)
    assert max(plain.values()) > 80 * 2**30 > 1.1 * max(offloaded.values())
    cut, cut_offloaded = (phases(shard, 4)["memory of an update"] for shard in (True, "offload"))
    assert cut - cut_offloaded == pytest.approx((8 * shape.parameters - 2 * largest) / 4)


def test_shards_divide_what_they_hold_and_reuse_multiplies_the_time_of_updates() -> None:
    shape = Shape.of(FAMILIES["qwen3"](False))
    config = build_config({"model": {"path": "some/model"}, "learner": {"shard": True}})
    alone = {item.name: item.value for item in learner_memory(shape, config, tokens=64, chunk=64)}
    four = {item.name: item.value for item in learner_memory(shape, config, tokens=64, chunk=64, processes=4)}
    for name in ("weights", "gradients", "optimizer"):
        assert four[name] == alone[name] / 4
    assert four["activations"] == alone["activations"]
    once, thrice = (batch_seconds(shape, config, updates=k, device=CPU) for k in (1, 3))
    assert thrice[-1].value == 3 * once[-1].value
    assert thrice[0] == once[0]


@pytest.mark.parametrize("targets", [None, ["q_proj", "v_proj", "down_proj", "lm_head"]])
def test_adapters_have_the_parameters_that_the_formula_counts(targets: list[str] | None) -> None:
    pytest.importorskip("peft", reason="the extra lora is not installed")
    tree = {"lora_rank": 3} | ({"lora_targets": targets} if targets else {})
    config, module = build_config({"model": tree}), make_model("qwen3", False)
    shape = Shape.of(module.config)
    add_lora(module, config.model, seed=0)
    counted = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert trained_parameters(shape, config) == counted
    items = {item.name: item.value for item in learner_memory(shape, config, tokens=64, chunk=64)}
    assert (items["gradients"], items["optimizer"]) == (4 * counted, 8 * counted)
    assert trained_parameters(shape, build_config({})) == shape.parameters


MODELS: list[tuple[type, dict[str, Any], dict[str, Any]]] = [
    (Qwen3Config, {"vocab_size": 4096, "num_hidden_layers": 6, "tie_word_embeddings": True}, {}),
    (Qwen2Config, {"vocab_size": 16384, "num_hidden_layers": 3, "tie_word_embeddings": False}, {}),
    (
        Qwen3Config,
        {"vocab_size": 8192, "num_hidden_layers": 6, "tie_word_embeddings": False},
        {"model": {"gradient_checkpointing": True}},
    ),
    (
        Qwen3Config,
        {"vocab_size": 4096, "num_hidden_layers": 6, "tie_word_embeddings": True},
        {"model": {"dtype": "mixed"}},
    ),
]
MEASURE = """
import gc, json, sys
import numpy as np, torch, transformers
from agentrl.config.read import build_config
from agentrl.learner.batch import Batch, BatchRow
from agentrl.learner.learner import TorchLearner
from agentrl.model.load import recompute_activations

def status(name):  # bytes; VmHWM is this process's own peak, where ru_maxrss starts at the parent's
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024

def update(shape, tree, length, rows):
    config = build_config({**tree, "tracking": {"divergence_every": 0}})  # whose copies lie on the host
    module = transformers.AutoModelForCausalLM.from_config(shape, attn_implementation="sdpa").eval()
    module.compute_dtype = torch.bfloat16 if config.model.dtype == "mixed" else torch.float32
    if config.model.gradient_checkpointing:
        recompute_activations(module)
    random, trained = np.random.default_rng(0), np.arange(length) >= length // 2
    ids = [random.integers(0, shape.vocab_size, length).astype(np.int32) for _ in range(rows)]
    none = np.zeros(length, np.float32)
    batch = [BatchRow(x, trained, trained * np.float32((-1) ** i), none) for i, x in enumerate(ids)]
    TorchLearner(module, config, pad_id=0).update(Batch(batch, rows * int(trained.sum()), 2, 2))

name, keys, tree = json.loads(sys.argv[1])
make = getattr(transformers, name)
torch.set_num_threads(1)
small = {**keys, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 64}
update(make(**small), tree, 16, 4)  # libraries load what they need
gc.collect()
before = status("VmRSS")
update(make(**keys), tree, 512, 8)
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize("model", MODELS, ids=["tied", "untied", "checkpointing", "mixed precision"])
def test_an_update_peaks_where_the_formulas_say(model: tuple[type, dict[str, Any], dict[str, Any]]) -> None:
    make, given, tree = model
    keys = {
        "hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 64, **given,
    }  # fmt: skip
    tree = {
        **tree,
        "gate": {"kind": "none"},
        "loss": {"kl_coef": 0.0},
        "learner": {"max_reuse": 2, "microbatch_tokens": 2048},
    }
    # Every tensor in pages of its own, which go back at once: what counts is what is alive.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE, json.dumps([make.__name__, keys, tree])]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    shape = Shape.of(make(**keys))
    chunk = min(1024, default_chunk(shape.vocabulary, torch.device("cpu")))
    items = learner_memory(shape, build_config(tree), tokens=2048, chunk=chunk)
    estimate = sum(item.value for item in items)
    print(f"{estimate / float(done.stdout):.2f} of the measured peak")
    assert estimate == pytest.approx(float(done.stdout), rel=0.15)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the figures are those of a machine without a GPU")
def test_too_little_memory_or_disk_is_a_warning() -> None:
    giga = 1 << 30
    assert warnings_of(20 * giga, giga, memory=23 * giga, disk=2 * giga, processes_here=1) == []
    memory, disk = warnings_of(34 * giga, 3 * giga, memory=23 * giga, disk=2 * giga, processes_here=1)
    assert memory.startswith("a process needs about 34.0 GiB and this machine has 23.0 GiB for it")
    assert disk == "checkpoints take 3.0 GiB, and 2.0 GiB are free on this disk"
    assert len(warnings_of(20 * giga, 0, memory=23 * giga, disk=giga, processes_here=2)) == 1
    assert (format_hours(7530), format_hours(59)) == ("2 h 06 min", "0 h 01 min")


def test_one_step_ahead_a_batch_takes_as_long_as_its_longer_half() -> None:
    items = [Item("decoding", 5.0, ""), Item("reading prompts", 1.0, ""), Item("updates", 3.0, "")]
    overlap = BatchSplit.of([*items, Item("reference policy", 1.0, "")])
    assert (overlap.in_turn, overlap.ahead, overlap.engines) == (10.0, 6.0, 1.5)
    assert overlap.share(2) == (1, 1)
    assert overlap.share(5) == (2, 3)  # max(4 / 2, 6 / 3)
    assert overlap.share(16) == (6, 10)  # max(4 / 6, 6 / 10) = 2 / 3; 7 : 9 would be as good
    assert BatchSplit(1.0, 99.0).share(8) == (7, 1)


class Reciter(gymnasium.Env[str, str]):
    """A long text, and an answer as long as may be; won where its length is even."""

    metadata: dict[str, Any] = {}  # noqa: RUF012
    observation_space = action_space = FreeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        return " ".join([TEXTS[0]] * 14), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "", float(len(action) % 2), True, False, {}


@pytest.mark.evidence  # seconds of this machine, which another need not have
def test_the_split_between_rollouts_and_updates_is_the_measured_one_within_a_factor_of_two() -> None:
    """Rows that are full, in a model large enough that arithmetic is what takes the time, in CPU seconds."""
    tokenizer = build_tokenizer(TEXTS)
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_layers": 4, "num_heads": 8, "num_kv_heads": 4}
    module = build_tiny_model(TinyModelConfig(**sizes), tokenizer).eval()
    tree = {
        "env": {"id": f"{__name__}:Reciter"},
        "rollout": {"max_turns": 1, "max_new_tokens": 64, "max_context_tokens": 256, "max_concurrent": 64},
        "train": {"groups_per_step": 8, "group_size": 8},
        "loss": {"kl_coef": 0.0},
        "learner": {"max_reuse": 2},
        "gate": {"kind": "none"},
        "tracking": {"divergence_every": 0},
    }
    config = build_config(tree)
    engine = LocalEngine(module, tokenizer, max_concurrent=64, max_context_tokens=256)
    chat, pool = Chat(tokenizer, stop_ids=[tokenizer.eos_token_id]), EnvPool(EnvironmentSpec(config.env.id, "train"))
    rollout = Rollout(engine, chat, pool, config.rollout, seed=0)
    learner = TorchLearner(module, config, pad_id=0)
    sampler = TaskSampler(config.env.id, "train", indices=None, seed=0)
    for _ in range(2):  # the first one warms up
        batch = rollout.play(sampler.take(8), group_size=8)
        engine.load_weights([], version=1)
        update = learner.update(assign_credit(batch.groups, config, learner=learner, processes=ALONE))
    assert update.num_steps == 2
    assert sum(len(row.ids) for row in batch.rows) > 0.9 * 64 * 256
    split = BatchSplit.of(batch_seconds(Shape.of(module.config), config, updates=2, device=CPU))
    measured = BatchSplit(batch.seconds[1], update.seconds[1])
    print(f"rollouts : updates {split.engines:.2f} estimated, {measured.engines:.2f} measured, {measured}")
    assert 0.5 < split.engines / measured.engines < 2


@pytest.mark.evidence
def test_the_split_of_a_tiny_agent_that_plays_many_turns_is_the_measured_one_within_a_factor_of_two(
    tmp_path: Path,
) -> None:
    """The quickstart, in CPU seconds: starting each block and the turns' text count for more than arithmetic.

    Its policy has learned to stop nowhere, so all turns and rows are full, as the estimate has them.
    """
    settings = {
        "warmstart": {"episodes": 0}, "train": {"steps": 2, "groups_per_step": 4},
        "rollout": {"max_new_tokens": 24}, "gate": {"kind": "none"},
        "eval": {"every": 0, "tasks": 4}, "checkpoint": {"every": 0},
    }  # fmt: skip
    words = [f"--{table}.{key}={value}" for table, keys in settings.items() for key, value in keys.items()]
    assert main_guard(lambda: train.main(["quickstart", *words, "--run-dir", str(tmp_path / "run")])) == 0
    last = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "train"][-1]
    config = build_config(read_run_config(tmp_path / "run"))
    split = BatchSplit.of(batch_seconds(Shape.of(model_shape(config)), config, updates=4, device=CPU))
    measured = BatchSplit(last["time/rollout_cpu_s"], last["time/update_cpu_s"])
    print(f"rollouts : updates {split.engines:.2f} estimated, {measured.engines:.2f} measured, {measured}")
    assert 0.5 < split.engines / measured.engines < 2
