import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.rollout.tasks import TaskSampler, evaluation_tasks, split_indices


@given(st.integers(1, 50), st.integers(0, 5))
def test_sampler_gives_every_task_once_an_epoch(count: int, seed: int) -> None:
    sampler = TaskSampler("toy", "train", indices=list(range(count)), seed=seed)
    for _ in range(2):
        assert sorted(task.index for task in sampler.take(count)) == list(range(count))  # type: ignore[type-var]


@given(st.lists(st.integers(1, 7), min_size=1, max_size=8))
def test_sampler_restored_or_taken_in_other_portions_gives_the_same_tasks(portions: list[int]) -> None:
    whole = TaskSampler("toy", "train", indices=None, seed=1).take(sum(portions))
    sampler = TaskSampler("toy", "train", indices=None, seed=1)
    taken = []
    for portion in portions:
        taken += sampler.take(portion)
        state, sampler = sampler.state_dict(), TaskSampler("toy", "train", indices=None, seed=1)
        sampler.load_state_dict(state)
    assert taken == whole


def test_training_and_evaluation_seeds_of_unlisted_tasks_never_meet() -> None:
    train = {task.seed for task in TaskSampler("toy", "train", indices=None, seed=0).take(2000)}
    held_out = {task.seed for task in evaluation_tasks("toy", "test", indices=None, count=2000)}
    assert max(train) < min(held_out)


def test_evaluation_tasks_are_each_played_once_and_spread_evenly() -> None:
    assert [t.index for t in evaluation_tasks("toy", "test", indices=list(range(10)), count=5)] == [0, 2, 4, 6, 8]
    assert len(evaluation_tasks("toy", "test", indices=list(range(10)), count=None)) == 10
    assert len(evaluation_tasks("toy", "test", indices=list(range(10)), count=99)) == 10


@pytest.mark.parametrize("count", [1, 5, 20, None])
def test_split_indices_of_one_shared_split_hold_out_the_last_tasks(count: int | None) -> None:
    train, held_out = split_indices(split="x", eval_split="x", num_tasks=50, num_eval_tasks=50, eval_count=count)
    assert train is not None
    assert held_out is not None
    assert sorted(train + held_out) == list(range(50))
    assert len(held_out) == min(count or 64, 10)
