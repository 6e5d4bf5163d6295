"""A sharded policy's checkpoint: each process writes its share, anybody reads it, and a damaged one is not used."""

import copy
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import warnings
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from agentrl import evaluate, train
from agentrl.command.guard import main_guard
from agentrl.config.schema import Config, ModelConfig, TinyModelConfig
from agentrl.errors import CheckpointError, UserError
from agentrl.learner.learner import TorchLearner
from agentrl.model.load import load_model
from agentrl.model.processes import ALONE, Processes
from agentrl.model.stored import own_part, stored_tensors
from agentrl.model.tiny import build_tiny_model, build_tokenizer
from agentrl.model.weights import add_lora, gather_weights, shard, share_of
from agentrl.runs.checkpoint import (
    TrainerState,
    checkpoint_folder,
    find_damage,
    load_adapter,
    load_trainer_state,
    newest_checkpoint,
    save_checkpoint,
)
from agentrl.runs.checkpoint_parts import save_table
from agentrl.runs.folder import read_metrics
from tests.agentrl.helpers import TEXTS, tiny_policy
from tests.agentrl.processes import _child, together
from tests.agentrl.test_distributed import RECORDED, SHARD, learn_batch, make_learner, settings
from tests.agentrl.test_launch import SMALL, finish, launch
from tests.agentrl.test_model_families import make_double
from tests.agentrl.test_train import CONFIG, ROOT

TRACKING = {"divergence_every": 2}
SHARDED = settings(learner=SHARD, tracking=TRACKING)
LORA = settings(learner=SHARD, model={"lora_rank": 3}, tracking=TRACKING)
OFFLOAD = settings(learner={**SHARD, "shard": "offload"}, tracking=TRACKING)


def save(run: Path, learner: TorchLearner, processes: Processes, *, spread: bool = True, tie: bool = False) -> Path:
    shape, tokenizer = tiny_policy(tie=tie, dtype=torch.float64)
    state = TrainerState(learner.num_batches, learner.state_dict(spread=spread), {"position": 5}, {})
    writers = processes if spread else ALONE
    return save_checkpoint(run, state, shape=shape, tokenizer=tokenizer, keep=2, writers=writers)


def learn_and_save(processes: Processes, run: Path, config: Config, tie: bool) -> dict[str, Any]:
    """Checkpoints after 2 and 3 batches, the second between two measurements; the whole state there."""
    learner = make_learner(config, processes, tie=tie)
    for number in range(3):
        learn_batch(learner, RECORDED[number], config, processes)
        learner.measure()
        if number:
            save(run, learner, processes, tie=tie)
    return learner.state_dict()


def resume(processes: Processes, folder: Path, config: Config, tie: bool) -> dict[str, Any]:
    """The whole state of a learner that went on from a checkpoint."""
    module, tokenizer = load_model(ModelConfig(path=str(folder), dtype="float64"))
    if config.model.lora_rank:
        module, tokenizer = tiny_policy(tie=tie, dtype=torch.float64)
        add_lora(module, config.model, seed=0)
        load_adapter(folder, module)
    if config.learner.shard and processes.count > 1:
        shard(module)
    learner = TorchLearner(module, config, pad_id=tokenizer.pad_token_id, processes=processes)
    learner.load_state_dict(load_trainer_state(folder).learner)
    state = copy.deepcopy(learner.state_dict())
    assert learn_batch(learner, RECORDED[3], config, processes)
    return state


def assert_equal(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, dict):
            assert_equal(found[key], value)
        elif isinstance(value, torch.Tensor):
            assert found[key].dtype == value.dtype
            assert torch.equal(found[key], value), key
        else:
            assert found[key] == value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "tie", "writers"),
    [(SHARDED, False, 2), (SHARDED, True, 6), (OFFLOAD, True, 2), (LORA, False, 2)],
    ids=["sharded", "tied, processes without a share", "offload", "lora"],
)
def test_what_all_processes_wrote_comes_back_bit_by_bit_in_any_number_sharded_or_not(
    tmp_path: Path, config: Config, tie: bool, writers: int
) -> None:
    if config.model.lora_rank:
        pytest.importorskip("peft", reason="the extra lora is not installed")
    saved, *others = together(writers, learn_and_save, tmp_path, config, tie)
    assert all(other["weights"] == {} for other in others)
    assert saved["optimizer"]
    assert saved["monitor"].keys() == saved["weights"].keys()
    folder = newest_checkpoint(tmp_path)
    assert folder == checkpoint_folder(tmp_path, 3)
    parts = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(parts) == min(writers, 4 if tie else 5), "embedding, two blocks, norm, head"
    assert parts[0] == f"model-00001-of-{writers:05}.safetensors"
    assert not (folder / "trainer" / "optimizer.safetensors").exists()
    listed = json.loads((folder / "trainer" / "manifest.json").read_text())
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert listed.keys() == names - {"trainer/manifest.json"}
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert_equal({n: p.detach() for n, p in plain.named_parameters()}, saved["weights"])
    whole = settings(model=config.model.model_dump(), tracking=TRACKING)
    for count, how in ((1, config), (2, config), (4, config), (2, whole)):
        found = together(count, resume, folder, how, tie)[0]
        if config.model.lora_rank:  # merged anew from parts of other sizes, which rounds otherwise
            found["weights"] = saved["weights"]
        assert_equal(found, saved)


def shares(processes: Processes, run: Path) -> tuple[Any, Any]:
    """Names and bytes of what this process holds of a model with experts, which it writes with the others."""
    module = make_double("qwen3_moe", tie=False)
    cut = make_double("qwen3_moe", tie=False)
    shard(cut)
    learner = TorchLearner(cut, SHARDED, pad_id=0, processes=processes)
    state = learner.state_dict(spread=True)
    _, tokenizer = tiny_policy()
    save_checkpoint(run, TrainerState(0, state, {}, {}), shape=module, tokenizer=tokenizer, keep=1, writers=processes)
    kept = gather_weights(cut, keep=share_of(cut, processes))
    return sorted(kept), sum(tensor.nbytes for tensor in kept.values())


@pytest.mark.slow
def test_shares_are_disjoint_and_even_and_experts_are_read_as_transformers_writes_them(tmp_path: Path) -> None:
    (first, some), (second, others) = together(2, shares, tmp_path)
    module = make_double("qwen3_moe", tie=False)
    assert not set(first) & set(second)
    assert {*first, *second} == dict(module.named_parameters()).keys()
    assert 0.5 < some / others < 2
    folder = newest_checkpoint(tmp_path)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    module.save_pretrained(tmp_path / "plain")
    written = stored_tensors(tmp_path / "plain" / "model.safetensors")
    assert index["weight_map"].keys() == written.keys()
    assert index["metadata"]["total_size"] == some + others
    for name, tensor in written.items():
        assert torch.equal(stored_tensors(folder / index["weight_map"][name])[name].read(), tensor.read())
    read = AutoModelForCausalLM.from_pretrained(folder)
    assert_equal(dict(read.state_dict()), dict(module.state_dict()))


def look(processes: Processes, run: Path) -> tuple[str, list[str], str | None]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        folder = newest_checkpoint(run, processes)
    return folder.name, [str(warning.message) for warning in seen], find_damage(run / "checkpoints" / "step-000003")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "damage", "problem"),
    [
        ("model-00002-of-00002.safetensors", lambda path: path.unlink(), "is missing"),
        ("model-00001-of-00002.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-8]), "were written"),
        ("trainer/optimizer-00002-of-00002.safetensors", lambda path: path.write_bytes(flipped(path)), "has changed"),
        ("model.safetensors.index.json", lambda path: path.unlink(), "is missing"),
    ],
)
def test_a_damaged_or_missing_part_is_named_and_the_checkpoint_before_is_used(
    tmp_path: Path, name: str, damage: Any, problem: str
) -> None:
    together(2, learn_and_save, tmp_path, SHARDED, False)
    damage(checkpoint_folder(tmp_path, 3) / name)
    with pytest.warns(UserWarning, match=f"step-000003 is damaged .*{problem}.*; trying the one before it"):
        assert newest_checkpoint(tmp_path) == checkpoint_folder(tmp_path, 2)
    first, second = together(2, look, tmp_path)
    assert first[0] == second[0] == "step-000002"
    assert (len(first[1]), second[1]) == (1, []), "only the first process speaks"
    assert first[2] == second[2]
    assert first[2] is not None
    assert first[2].startswith(name)


def flipped(path: Path) -> bytes:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    return bytes(content)


def die_before_the_rename(processes: Processes, run: Path) -> None:
    """The first process is killed when all have written."""
    learner = make_learner(SHARDED, processes, tie=False)
    save(run, learner, processes)
    learn_batch(learner, RECORDED[0], SHARDED, processes)
    if processes.is_first:
        Path.rename = renaming_kills(Path.rename)  # type: ignore[method-assign]
    save(run, learner, processes)


def renaming_kills(rename: Any) -> Any:
    def kill(path: Path, target: Path) -> Path:
        if target.name == "step-000001":
            os.kill(os.getpid(), signal.SIGKILL)
        renamed: Path = rename(path, target)
        return renamed

    return kill


@pytest.mark.slow
def test_a_kill_between_the_parts_and_the_rename_leaves_no_checkpoint_and_the_next_one_is_whole(tmp_path: Path) -> None:
    context = get_context("fork")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    _, sender = context.Pipe(duplex=False)
    two = [
        context.Process(target=_child, args=(rank, 2, port, sender, die_before_the_rename, (tmp_path,)))
        for rank in range(2)
    ]
    for process in two:
        process.start()
    for process in two:
        process.join(100)
    assert [process.exitcode for process in two] == [-signal.SIGKILL, 1], "the other one lost contact"
    draft = tmp_path / "checkpoints" / ".step-000001.writing"
    assert len(list(draft.glob("model-*.safetensors"))) == 2
    assert (draft / "trainer" / "manifest.json").exists()
    assert newest_checkpoint(tmp_path).name == "step-000000"
    together(2, learn_and_save, tmp_path, SHARDED, False)
    assert newest_checkpoint(tmp_path).name == "step-000003"


def find_no_room(processes: Processes, run: Path) -> list[str]:
    """The second process may write only small files; then it does not see the folder at all."""
    learner = make_learner(SHARDED, processes, tie=False)
    words = []
    if processes.rank == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
    for folder in (run, run / str(processes.rank)):
        try:
            save(folder, learner, processes)
        except (OSError, UserError) as error:
            words.append(str(error))
    return words


@pytest.mark.slow
def test_where_one_process_cannot_write_all_stop_with_its_error_and_nothing_is_left(tmp_path: Path) -> None:
    first, second = together(2, find_no_room, tmp_path)
    assert first[0] == second[0]
    assert "File too large" in first[0]
    assert all(words[1].startswith("process 1 does not see") for words in (first, second))
    assert list((tmp_path / "checkpoints").iterdir()) == []
    with pytest.raises(CheckpointError, match="ended before the first one was written"):
        newest_checkpoint(tmp_path)


@pytest.mark.slow
def test_a_launched_sharded_run_is_evaluated_and_goes_on_in_one_process(tmp_path: Path) -> None:
    config, run = tmp_path / "toy.toml", tmp_path / "run"
    config.write_text(CONFIG.replace("[warmstart]", f'[warmstart]\ncache_dir = "{tmp_path / "cache"}"'))
    finish(launch(2, config, *SMALL, "--learner.shard", "true", "--run-dir", run, "--train.steps", "2"))
    folder = newest_checkpoint(run)
    assert len(list(folder.glob("model-*-of-00002.safetensors"))) == 2
    found = []
    for number, words in enumerate(([str(run)], [str(folder), "--config", str(config), *SMALL])):
        words += ["--json", str(tmp_path / f"{number}.json"), "--out", str(tmp_path / f"evaluation-{number}")]
        assert main_guard(lambda words=words: evaluate.main(words)) == 0  # type: ignore[misc]
        found.append(json.loads((tmp_path / f"{number}.json").read_text()))
    last = read_metrics(run)[-1]
    assert [each["eval/success"] for each in found] == [last["eval/success"]] * 2
    assert main_guard(lambda: train.main(["--resume", str(run), "--train.steps", "3"])) == 0
    assert (newest_checkpoint(run) / "model.safetensors").exists(), "one process cuts nothing"


def measure_saving(processes: Processes, run: Path, spread: bool) -> tuple[float, float]:
    """(MiB that a save adds at its peak, MiB of weights and moments) of this process."""
    tokenizer = build_tokenizer(TEXTS)
    shape = TinyModelConfig(hidden_size=512, intermediate_size=2048, num_layers=6, num_heads=8, num_kv_heads=8)
    module = build_tiny_model(shape, tokenizer, seed=0)
    plain = build_tiny_model(shape, tokenizer, seed=0).to("meta")
    whole = 3 * sum(parameter.nbytes for parameter in module.parameters()) / 2**20
    shard(module)
    learner = TorchLearner(module, SHARDED, pad_id=0, processes=processes)
    learner.monitor.previous.clear()
    for parameter in learner.policy.parameters:
        moments = {kind: torch.ones_like(parameter) for kind in ("exp_avg", "exp_avg_sq")}
        learner.optimizer.state[parameter] = {"step": torch.tensor(1.0), **moments}
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    state = TrainerState(1, learner.state_dict(spread=spread), {}, {})
    if spread or processes.is_first:
        writers = processes if spread else ALONE
        save_checkpoint(run, state, shape=plain, tokenizer=tokenizer, keep=1, writers=writers)
    processes.wait()
    return status("VmHWM") - before, whole


def status(key: str) -> float:
    """MiB that this process holds, or held at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


@pytest.mark.slow
def test_no_process_holds_all_of_a_sharded_checkpoint(tmp_path: Path) -> None:
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system does not measure peaks anew")
    # in a process of its own: here earlier tests have left memory that may be used again without a trace
    script = (
        "import json, pathlib, sys; from tests.agentrl.processes import together\n"
        "from tests.agentrl.test_checkpoint_parts import measure_saving\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "print(json.dumps([together(2, measure_saving, folder / str(s), s) for s in (False, True)]))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, check=True)
    alone, shared = json.loads(done.stdout.splitlines()[-1])
    print("a save adds MiB, (peak, weights and moments) by process:", alone, shared)
    assert alone[0][0] > 0.9 * alone[0][1], "the first process held all"
    for peak, whole in shared:
        assert peak < 0.7 * whole


def test_parts_of_stored_tensors_are_those_of_the_whole_and_outlive_their_file(tmp_path: Path) -> None:
    rows = torch.arange(12.0).view(4, 3)
    save_table(tmp_path / "a.safetensors", {"rows": rows.T, "step": torch.tensor(3.0)})
    stored = stored_tensors(tmp_path / "a.safetensors")
    parts = [stored["rows"].read(part) for part in (None, slice(1, 3), slice(3, 3))]
    step = own_part(stored["step"], torch.zeros(2))
    stored.clear()
    (tmp_path / "a.safetensors").write_bytes(b"")
    for found, expected in zip(parts, (rows.T, rows.T[1:3], rows.T[3:]), strict=True):
        assert torch.equal(found, expected)
    assert step == 3.0
