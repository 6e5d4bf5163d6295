import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl.config.schema import RolloutConfig
from agentrl.environment.played import PlayedEnvironment
from agentrl.environment.pool import EnvPool
from agentrl.environment.spec import EnvironmentSpec, count_tasks
from agentrl.errors import RunError
from agentrl.evaluation.rates import Evaluation
from agentrl.rollout.chat import Chat
from agentrl.rollout.engines.base import Completion
from agentrl.rollout.rollout import Rollout
from agentrl.rollout.scripted import expert_policy, noisy_expert
from agentrl.rollout.tasks import TaskSampler
from agentrl.types import Status, Task, Trajectory
from tests.agentrl.helpers import TOY, tiny_policy, toy_rollout
from tests.toy import COLOURS, ColourEnv

MODULE, TOKENIZER = tiny_policy()
CHAT = Chat(TOKENIZER, stop_ids=[TOKENIZER.eos_token_id])
LIMITS = RolloutConfig(max_turns=2, max_new_tokens=4, max_context_tokens=1024, env_workers=0)
TASKS = TaskSampler(TOY, "train", indices=list(range(64)), seed=0).take(6)


def expert_rollout(config: RolloutConfig = LIMITS, noise: float = 0.0) -> Rollout:
    rollout = toy_rollout(MODULE, TOKENIZER, config)
    pool = EnvPool(EnvironmentSpec(TOY, "train", expert=True))
    policy = noisy_expert(noise, train_noise=False) if noise else expert_policy
    return Rollout(None, rollout.chat, pool, config, seed=0, policy=policy)


def test_play_gives_each_task_its_group_in_order() -> None:
    groups = toy_rollout(MODULE, TOKENIZER, LIMITS).play(TASKS, group_size=3).groups
    assert [group.task for group in groups] == TASKS
    assert [[t.member for t in group.trajectories] for group in groups] == [[0, 1, 2]] * 6


def test_a_row_holds_the_sampled_ids_with_their_logprobs_and_nothing_else_is_trained() -> None:
    group = toy_rollout(MODULE, TOKENIZER, LIMITS).play(TASKS[:1], group_size=2).groups[0]
    for trajectory in group.trajectories:
        (row,) = trajectory.rows
        spans = np.concatenate([np.arange(turn.start, turn.end) for turn in trajectory.turns])
        assert (np.flatnonzero(row.trained) == spans).all()
        assert ((row.logprobs != 0) == row.trained).all()
        assert row.trained[-1]


def test_playing_again_or_in_another_order_gives_the_same_trajectories() -> None:
    def ids(tasks: list[Task]) -> dict[int, list[list[int]]]:
        groups = toy_rollout(MODULE, TOKENIZER, LIMITS).play(tasks, group_size=2).groups
        return {g.task.position: [t.rows[0].ids.tolist() for t in g.trajectories] for g in groups}

    assert ids(TASKS) == ids(TASKS) == ids(TASKS[::-1])


def test_the_expert_wins_and_its_rows_read_like_the_template() -> None:
    groups = expert_rollout().play(TASKS, group_size=1).groups
    for trajectory in (group.trajectories[0] for group in groups):
        assert trajectory.success
        assert trajectory.status is Status.TERMINATED
        assert trajectory.reward == trajectory.score == 1.0
        colour = trajectory.category
        text = TOKENIZER.decode(trajectory.rows[0].ids.tolist())
        second = trajectory.turns[0].observation
        assert (
            text == f"<|user|>You see {colour}.<|assistant|>{colour}<|end|><|user|>{second}<|assistant|>{colour}<|end|>"
        )


def test_noise_marks_its_turns_as_not_to_be_imitated() -> None:
    groups = expert_rollout(noise=0.5).play(TASKS, group_size=4).groups
    turns = [turn for group in groups for t in group.trajectories for turn in t.turns]
    assert 0.2 < np.mean([turn.imitate for turn in turns]) < 0.8


def test_scripted_answer_when_it_ends_in_a_stop_string_then_cut_there_like_a_sampled_one() -> None:
    config = LIMITS.model_copy(update={"context": "continuation", "stop": list(COLOURS)})
    trajectory = expert_rollout(config).play(TASKS[:1], group_size=1).groups[0].trajectories[0]
    colour, second = trajectory.category, trajectory.turns[0].observation
    assert TOKENIZER.decode(trajectory.rows[0].ids.tolist()).endswith(f"<|assistant|>{colour}{second}{colour}")


@pytest.mark.parametrize("context", ["conversation", "window", "continuation"])
def test_contexts_build_one_growing_row_or_one_row_a_turn(context: str) -> None:
    config = LIMITS.model_copy(update={"context": context})
    trajectory = expert_rollout(config).play(TASKS[:1], group_size=1).groups[0].trajectories[0]
    texts = [TOKENIZER.decode(row.ids.tolist()) for row in trajectory.rows]
    colour, second = trajectory.category, trajectory.turns[0].observation
    if context == "window":
        assert [turn.row for turn in trajectory.turns] == [0, 1]
        assert texts[0] == f"<|user|>You see {colour}.<|assistant|>{colour}<|end|>"
        assert f"[Observation 1: 'You see {colour}.', Action 1: '{colour}']" in texts[1]
    elif context == "continuation":
        assert texts == [f"<|user|>You see {colour}.<|assistant|>{colour}{second}{colour}<|end|>"]
    else:
        assert len(texts) == 1


class EndsAtOnce:
    """An engine that samples given ids at every turn."""

    version = 0

    def __init__(self, *answers: list[int]) -> None:
        self.answers, self.prompts = answers, []

    async def generate(self, ids: list[int], *_: object, key: tuple[int, ...], **__: object) -> Completion:
        self.prompts.append(list(ids))
        answer = self.answers[key[-1]]
        return Completion(list(answer), [-0.5] * len(answer), "stop")

    def release(self, session: str) -> None: ...

    def pause(self) -> None: ...

    def counts(self) -> dict[str, float]:
        return {}


def continued(*answers: list[int], limit: int = 1024) -> Trajectory:
    config = LIMITS.model_copy(update={"context": "continuation", "max_context_tokens": limit})
    rollout = Rollout(EndsAtOnce(*answers), CHAT, EnvPool(EnvironmentSpec(TOY, "train")), config, seed=0)
    return rollout.play(TASKS[:1], group_size=1).groups[0].trajectories[0]


def test_a_continued_turn_when_its_answer_ended_in_special_tokens_then_goes_on_as_if_they_were_not_there() -> None:
    red, end, user = (TOKENIZER.encode(text, add_special_tokens=False) for text in ("red", "<|end|>", "<|user|>"))
    trajectory = continued(red + user + end, red + end)
    text = TOKENIZER.decode(trajectory.rows[0].ids.tolist()).partition("<|assistant|>")[2]
    assert text == f"red{trajectory.turns[0].observation}red<|end|>"
    spans = [trajectory.rows[0].ids[turn.start : turn.end].tolist() for turn in trajectory.turns]
    assert spans == [red, red + end]
    assert (trajectory.rows[0].logprobs != 0).sum() == len(red + red + end)


def test_a_continued_turn_when_nothing_but_ends_of_turn_were_sampled_then_keeps_the_last() -> None:
    end = TOKENIZER.encode("<|end|>", add_special_tokens=False)
    trajectory = continued(end, end)
    text = TOKENIZER.decode(trajectory.rows[0].ids.tolist()).partition("<|assistant|>")[2]
    assert text == f"{trajectory.turns[0].observation}<|end|>"
    assert [turn.end - turn.start for turn in trajectory.turns] == [0, 1]


def test_a_continued_turn_when_no_room_is_left_to_go_on_then_keeps_its_end() -> None:
    end = TOKENIZER.encode("<|end|>", add_special_tokens=False)
    opened = len(CHAT.open(f"You see {COLOURS[0]}."))
    trajectory = continued(end, end, limit=opened + 3)
    assert trajectory.status is Status.TOKEN_LIMIT
    assert trajectory.rows[0].trained.tolist() == [False] * (len(trajectory.rows[0].ids) - 1) + [True]


class TimesOut(ColourEnv):
    """The check of the first turn runs out of time."""

    def step(self, action: str) -> Any:
        *rest, info = super().step(action)
        return (*rest, {**info, "verdict": "timeout" if self.turn == 1 else "library"})


def test_a_check_that_ran_out_of_time_is_counted_at_whatever_turn() -> None:
    pool = EnvPool(EnvironmentSpec("tests.agentrl.test_play:TimesOut", "train", expert=True))
    rollout = Rollout(None, CHAT, pool, LIMITS, seed=0, policy=expert_policy)
    trajectories = [t for group in rollout.play(TASKS[:2], group_size=2).groups for t in group.trajectories]
    assert [(t.verdict, t.num_verdict_timeouts) for t in trajectories] == [("library", 1)] * 4


def test_a_full_context_ends_the_episode_as_data() -> None:
    config = LIMITS.model_copy(update={"max_context_tokens": 20, "max_turns": 5})
    trajectories = toy_rollout(MODULE, TOKENIZER, config).play(TASKS[:2], group_size=2).groups[0].trajectories
    assert {t.status for t in trajectories} == {Status.TOKEN_LIMIT}
    assert all(len(t.rows[0].ids) <= 20 for t in trajectories)


def test_a_task_whose_first_prompt_fills_the_row_is_counted_as_never_asked(capsys: pytest.CaptureFixture[str]) -> None:
    config = LIMITS.model_copy(update={"max_context_tokens": 5})
    rollout = toy_rollout(MODULE, TOKENIZER, config)
    trajectories = [t for group in rollout.play(TASKS[:3], group_size=2).groups for t in group.trajectories]
    length = trajectories[0].unasked_tokens
    assert length >= 5
    assert all(t.unasked_tokens and not t.turns and t.status is Status.TOKEN_LIMIT for t in trajectories)
    told = capsys.readouterr().err
    assert f"3 of 3 tasks were never asked: their first prompt has up to {length} tokens" in told
    assert f"rollout.max_context_tokens is 5. Raise it above {length}" in told
    rollout.play(TASKS[:3], group_size=2)
    assert capsys.readouterr().err == ""
    metrics = Evaluation(trajectories, "train", 1.0, samples=2).metrics()
    assert (metrics["eval/never_asked"], metrics["eval/longest_unasked"]) == (6, length)
    asked = toy_rollout(MODULE, TOKENIZER, LIMITS).play(TASKS[:1], group_size=2).groups[0].trajectories
    assert not any(t.unasked_tokens for t in asked)


def test_a_turn_limit_ends_the_episode_as_data() -> None:
    config = LIMITS.model_copy(update={"max_turns": 1})
    trajectory = toy_rollout(MODULE, TOKENIZER, config).play(TASKS[:1], group_size=2).groups[0].trajectories[0]
    assert trajectory.status is Status.TURN_LIMIT
    assert len(trajectory.turns) == 1


def test_an_environment_that_raises_once_is_retried_and_counted(tmp_path: Path) -> None:
    rollout = toy_rollout(MODULE, TOKENIZER, LIMITS, faults={"step": "raise"}, flag=str(tmp_path / "raised"))
    trajectories = [t for g in rollout.play(TASKS, group_size=2).groups for t in g.trajectories]
    assert len(trajectories) == 12
    assert sorted(t.num_retries for t in trajectories) == [0] * 11 + [1]
    (error,) = [t.error for t in trajectories if t.num_retries]
    assert re.fullmatch(r"ZeroDivisionError: the oven is on fire \(toy\.py:\d+\)", error)


def test_episodes_that_always_fail_are_left_out_with_their_group() -> None:
    faulty = [TASKS[0].index]
    rollout = toy_rollout(MODULE, TOKENIZER, LIMITS, faults={"reset": "raise"}, faulty_tasks=faulty)
    seen: list[Trajectory] = []
    groups = rollout.play(TASKS, group_size=2, on_episode=seen.append).groups
    assert [group.task for group in groups] == TASKS[1:]
    failed = [t for t in seen if t.status is Status.FAILED]
    assert [(t.num_retries, t.task) for t in failed] == [(2, TASKS[0])] * 2


def test_a_batch_without_one_whole_group_stops_the_run_with_the_cause() -> None:
    rollout = toy_rollout(MODULE, TOKENIZER, LIMITS, faults={"step": "raise"})
    with pytest.raises(RunError, match="the oven is on fire"):
        rollout.play(TASKS, group_size=2)


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "message"), [("hang", "did not answer a step within 1 s"), ("exit", "exit code 7")])
def test_a_hung_or_dead_worker_is_replaced_and_the_episode_retried(tmp_path: Path, fault: str, message: str) -> None:
    rollout = toy_rollout(
        MODULE, TOKENIZER, LIMITS, workers=1, timeout_s=1.0, faults={"step": fault}, flag=str(tmp_path / "f")
    )
    trajectories = [t for g in rollout.play(TASKS[:2], group_size=2).groups for t in g.trajectories]
    rollout.environments[""].pool.close()
    assert len(trajectories) == 4
    assert all(t.status is not Status.FAILED for t in trajectories)
    assert any(message in t.error for t in trajectories)


def test_worker_processes_play_the_same_episodes_as_this_process() -> None:
    here = toy_rollout(MODULE, TOKENIZER, LIMITS).play(TASKS, group_size=2).groups
    rollout = toy_rollout(MODULE, TOKENIZER, LIMITS, workers=2)
    there = rollout.play(TASKS, group_size=2).groups
    rollout.environments[""].pool.close()
    for a, b in zip(here, there, strict=True):
        assert [t.rows[0].ids.tolist() for t in a.trajectories] == [t.rows[0].ids.tolist() for t in b.trajectories]


def test_a_step_that_waits_for_others_keeps_nobody_waiting_and_changes_no_token() -> None:
    def play(env_id: str) -> tuple[list[int], list[list[int]]]:
        limits = LIMITS.model_copy(update={"max_turns": 1, "max_concurrent": 2})
        rollout = toy_rollout(MODULE, TOKENIZER, limits)
        pool = EnvPool(EnvironmentSpec(env_id, "train", {"slow_task": TASKS[0].index}))
        rollout.environments = {"": PlayedEnvironment(pool)}
        finished: list[int] = []
        groups = rollout.play(TASKS, group_size=1, on_episode=lambda t: finished.append(t.task.position)).groups
        rollout.environments[""].pool.close()
        return finished, [group.trajectories[0].rows[0].ids.tolist() for group in groups]

    in_threads, ids = play("tests.toy:WaitingEnv")
    in_place, same_ids = play("tests.toy:SlowEnv")
    assert in_threads[-1] == 0
    assert in_place[-1] != 0
    assert ids == same_ids


def test_logprobs_of_a_trajectory_are_log_probabilities() -> None:
    group = toy_rollout(MODULE, TOKENIZER, LIMITS).play(TASKS[:1], group_size=2).groups[0]
    logprobs = np.concatenate([t.rows[0].logprobs[t.rows[0].trained] for t in group.trajectories])
    assert (logprobs <= 0).all()
    assert math.isfinite(logprobs.sum())


def test_count_tasks_asks_the_unwrapped_environment() -> None:
    assert count_tasks(EnvironmentSpec(TOY, "train")) == 64
