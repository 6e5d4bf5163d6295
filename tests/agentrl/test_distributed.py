"""Several processes learn what one learns: same verdicts, same weights, however the policy is cut."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

from agentrl.config.schema import Config
from agentrl.errors import RunError
from agentrl.learner.advantage import advantages, penalized_rewards
from agentrl.learner.batch import Batch, assemble
from agentrl.learner.learner import TorchLearner
from agentrl.model.compiled import Compiler
from agentrl.model.load import recompute_activations
from agentrl.model.processes import ALONE, Processes, whole
from agentrl.model.weights import add_lora, plain_weights, shard
from agentrl.types import Group, Row, Status, Task, Trajectory, Turn
from tests.agentrl.helpers import tiny_policy, toy_config
from tests.agentrl.processes import sharded_like, together
from tests.agentrl.test_model_families import CASES, make_double

STEPS = 20
GATE = {"window": 6, "tau": -0.4}  # fresh random batches: reuse rarely surges


def record(num_batches: int, *, groups: int = 5, members: int = 3) -> list[list[Group]]:
    """Trajectories of two turns with random tokens and rewards; groups are not a multiple of the processes."""
    random = np.random.default_rng(0)
    batches = []
    for number in range(num_batches):
        played = []
        for place in range(groups):
            task = Task("toy", "train", 0, place, number * groups + place)
            played.append(Group(task, [random_trajectory(random, task, member) for member in range(members)]))
        batches.append(played)
    return batches


def random_trajectory(random: np.random.Generator, task: Task, member: int) -> Trajectory:
    lengths = random.integers(2, 9, size=4)  # prompt, answer, observation, answer
    ends = np.cumsum(lengths)
    trained = np.zeros(ends[-1], bool)
    trained[ends[0] : ends[1]] = trained[ends[2] : ends[3]] = True
    logprobs = np.where(trained, -random.random(ends[-1]) * 3, 0).astype(np.float32)
    row = Row(random.integers(5, 200, size=ends[-1]).astype(np.int32), trained, logprobs)
    rewards = [0.0, float(random.integers(0, 3))]
    turns = [Turn(0, int(ends[i]), int(ends[i + 1]), "", "", r) for i, r in zip((0, 2), rewards, strict=True)]
    return Trajectory(task, member, [row], turns, "", Status.TERMINATED)


RECORDED = record(STEPS)


def make_learner(config: Config, processes: Processes, *, tie: bool, compiler: Compiler | None = None) -> TorchLearner:
    module, tokenizer = tiny_policy(tie=tie, dtype=torch.float64)
    reference = copy.deepcopy(module) if config.loss.kl_coef else None
    if config.model.gradient_checkpointing:
        recompute_activations(module)
    add_lora(module, config.model, seed=0)
    if config.learner.shard and processes.count > 1:
        shard(module)
        if reference is not None:
            shard(reference.requires_grad_(False))
    return TorchLearner(
        module, config, pad_id=tokenizer.pad_token_id, reference=reference, processes=processes, compiler=compiler
    )


def learn_batch(
    learner: TorchLearner, groups: list[Group], config: Config, processes: Processes
) -> list[dict[str, Any]]:
    mine = processes.share(groups)
    penalties = learner.kl_penalties(mine) if config.loss.kl_in == "reward" else None
    everywhere = processes.gather(penalized_rewards(mine, penalties))
    elsewhere = [rewards for rank, many in enumerate(everywhere) if rank != processes.rank for rewards in many]
    worth = advantages(mine, config.advantage, penalties=penalties, other_ranks=elsewhere)
    return learner.update(assemble(mine, worth, drop_equal=config.train.refill is not None)).steps


def learn(
    processes: Processes, config: Config, tie: bool = False, batches: range = range(STEPS), state: Any = None,
    compiler: Compiler | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Monitors of all steps, final weights and everything a checkpoint would hold."""
    learner = make_learner(config, processes, tie=tie, compiler=compiler)
    if state is not None:
        tensors = {
            **state["weights"],
            **({"lm_head.weight": state["weights"]["model.embed_tokens.weight"]} if tie else {}),
        }
        for name, parameter in learner.module.named_parameters():
            parameter.data.copy_(sharded_like(tensors[name], parameter))
        learner.load_state_dict(copy.deepcopy(state["learner"]))
    steps = [step for i in batches for step in learn_batch(learner, RECORDED[i], config, processes)]
    weights = {name: tensor.clone() for name, tensor in plain_weights(learner.module)}
    return {"steps": steps, "weights": weights, "learner": learner.state_dict()}


def assert_same(results: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    for result in results:
        assert len(result["steps"]) == len(expected["steps"])
        for step, wanted in zip(result["steps"], expected["steps"], strict=True):
            assert [step[key] for key in ("k", "applied", "stopped", "reason")] == [
                wanted[key] for key in ("k", "applied", "stopped", "reason")
            ]
            for key in (
                "head_energy",
                "grad_norm",
                "loss",
                "kl",
                "ess",
                "sequence_ess",
                "max_ratio",
                "grad_norm_attention",
            ):
                assert step[key] == pytest.approx(wanted[key], rel=1e-5, abs=1e-8), key
            assert step.get("masked") == pytest.approx(wanted.get("masked"))
            assert step.get("rate_factor") == wanted.get("rate_factor")
        for name, weight in expected["weights"].items():
            assert float((result["weights"][name] - weight).norm()) <= 1e-6 * float(weight.norm()), name


def settings(**tables: dict[str, Any]) -> Config:
    tables = {"gate": GATE, "learner": {"lr": 3e-3, "max_reuse": 3, "microbatch_tokens": 64}, **tables}
    return toy_config(**tables)


SHARD = {"lr": 3e-3, "max_reuse": 3, "microbatch_tokens": 64, "shard": True}
SETTINGS: dict[str, tuple[Config, bool]] = {
    "plain": (settings(), False),
    "tied": (settings(gate={**GATE, "energy": "tied"}), True),
    "batch statistics": (settings(advantage={"estimator": "reinforce_pp"}, train={"refill": 1.0}), False),
    "m2po": (settings(loss={"kind": "m2po", "m2_threshold": 1e-4}), False),
    "masks": (
        settings(loss={"kind": "dppo", "sequence_mask": "max", "sequence_limit": 52.0}),
        False,
    ),
    "kl rate": (settings(gate={"kind": "kl_rate", "target": 1e-3}), False),
    "kl": (settings(loss={"kl_coef": 0.1, "normalization": "sequence_mean"}), False),
    "kl in reward": (settings(loss={"kl_coef": 0.1, "kl_kind": "k1", "kl_in": "reward"}), False),
    "checkpointing": (settings(model={"gradient_checkpointing": True}), False),
    "lora": (settings(model={"lora_rank": 4}), False),
    "lora head": (settings(model={"lora_rank": 4, "lora_targets": ["q_proj", "lm_head"]}), False),
    "sharded": (settings(learner=SHARD), False),
    "sharded tied": (settings(learner=SHARD, gate={**GATE, "energy": "tied"}), True),
    "sharded m2po": (settings(learner=SHARD, loss={"kind": "m2po", "m2_threshold": 1e-4}), False),
    "sharded masks": (settings(learner=SHARD, loss={"sequence_mask": "mean", "sequence_limit": 6.0}), False),
    "sharded kl": (settings(learner=SHARD, loss={"kl_coef": 0.3}), True),
    "sharded lora": (settings(learner=SHARD, model={"lora_rank": 4}), False),
    "offload": (settings(learner={**SHARD, "shard": "offload"}, loss={"kl_coef": 0.3}), True),
    "offload lora": (settings(learner={**SHARD, "shard": "offload"}, model={"lora_rank": 4}), False),
    "sharded checkpointing": (settings(learner=SHARD, model={"gradient_checkpointing": True}), False),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "sharded tied"])
def test_2_processes_judge_and_learn_what_one_does(name: str) -> None:
    check(name, range(7), (2,))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SETTINGS))
def test_2_and_4_processes_judge_and_learn_what_one_does_over_20_batches(name: str) -> None:
    check(name, range(STEPS), (2, 4))


def check(name: str, batches: range, counts: tuple[int, ...]) -> None:
    if "lora" in name:
        pytest.importorskip("peft", reason="the extra lora is not installed")
    config, tie = SETTINGS[name]
    alone = learn(ALONE, config, tie, batches)
    closing = "kl" if config.gate.kind == "kl_rate" else "surge"
    assert {step["reason"] for step in alone["steps"]} == {"", closing}, "the gate must have had something to decide"
    if "masks" in name:
        assert any(0 < step["masked"] < 1 for step in alone["steps"]), "the masks must have left something out"
    for count in counts:
        assert_same(together(count, learn, config, tie, batches), alone)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "tied", "sharded", "sharded tied", "sharded lora", "offload lora"])
def test_a_state_saved_by_2_processes_goes_on_with_1_and_4(name: str) -> None:
    config, tie = SETTINGS[name]
    half = range(STEPS // 2)
    rest = range(STEPS // 2, STEPS)
    whole = learn(ALONE, config, tie)
    saved = together(2, learn_and_keep_factors, config, tie, half)[0]
    steps = whole["steps"][len(saved["steps"]) :]
    for count in (1, 4):
        results = together(count, learn, config, tie, rest, saved)
        assert_same(results, {"steps": steps, "weights": whole["weights"]})


def learn_and_keep_factors(processes: Processes, config: Config, tie: bool, batches: range) -> dict[str, Any]:
    """`learn`, with the raw parameters instead of merged ones."""
    learner = make_learner(config, processes, tie=tie)
    steps = [step for i in batches for step in learn_batch(learner, RECORDED[i], config, processes)]
    weights = {name: whole(p.detach()).clone() for name, p in learner.module.named_parameters()}
    return {"steps": steps, "weights": weights, "learner": learner.state_dict()}


def learn_family(processes: Processes, family: str, tie: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """Head energy of the last step and the weights, of an architecture cut over all processes."""
    module = make_double(family, tie)
    if processes.count > 1:
        shard(module)
    learner = TorchLearner(module, SETTINGS["sharded"][0], pad_id=0, processes=processes)
    groups = processes.share(RECORDED[0])
    steps = learner.update(assemble(groups, advantages(groups, learner.config.advantage))).steps
    return steps[-1]["head_energy"], {name: tensor.clone() for name, tensor in plain_weights(module)}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "tie"), CASES)
def test_shards_of_any_architecture_learn_what_the_whole_learns(family: str, tie: bool) -> None:
    energy, weights = learn_family(ALONE, family, tie)
    for found, same in together(2, learn_family, family, tie):
        assert found == pytest.approx(energy, rel=1e-9)
        for name, weight in weights.items():
            assert float((same[name] - weight).norm()) <= 1e-9 * float(weight.norm()), name


def idle(processes: Processes) -> list[dict[str, Any]]:
    """Only the first process has rows that teach something."""
    config, _ = SETTINGS["plain"]
    learner = make_learner(config, processes, tie=False)
    groups = RECORDED[0] if processes.is_first else []
    update = learner.update(assemble(groups, advantages(groups, config.advantage)))
    nothing = learner.update(Batch([], 0, 0, 0))
    assert (nothing.num_steps, nothing.steps) == (0, [])
    return update.steps


def test_a_process_without_rows_takes_part_and_a_batch_without_gradient_is_no_step_anywhere() -> None:
    first, second = together(2, idle)
    assert first == second
    assert len(first) == 3


def poison(processes: Processes) -> list[str]:
    """One process meets a NaN: all discard, and after three in a row all stop."""
    config, _ = SETTINGS["plain"]
    learner = make_learner(config, processes, tie=False)
    for number in range(3):
        groups = processes.share(copy.deepcopy(RECORDED[number]))
        batch = assemble(groups, advantages(groups, config.advantage))
        if processes.rank == 1:
            batch.rows[0].advantages[batch.rows[0].trained] = math.nan
        try:
            learner.update(batch)
        except RunError as error:
            return [str(error)]
    return []


def test_a_nan_in_one_process_is_discarded_by_all_and_the_third_in_a_row_stops_all() -> None:
    first, second = together(2, poison)
    assert first == second
    assert "3 gradients in a row were not finite" in first[0]


def vanish(processes: Processes) -> str:
    if processes.rank == 1:
        return ""
    try:
        for _ in range(100):
            processes.sum_([torch.zeros(3)])
    except RunError as error:
        return str(error)
    return "nobody was missed"


def test_a_process_that_is_gone_is_noticed_at_once_and_named_as_the_cause() -> None:
    assert "lost contact with another process of this run" in together(2, vanish)[0]


def test_shares_are_disjoint_and_whole() -> None:
    shares = [Processes(rank, 3).share(list(range(10))) for rank in range(3)]
    assert shares == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
