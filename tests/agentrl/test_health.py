"""Signs that a run goes wrong: numbers by hand, written-out records, and real short runs that are made to fail."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentrl import train
from agentrl.config.schema import RolloutConfig
from agentrl.config.shipped import shipped_configs
from agentrl.rollout.engines.base import Completion, Sampling
from agentrl.rollout.engines.local import LocalEngine
from agentrl.rollout.tasks import TaskSampler
from agentrl.runs.diagnosis import findings
from agentrl.runs.folder import RunRecord, read_run
from agentrl.runs.health import health_metrics, repeated_share, task_information, thought
from agentrl.types import Group, Metrics, Status, Task, Trajectory, Turn
from tests.agentrl.test_diagnosis import batches, config
from tests.agentrl.toy_runs import toy_run
from tests.toy import ColourEnv


def answers(*words: str, count: int = 8) -> list[list[list[str]]]:
    """Tasks, each answered `count` times by one sentence."""
    return [[each.split()] * count for each in words]


def test_information_of_answers_that_name_their_task_is_nearly_the_log_of_the_number_of_tasks() -> None:
    # 4 tasks, 8 answers of one word each. Without an answer 7 of the others' 31 are its word: (7 + 7/31) / (7 + 1) for
    # its own task, (7/31) / (8 + 1) for each other one.
    own, other = (7 + 7 / 31) / 8, 7 / 31 / 9
    expected = math.log(4 * own / (own + 3 * other))
    assert task_information(answers("red", "green", "blue", "white")) == pytest.approx(expected)
    assert 1.30 < expected < math.log(4)


def test_information_of_a_template_is_that_of_the_words_that_differ() -> None:
    assert task_information(answers("it is red", "it is red", "it is red")) == pytest.approx(0)
    whole = task_information(answers("it is red", "it is green", "it is blue"))
    assert 0.2 < whole < math.log(3) / 3  # one word of three differs


def test_information_of_diverse_answers_that_ignore_the_task_is_none() -> None:
    words = [[word] for word in ("red", "green", "blue", "white")]
    assert task_information([words * 2] * 6) < 0  # without itself an answer is rarer in its own small group
    assert -0.05 < task_information([words * 16] * 6) < 0
    assert task_information([[["red"], ["red"]]]) == 0  # one task
    assert task_information([[["red"]], [["blue"]]]) == 0  # nothing is left without an answer
    assert task_information([[[], []], [["a"], ["b"]]]) == 0
    assert task_information([[["a"], ["b"]], [["c"], ["d"]]]) == 0  # words that nothing else contains


def test_repeated_answers_are_counted_within_a_task() -> None:
    assert repeated_share([["a", "a", "b", "c"], ["a", "b", "b", "b"]]) == 5 / 8
    assert repeated_share([]) == 0


@pytest.mark.parametrize(
    ("answer", "text"),
    [("<think>a b</think> go", "a b"), ("opened in the prompt</think>go", "opened in the prompt"), ("go", "")],
)
def test_a_thought_is_what_stands_before_its_end(answer: str, text: str) -> None:
    assert thought(answer) == text


def test_health_of_a_batch_by_hand() -> None:
    task = Task("mine", "train", 0)

    def episode(text: str, reward: float, status: Status = Status.TERMINATED) -> Trajectory:
        return Trajectory(task, 0, [], [Turn(0, 0, 1, text, "", reward)], "", status)

    thinking = episode("<think>one two three four</think> left", 1.0)
    groups = [
        Group(task, [thinking, episode("left", 0.0, Status.TURN_LIMIT)]),
        Group(task, [episode("right", 1.0), episode("right", 1.0, Status.TOKEN_LIMIT)]),
    ]
    metrics = health_metrics(groups)
    assert metrics["health/truncated"] == 0.5
    assert metrics["health/equal_groups"] == 0.5
    assert metrics["health/repeated_answers"] == 0.5
    assert metrics["health/think_words"] == 1.0
    assert health_metrics([])["health/equal_groups"] == 0


HEALTHY = {"learner__entropy": 1.0, "health__task_information": 0.5, "health__think_words": 40.0, "learner__steps": 2}


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"rollout__failed_share": 0.06}, "failed_episodes", "at least 6.0% of the episodes failed"),
        ({"rollout__ended/token_limit": 64}, "no_room", "192 of 384 episodes ended in the middle"),
        ({"learner__entropy": 0.004}, "no_entropy", "entropy fell from 1 to 0.004 nats a token, while success is 50%"),
        ({"health__task_information": 0.05}, "template_collapse", "tells 0.05 nats about it, 0.5 before"),
        ({"health__think_words": 4.0}, "no_thought", "from 40 words a turn to 4"),
        (
            {"rollout__reward": 0.9, "rollout__success": 0.05},
            "reward_without_success", "mean reward is at least 0.9, of 0 to 1, and success at most 5%",
        ),
        ({"learner__engine_kl": 0.01}, "engine_gap", "KL 0.01 nats a token or more"),
    ],
)  # fmt: skip
def test_a_sign_when_it_holds_for_three_batches_then_it_is_told_once_with_its_numbers(
    changes: dict[str, Any], code: str, said: str
) -> None:
    before = batches(5, **HEALTHY)
    assert findings([*before, *batches(2, 6, **{**HEALTHY, **changes})], config()) == []
    (found,) = findings([*before, *batches(6, 6, **{**HEALTHY, **changes})], config())
    assert (found.code, found.step) == (code, 8)
    assert said in found.sentence


@pytest.mark.parametrize(
    "changes",
    [
        {"rollout__failed_share": 0.04}, {"rollout__ended/token_limit": 63}, {"learner__entropy": 0.006},
        {"health__task_information": 0.06}, {"health__think_words": 5.0}, {"learner__engine_kl": 0.009},
        {"rollout__reward": 0.89, "rollout__success": 0.05}, {"rollout__reward": 0.9, "rollout__success": 0.06},
        # what is solved may be certain, alike and brief
        {"learner__entropy": 0.0, "health__task_information": 0.0, "health__think_words": 0.0, "rollout__success": 0.9},
    ],
)  # fmt: skip
def test_a_sign_when_it_is_just_within_its_limit_then_nothing_is_told(changes: dict[str, Any]) -> None:
    assert findings([*batches(5, **HEALTHY), *batches(6, 6, **{**HEALTHY, **changes})], config()) == []


def test_what_a_policy_never_had_when_it_is_missing_then_nothing_is_told() -> None:
    never = {"learner__entropy": 0.001, "health__task_information": 0.0, "health__think_words": 0.0}
    assert findings(batches(9, **never), config()) == []


def test_a_gate_when_it_closes_every_batch_at_once_then_that_is_told_after_forty() -> None:
    closed = {"learner__gate_closed": True, "learner__steps": 1}
    assert findings(batches(39, **closed), config()) == []
    (found,) = findings(batches(40, **closed), config())
    assert found.code == "no_reuse"
    assert findings([*batches(39, **closed), *batches(1, 40, **HEALTHY), *batches(9, 41, **closed)], config()) == []
    assert findings(batches(40, **closed), config(learner={"max_reuse": 1})) == []
    untaught = batches(9, 21, **{**closed, "learner__gate_closed": False, "learner__steps": 0})
    assert codes([*batches(20, **closed), *untaught, *batches(20, 30, **closed)]) == ["no_reuse"]


def codes(records: list[Metrics]) -> list[str]:
    return [found.code for found in findings(records, config())]


def run_of(folder: Path, **changes: Any) -> RunRecord:
    """A real run of 6 x 6 episodes a batch, four batches where nothing else is said."""
    overrides = {
        "env.id": "tests.toy:ColourEnv", "env.eval_split": "test", "model.tiny.hidden_size": 32,
        "model.tiny.intermediate_size": 64, "model.tiny.num_heads": 2, "model.tiny.num_kv_heads": 1,
        "rollout.max_turns": 2, "rollout.max_new_tokens": 4, "rollout.max_context_tokens": 128,
        "rollout.env_workers": 0, "train.steps": 4, "train.groups_per_step": 6, "train.group_size": 6, "eval.tasks": 1,
        "checkpoint.every": 0, "tracking.divergence_every": 0, "tracking.trackers": [],
        "tracking.trajectories_every": 0, "warmstart.cache_dir": str(folder / "warmstart"),
        **{key.replace("__", "."): value for key, value in changes.items()},
    }  # fmt: skip
    train.run(None, overrides, run_dir=folder / "run")
    return read_run(folder / "run")


def told(record: RunRecord) -> set[str]:
    """What the run wrote into its records."""
    return {cause["code"] for batch in record.batches for cause in batch.get("diagnosis", ())}


def pays_nearly_all(trajectory: Trajectory) -> float:
    """A reward that has nothing to do with success: nearly all texts get it."""
    return float(sum(map(ord, "".join(turn.action for turn in trajectory.turns))) % 32 > 0)


def pays_for_red(trajectory: Trajectory) -> float:
    """A reward of one answer, whatever was asked."""
    return sum(turn.action.strip() == "red" for turn in trajectory.turns) / 2


def by_length(trajectory: Trajectory) -> float:
    """A reward that differs."""
    return float(sum(len(turn.action) for turn in trajectory.turns))


class Unwinnable(ColourEnv):
    """Nobody succeeds."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, _, done, cut, info = super().step(action)
        return observation, 0.0, done, cut, {**info, "success": False}


def for_brevity(trajectory: Trajectory) -> float:
    """A reward of few words."""
    return -sum(len(turn.action.split()) for turn in trajectory.turns) / 10


class ThinkingEnv(ColourEnv):
    """Its expert thinks up to 80 words before each answer; half of the tasks are won whatever is said."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, done, cut, info = super().step(action)
        return observation, reward, done, cut, {**info, "success": done and self.task % 2 == 0}

    def _wanted(self) -> str:
        return f"<think>{' so' * int(self.np_random.integers(80))} </think> {self.colours[0]}"


class ShiftedEngine(LocalEngine):
    """Reports log-probs as another policy has them: exp(0.3) - 1 - 0.3 = 0.05 nats apart."""

    def __init__(self, module: Any, tokenizer: Any, config: RolloutConfig, rank: int, count: int) -> None:
        sizes = {"max_concurrent": config.max_concurrent, "max_context_tokens": config.max_context_tokens}
        super().__init__(module, tokenizer, **sizes)

    async def generate(
        self, ids: list[int], sampling: Sampling, *, key: tuple[int, ...], session: str | None = None
    ) -> Completion:
        done = await super().generate(ids, sampling, key=key, session=session)
        return replace(done, logprobs=[logprob - 0.3 for logprob in done.logprobs])


def faulty_tasks(batches: int, groups: int) -> list[int]:
    """One task of each batch, never the held-out one."""
    sampler = TaskSampler("tests.toy:ColourEnv", "train", indices=list(range(ColourEnv.num_tasks)), seed=0)
    found = []
    for _ in range(batches):
        found.append(next(task.index for task in sampler.take(groups) if task.index))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"env__options": {"faults": {"step": "raise"}, "faulty_tasks": faulty_tasks(4, 6)}}, "failed_episodes"),
        ({"env__reward": f"{__name__}:by_length", "rollout__max_context_tokens": 20}, "no_room"),
        ({"env__id": f"{__name__}:Unwinnable", "env__reward": f"{__name__}:pays_nearly_all"}, "reward_without_success"),
        ({"env__reward": f"{__name__}:by_length", "rollout__engine": f"{__name__}:ShiftedEngine"}, "engine_gap"),
    ],
)
def test_a_real_run_when_it_is_made_to_fail_then_it_raises_the_right_one(
    tmp_path: Path, changes: dict[str, Any], code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run_of(tmp_path, **changes)
    assert told(record) - {"invalid_actions", "cut_turns", "cannot_start"} == {code}
    texts = [cause["text"] for batch in record.batches for cause in batch.get("diagnosis", ())]
    lines = capsys.readouterr().err.splitlines()
    assert all(lines.count(f"note: {text}") == 1 for text in texts)


@pytest.mark.slow
def test_a_real_run_when_one_answer_is_paid_for_on_every_task_then_the_collapse_is_told(tmp_path: Path) -> None:
    folder = toy_run(
        tmp_path / "runs" / "red", env__reward=f"{__name__}:pays_for_red", train__steps=30, train__groups_per_step=8,
        train__group_size=8, learner__max_reuse=1, learner__lr=1e-3, eval__every=0,
    )  # fmt: skip
    record = read_run(folder)
    information = [batch["health/task_information"] for batch in record.batches]
    assert min(information[:3]) > 0.1 > 0.01 > information[-1]
    assert "template_collapse" in told(record)


@pytest.mark.slow
def test_a_real_run_when_brevity_is_paid_for_then_lost_thoughts_are_told(tmp_path: Path) -> None:
    folder = toy_run(
        tmp_path / "runs" / "brief", env__id=f"{__name__}:ThinkingEnv", env__reward=f"{__name__}:for_brevity",
        rollout__max_new_tokens=96, rollout__max_context_tokens=400, train__steps=24, train__groups_per_step=6,
        train__group_size=6, learner__max_reuse=1, learner__lr=7e-4, eval__every=0,
    )  # fmt: skip
    record = read_run(folder)
    words = [batch["health/think_words"] for batch in record.batches]
    assert min(words[:3]) > 10 > 1 > words[-1]
    assert "no_thought" in told(record)


@pytest.mark.slow
def test_a_real_run_when_its_gate_closes_every_batch_then_that_is_told(tmp_path: Path) -> None:
    folder = toy_run(
        tmp_path / "runs" / "closed", gate__tau=-1e6, train__steps=46, train__groups_per_step=4, train__group_size=4,
        learner__lr=1e-4, eval__every=0,
    )  # fmt: skip
    record = read_run(folder)
    assert all(batch["learner/gate_closed"] for batch in record.batches[5:] if batch["updates"])
    assert told(record) == {"no_reuse"}


@pytest.mark.evidence
@pytest.mark.parametrize(
    "name", [name for name in shipped_configs() if name.endswith("quickstart") and "/" not in name]
)
def test_a_shipped_quickstart_when_it_runs_for_ten_batches_then_nothing_is_told(tmp_path: Path, name: str) -> None:
    train.run(name, {"train.steps": 10, "eval.tasks": 8, "tracking.trackers": []}, run_dir=tmp_path / "run")
    record = read_run(tmp_path / "run")
    assert len(record.batches) == 10
    assert told(record) == set()


@pytest.mark.slow
def test_a_real_run_when_it_learns_then_engine_and_learner_agree_and_nothing_is_told(tmp_path: Path) -> None:
    record = read_run(toy_run(tmp_path / "run"))
    assert told(record) == set()
    assert all(abs(batch["learner/engine_kl"]) < 1e-6 for batch in record.batches if batch["updates"])
    assert all(batch["learner/last_kl"] == batch["updates"][-1]["kl"] for batch in record.batches if batch["updates"])
