"""Compiled updates: what is asked for, that they learn what plain ones do, and that nobody else runs compiled."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._inductor.config as inductor
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from agentrl import train
from agentrl.command.guard import main_guard
from agentrl.config.schema import Config
from agentrl.errors import UserError
from agentrl.learner.batch import Batch, BatchRow
from agentrl.learner.learner import TorchLearner
from agentrl.model.anatomy import blocks
from agentrl.model.compiled import Compiler, asked_compiler
from agentrl.model.processes import ALONE, Processes
from agentrl.model.weights import plain_weights, shard
from agentrl.rollout.engines.base import Sampling
from agentrl.rollout.engines.local import LocalEngine
from agentrl.runs.checkpoint import newest_checkpoint
from tests.agentrl.helpers import tiny_policy, toy_config
from tests.agentrl.processes import together
from tests.agentrl.test_architectures import make
from tests.agentrl.test_distributed import SETTINGS, assert_same, learn
from tests.agentrl.test_launch import finish, launch
from tests.agentrl.test_model_families import FAMILIES, make_double
from tests.agentrl.test_train import ROOT

# What torch's own tracer warns of to itself, and hides.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

INDUCTOR = Compiler("inductor")
SLOW, EVIDENCE = pytest.mark.slow, pytest.mark.evidence
TRACED = Compiler("aot_eager")
"""The same graphs, forward and backward, without kernels of their own: seconds instead of a minute."""
PATIENCE_S = 600
CLOSE = 1e-9
"""Relative deviation of a compiled update from the plain one, in float64."""


@pytest.fixture
def graphs() -> Iterator[Any]:
    """How many graphs were made so far, from none."""
    torch.compiler.reset()
    counters.clear()
    with inductor.patch(compile_threads=1):  # a pool of compilers would not survive the fork of `together`
        yield lambda: counters["stats"]["unique_graphs"]
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"BACKEND": "NO", "MODE": "max-autotune"}, None),
        ({"BACKEND": "INDUCTOR", "MODE": "default", "USE_DYNAMIC": "False"}, INDUCTOR),
        ({"BACKEND": "aot_eager", "USE_FULLGRAPH": "True"}, Compiler("aot_eager", fullgraph=True)),
    ],
)
def test_the_compiler_is_the_launchers(
    variables: dict[str, str], expected: Compiler | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(variables, monkeypatch)
    assert asked_compiler() == expected


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"BACKEND": "inductr"}, ["--dynamo_backend", "'inductr'", '"inductor"']),
        ({"BACKEND": "fx2trt"}, ["--dynamo_backend", '"fx2trt"', '"no"']),
        ({"BACKEND": "inductor", "MODE": "reduce-overhead"}, ["--dynamo_mode", '"default"', '"reduce-overhead"']),
    ],
)
def test_a_compiler_that_cannot_be_had_is_one_line(
    variables: dict[str, str], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(variables, monkeypatch)
    with pytest.raises(UserError) as caught:
        asked_compiler()
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def ask(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ACCELERATE_DYNAMO_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(f"ACCELERATE_DYNAMO_{name}", value)


def make_learner(compiler: Compiler | None) -> TorchLearner:
    module, tokenizer = tiny_policy(dtype=torch.float64)
    config = toy_config(learner={"lr": 1e-3, "max_reuse": 2, "microbatch_tokens": 200}, gate={"kind": "none"})
    return TorchLearner(module, config, pad_id=tokenizer.pad_token_id, compiler=compiler)


def batch_of(lengths: list[int]) -> Batch:
    """Rows of random tokens that are trained behind the first two."""
    random, rows = np.random.default_rng(1), []
    for number, length in enumerate(lengths):
        trained = np.arange(length) >= 2
        worth = np.where(trained, 1.0 if number % 2 else -1.0, 0).astype(np.float32)
        ids = random.integers(5, 200, size=length).astype(np.int32)
        rows.append(BatchRow(ids, trained, worth, np.where(trained, -1.0, 0).astype(np.float32)))
    return Batch(rows, sum(int(row.trained.sum()) for row in rows), len(rows), len(rows))


def test_only_the_learners_passes_run_compiled_and_names_stay(graphs: Any) -> None:
    learner, plain = make_learner(Compiler("eager")), make_learner(None)
    assert plain.policy.compiled is None
    batch = batch_of([9, 9, 7, 5])
    energies = [one.update(batch).steps[-1]["head_energy"] for one in (learner, plain)]
    assert energies[0] == energies[1], "the backend `eager` runs torch's own operations"
    made = graphs()
    assert made >= 1
    assert not any("forward" in vars(block) for block in blocks(learner.module))
    engine = LocalEngine(learner.module, tiny_policy()[1], max_concurrent=2, max_context_tokens=64)
    sampling = Sampling(max_new_tokens=4)
    asyncio.run(engine.generate([5, 6, 7], sampling, key=(0,)))
    learner.score([5, 6, 7, 8], 1.0)
    assert graphs() == made, "engine and score take the plain blocks"
    names = list(learner.state_dict()["weights"])
    assert names == list(plain.state_dict()["weights"])
    assert not any("_orig_mod" in name for name in (*names, *learner.policy.names))


def test_a_compiler_that_gives_up_is_one_line_and_the_blocks_are_plain_again(graphs: Any) -> None:
    @torch._dynamo.register_backend(name="agentrl_broken")
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no working compiler found\nin all the places")

    learner = make_learner(Compiler("agentrl_broken"))
    with pytest.raises(UserError, match=r"no working compiler found\. Start without it") as caught:
        learner.update(batch_of([5, 4]))
    assert "\n" not in str(caught.value)
    assert not any("forward" in vars(block) for block in blocks(learner.module))


@pytest.mark.slow
def test_without_the_option_no_compiler_is_loaded() -> None:
    script = (
        "import sys\n"
        "from tests.agentrl.test_compiled import batch_of, make_learner\n"
        "from agentrl.model.compiled import asked_compiler\n"
        "make_learner(asked_compiler()).update(batch_of([5, 4]))\n"
        "assert 'torch._inductor.compile_fx' not in sys.modules\n"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_DYNAMO_")}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env={**env, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_20_widths_of_rows_share_a_few_graphs(graphs: Any) -> None:
    learner = make_learner(TRACED)
    for width in range(5, 25):
        learner.update(batch_of([width, width - 1, width - 1, width - 2, 3]))
    assert 2 <= graphs() <= 5


def compare(found: dict[str, Any], plain: dict[str, Any]) -> None:
    """Steps, head energies and weights, far closer than processes have to be."""
    assert_same([found], plain)
    for step, wanted in zip(found["steps"], plain["steps"], strict=True):
        assert step["head_energy"] == pytest.approx(wanted["head_energy"], rel=CLOSE)
    for name, weight in plain["weights"].items():
        assert float((found["weights"][name] - weight).norm()) <= CLOSE * float(weight.norm()), name


@pytest.fixture
def _float64_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen's norms compute in float32, where compiled sums round elsewhere; what remains to compare is exact."""

    def forward(self: Any, states: torch.Tensor) -> torch.Tensor:
        return self.weight * states * torch.rsqrt(states.square().mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(Qwen3RMSNorm, "forward", forward)


@pytest.mark.usefixtures("_float64_norms")
@pytest.mark.parametrize(
    ("name", "compiler"),
    [
        pytest.param("plain", INDUCTOR, marks=SLOW),
        pytest.param("checkpointing", TRACED, marks=SLOW),
        pytest.param("lora", INDUCTOR, marks=EVIDENCE),
        pytest.param("m2po", TRACED, marks=EVIDENCE),
        pytest.param("kl", TRACED, marks=EVIDENCE),
    ],
    ids=lambda value: str(getattr(value, "backend", value)),
)
def test_compiled_updates_are_the_plain_ones(name: str, compiler: Compiler, graphs: Any) -> None:
    if name == "lora":
        pytest.importorskip("peft", reason="the extra lora is not installed")
    config, tie = SETTINGS[name]
    compiled = learn(ALONE, config, tie, range(7), compiler=compiler)
    assert {step["k"] for step in compiled["steps"]} == {1, 2, 3}
    assert graphs() >= 1
    compare(compiled, learn(ALONE, config, tie, range(7)))


@pytest.mark.usefixtures("_float64_norms", "graphs")
@pytest.mark.parametrize(
    ("count", "name", "compiler"),
    [
        pytest.param(2, "plain", INDUCTOR, marks=EVIDENCE),
        pytest.param(2, "sharded", INDUCTOR, marks=EVIDENCE),
        pytest.param(2, "lora", TRACED, marks=EVIDENCE),
        pytest.param(2, "sharded tied", TRACED, marks=SLOW),
        pytest.param(2, "sharded lora", TRACED, marks=EVIDENCE),
        pytest.param(2, "sharded checkpointing", TRACED, marks=EVIDENCE),
        pytest.param(4, "plain", TRACED, marks=EVIDENCE),
        pytest.param(4, "sharded", TRACED, marks=EVIDENCE),
    ],
    ids=lambda value: str(getattr(value, "backend", value)),
)
def test_compiled_updates_of_several_processes_are_the_plain_ones_of_one(
    count: int, name: str, compiler: Compiler
) -> None:
    if "lora" in name:
        pytest.importorskip("peft", reason="the extra lora is not installed")
    config, tie = SETTINGS[name]
    plain = learn(ALONE, config, tie, range(3))
    for compiled, made in together(count, learn_compiled, config, tie, compiler, patience_s=PATIENCE_S):
        assert made >= 1
        compare(compiled, plain)


def learn_compiled(processes: Processes, config: Config, tie: bool, compiler: Compiler) -> tuple[dict[str, Any], int]:
    """`learn`, and the number of graphs that it took."""
    results = learn(processes, config, tie, range(3), compiler=compiler)
    return results, counters["stats"]["unique_graphs"]


def energies_in_mixed_precision(processes: Processes, compiler: Compiler | None) -> list[float]:
    """Head energy of two gradients with bfloat16 products over float32 weights; several processes hold shards."""
    module, tokenizer = tiny_policy()
    module.compute_dtype = torch.bfloat16
    if processes.count > 1:
        shard(module)
    config = toy_config(learner={"lr": 1e-4, "max_reuse": 2, "microbatch_tokens": 200}, gate={"kind": "none"})
    learner = TorchLearner(module, config, pad_id=tokenizer.pad_token_id, processes=processes, compiler=compiler)
    rows = processes.share(batch_of([24, 23, 23, 9, 8, 8]).rows)
    steps = learner.update(Batch(rows, sum(int(row.trained.sum()) for row in rows), 2, 2)).steps
    return [step["head_energy"] for step in steps]


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("count", [pytest.param(1, marks=SLOW), pytest.param(2, marks=EVIDENCE)])
def test_mixed_precision_is_compiled_whole_and_sharded(count: int) -> None:
    def energies(compiler: Compiler | None) -> list[list[float]]:
        if count == 1:
            return [energies_in_mixed_precision(ALONE, compiler)]
        return together(count, energies_in_mixed_precision, compiler, patience_s=PATIENCE_S)

    for compiled, plain in zip(energies(TRACED), energies(None), strict=True):
        assert compiled == pytest.approx(plain, rel=0.02)


def learn_family(processes: Processes, family: str, compiler: Compiler | None) -> tuple[float, dict[str, torch.Tensor]]:
    """Head energy of the last step and the weights, of an architecture, cut over all processes."""
    module = make_double(family, False) if family in FAMILIES else make(family).double()
    if processes.count > 1:
        shard(module)
    learner = TorchLearner(module, SETTINGS["sharded"][0], pad_id=0, processes=processes, compiler=compiler)
    rows = batch_of([24, 23, 23, 9, 8, 8]).rows
    mine = processes.share(rows)
    steps = learner.update(Batch(mine, sum(int(row.trained.sum()) for row in mine), len(mine), len(mine))).steps
    return steps[-1]["head_energy"], {name: tensor.clone() for name, tensor in plain_weights(module)}


@pytest.mark.parametrize("count", [pytest.param(1, marks=SLOW), pytest.param(2, marks=EVIDENCE)])
@pytest.mark.parametrize("family", ["smollm3", "qwen3_moe"])
def test_blocks_of_several_kinds_are_compiled_each_as_its_own(family: str, count: int, graphs: Any) -> None:
    energy, weights = learn_family(ALONE, family, None)
    if count == 1:
        results = [learn_family(ALONE, family, TRACED)]
    else:
        results = together(count, learn_family, family, TRACED, patience_s=PATIENCE_S)
    for found, same in results:
        assert found == pytest.approx(energy, rel=CLOSE)
        for name, weight in weights.items():
            assert float((same[name] - weight).norm()) <= CLOSE * float(weight.norm()), name


@pytest.mark.evidence
def test_a_compiled_run_of_2_processes_goes_on_plain_and_a_plain_one_compiled(
    launched_config: Path, tmp_path: Path, graphs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def go(*words: str | Path, backend: str) -> None:
        ask({"BACKEND": backend}, monkeypatch)
        assert main_guard(lambda: train.main([str(word) for word in words])) == 0

    words = [launched_config, "--eval.tasks", "8", "--model.dtype", "float64"]
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    go(*words, "--run-dir", one, backend="no")
    assert graphs() == 0
    out = finish(launch(2, *words, "--run-dir", two, "--train.steps", "2", compiler="inductor"), patience_s=PATIENCE_S)
    assert out.count("updates are compiled by inductor") == 1
    go("--resume", two, "--train.steps", "4", backend="no")
    go(*words, "--run-dir", three, "--train.steps", "2", backend="no")
    assert graphs() == 0
    go("--resume", three, "--train.steps", "4", backend="aot_eager")
    assert graphs() >= 1
    kept = [json.loads((folder / "versions.json").read_text()).get("compiler") for folder in (one, two)]
    assert kept == [None, "inductor"]
    expected = AutoModelForCausalLM.from_pretrained(newest_checkpoint(one)).state_dict()
    for folder in (two, three):
        found = AutoModelForCausalLM.from_pretrained(newest_checkpoint(folder)).state_dict()
        assert found.keys() == expected.keys()
        for name, weight in expected.items():
            assert float((found[name] - weight).norm()) <= 1e-6 * float(weight.norm()), name
