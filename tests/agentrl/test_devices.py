"""Engine and learner on a device of their own: nothing is left behind on the CPU, and results are the CPU's."""

import asyncio
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from agentrl import evaluate, train, warmstart
from agentrl.config.schema import Config
from agentrl.evaluation import players
from agentrl.learner import learner as learner_module
from agentrl.learner.learner import TorchLearner
from agentrl.learner.weight_monitor import WeightMonitor
from agentrl.model import load
from agentrl.model.logprobs import row_logprobs
from agentrl.model.processes import Processes
from agentrl.model.weights import gather_weights
from agentrl.rollout.engines import factory
from agentrl.rollout.engines.attention import layouts
from agentrl.rollout.engines.base import Completion, Sampling
from agentrl.rollout.engines.local import LocalEngine
from agentrl.runs.folder import read_metrics
from tests.agentrl.accelerator import DEVICE, Accelerator
from tests.agentrl.helpers import tiny_policy, toy_config
from tests.agentrl.test_learner import make_batch, random_rows
from tests.toy import IMITATION, SMALL_CONFIG, TRAINING


def moved(module: Any) -> Any:
    """The module on the device; moving makes new parameters, whose tie is made anew."""
    tied = module.lm_head.weight is module.model.embed_tokens.weight
    module.to(DEVICE)
    if tied:
        module.lm_head.weight = module.model.embed_tokens.weight
    return module


def two_turns(module: Any) -> list[Completion]:
    """Rows of several lengths in sessions, one of which leaves early, so that slots have gaps."""
    engine = LocalEngine(module, tiny_policy()[1], max_concurrent=4, max_context_tokens=400)
    lengths = (3, 9, 5)

    async def play() -> list[Completion]:
        rows = [[(7 * i + j) % 200 for j in range(length)] for i, length in enumerate(lengths)]
        turns = []
        for turn in range(2):
            sampling = Sampling(max_new_tokens=4 + 8 * turn, temperature=0.7)
            asked = [0, 1, 2] if turn == 0 else [0, 2]
            done = await asyncio.gather(
                *(engine.generate(rows[i], sampling, key=(turn, i), session=str(i)) for i in asked)
            )
            for i, completion in zip(asked, done, strict=True):
                rows[i] += [*completion.ids, 5]
            turns += done
        turns[-1].logprobs.extend(await engine.score(rows[2]))
        return turns

    return asyncio.run(play())


@pytest.fixture
def without_inference_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inference mode knows no tensors of this kind."""
    for name in ("_tick", "_score"):
        monkeypatch.setattr(LocalEngine, name, torch.no_grad()(getattr(LocalEngine, name).__wrapped__))


@pytest.mark.usefixtures("without_inference_mode")
def test_the_embedded_engine_decodes_on_a_device_what_it_decodes_on_the_cpu() -> None:
    expected = two_turns(tiny_policy()[0])
    with Accelerator():
        found = two_turns(moved(tiny_policy()[0]))
    assert [turn.ids for turn in found] == [turn.ids for turn in expected]
    for turn, same in zip(found, expected, strict=True):
        assert turn.logprobs == pytest.approx(same.logprobs, abs=1e-5)


TWO = {"lr": 1e-3, "max_reuse": 2}
KL = {"kl_coef": 0.1, "tis_cap": 2.0}
SEQUENCES = {"kind": "gspo", "normalization": "sequence_mean"}
CONFIGS: dict[str, tuple[Config, bool]] = {
    "tied, kl, mismatch": (toy_config(learner=TWO, gate={"energy": "tied"}, loss=KL), True),
    "sequences, bound": (toy_config(learner=TWO, loss=SEQUENCES, tracking={"head_bound": True}), False),
    "offload": (toy_config(learner={**TWO, "shard": "offload"}, loss=KL), False),
    "m2po": (toy_config(learner=TWO, loss={"kind": "m2po", "m2_threshold": 1e-4}), False),
}


def learn(config: Config, tie: bool, device: torch.device) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    module = tiny_policy(tie=tie)[0]
    if device != torch.device("cpu"):
        moved(module)
    reference = copy.deepcopy(module) if config.loss.kl_coef else None
    learner = TorchLearner(module, config, pad_id=0, reference=reference, processes=Processes(device=device))
    monitor = WeightMonitor(module, every=1)
    steps = list(learner.update(make_batch(random_rows(6))).steps)
    learner.load_state_dict(copy.deepcopy(learner.state_dict()))
    steps += [*learner.update(make_batch(random_rows(6, seed=1))).steps, monitor.measure(1)]
    steps.append({str(i): x for i, x in enumerate(row_logprobs(module, [5, 9, 30, 7], 0.7))})
    return steps, gather_weights(module, keep=True)


def numbers(record: dict[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in record.items() if not isinstance(value, str)}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_the_learner_learns_on_a_device_what_it_learns_on_the_cpu(name: str) -> None:
    config, tie = CONFIGS[name]
    steps, weights = learn(config, tie, torch.device("cpu"))
    with Accelerator():
        found, same = learn(config, tie, DEVICE)
    assert len(found) == len(steps)
    for ours, theirs in zip(found, steps, strict=True):
        assert numbers(ours) == pytest.approx(numbers(theirs), rel=1e-3, abs=1e-5)
    for key, weight in weights.items():
        torch.testing.assert_close(same[key], weight, rtol=1e-3, atol=1e-4)


def commands(folder: Path) -> list[Callable[[], int]]:
    """A warm start, a run that takes it, its continuation, and its evaluation."""
    few = IMITATION.replace("episodes = 200", f'episodes = 100\ncache_dir = "{folder}/warm"')
    path, run = folder / "toy.toml", str(folder / "run")
    path.write_text(f"{SMALL_CONFIG}{few}{TRAINING}steps = 1\n[eval]\ntasks = 4\n[tracking]\ntrackers = []\n")
    return [
        lambda: warmstart.main([str(path)]),
        lambda: train.main([str(path), "--run-dir", run]),
        lambda: train.main(["--resume", run, "--train.steps", "2"]),
        lambda: evaluate.main([run, "--out", str(folder / "out")]),
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("without_inference_mode")
def test_every_command_computes_on_the_device_what_it_computes_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / "cpu", tmp_path / "device"]
    for folder in folders:
        folder.mkdir()
    assert [command() for command in commands(folders[0])] == [0] * 4
    # transformers' own forward pass, with which both compare, computes nothing on a device of this name.
    monkeypatch.setattr(learner_module, "check_fidelity", lambda *_, **__: None)
    monkeypatch.setattr(factory, "find_layout", lambda _, module, **__: next(iter(layouts(module.config))))
    for module in (load, players):
        monkeypatch.setattr(module, "compute_device", lambda: DEVICE)
    monkeypatch.setattr(Processes, "join", lambda: Processes(device=DEVICE))
    for command in commands(folders[1]):
        with Accelerator() as accelerator:
            assert command() == 0
        assert accelerator.waits, "nothing came back from the device"
    expected, found = map(read_metrics, (folder / "run" for folder in folders))
    assert [record["kind"] for record in found] == [record["kind"] for record in expected]
    for ours, theirs in zip(found[:2], expected[:2], strict=True):  # rounding grows with every step
        for key in ours.keys() & {"rollout/success", "learner/head_energy", "learner/entropy", "eval/success"}:
            assert ours[key] == pytest.approx(theirs[key], rel=0.1), key
    assert found[1]["updates"], "nothing was learned"
