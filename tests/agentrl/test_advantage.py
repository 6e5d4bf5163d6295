import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.config.schema import AdvantageConfig
from agentrl.learner.advantage import (
    advantages,
    discounted_returns,
    dr_grpo,
    gigpo_steps,
    grpo,
    reinforce_pp,
    rloo,
)
from agentrl.types import Group, Status, Task, Trajectory, Turn

TASK = Task("toy", "train", 0)
rewards_of_a_group = st.lists(st.floats(-100, 100), min_size=2, max_size=16).map(np.array)


def trajectory(
    rewards: list[float], *, anchors: list[str] | None = None, valid: list[bool] | None = None
) -> Trajectory:
    turns = [
        Turn(0, i, i + 1, "", "", reward, anchor=anchors[i] if anchors else None, is_valid=valid[i] if valid else True)
        for i, reward in enumerate(rewards)
    ]
    return Trajectory(TASK, 0, [], turns, "", Status.TERMINATED)


def test_grpo_of_four_rewards_matches_the_hand_computed_values() -> None:
    # mean 0.25, sample deviation 0.5, population deviation sqrt(3) / 4
    rewards = np.array([1.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(grpo(rewards), [1.5, -0.5, -0.5, -0.5], atol=1e-5)
    np.testing.assert_allclose(grpo(rewards, ddof=0), np.array([3, -1, -1, -1]) / np.sqrt(3), atol=1e-5)


def test_rloo_of_four_rewards_subtracts_the_mean_of_the_others() -> None:
    np.testing.assert_allclose(rloo(np.array([1.0, 0.0, 0.0, 0.0])), [1.0, -1 / 3, -1 / 3, -1 / 3])


def test_dr_grpo_of_four_rewards_only_subtracts_the_mean() -> None:
    np.testing.assert_allclose(dr_grpo(np.array([1.0, 0.0, 0.0, 0.0])), [0.75, -0.25, -0.25, -0.25])


def test_reinforce_pp_of_two_groups_divides_by_the_batch_deviation() -> None:
    values = reinforce_pp([np.array([1.0, 0.0]), np.array([3.0, 1.0])], ddof=0)
    centered = np.array([0.5, -0.5, 1.0, -1.0])
    np.testing.assert_allclose(np.concatenate(values), centered / centered.std(), atol=1e-5)


def test_deviations_of_two_rewards_are_those_of_a_sample_and_get_1e_6_added() -> None:
    # sample deviation sqrt(1 / 2); population deviation 1e-6, which the 1e-6 added to it doubles
    np.testing.assert_allclose(reinforce_pp([np.array([1.0, 0.0])])[0], [0.70711, -0.70711], atol=1e-5)
    close = np.array([2e-6, 0.0])
    np.testing.assert_allclose(grpo(close, ddof=0), [0.5, -0.5])
    np.testing.assert_allclose(reinforce_pp([close], ddof=0)[0], [0.5, -0.5])


def test_a_single_reward_which_has_no_sample_deviation_gives_zero() -> None:
    alone = np.array([3.0])
    assert grpo(alone).tolist() == reinforce_pp([alone])[0].tolist() == [0.0]


@given(rewards_of_a_group, st.floats(-10, 10))
def test_grpo_is_unchanged_when_a_constant_is_added(rewards: np.ndarray, constant: float) -> None:
    np.testing.assert_allclose(grpo(rewards + constant), grpo(rewards), atol=1e-4)


@given(st.floats(-100, 100), st.integers(2, 16))
def test_every_estimator_of_equal_rewards_gives_exact_zeros(reward: float, size: int) -> None:
    rewards = np.full(size, reward)
    for values in (grpo(rewards), dr_grpo(rewards), rloo(rewards), reinforce_pp([rewards])[0]):
        assert not values.any()


@given(rewards_of_a_group, st.randoms())
def test_grpo_of_permuted_rewards_is_permuted(rewards: np.ndarray, random) -> None:  # type: ignore[no-untyped-def]
    order = list(range(len(rewards)))
    random.shuffle(order)
    np.testing.assert_allclose(grpo(rewards[order]), grpo(rewards)[order], atol=1e-6)


def test_discounted_returns_by_hand() -> None:
    np.testing.assert_allclose(discounted_returns([0.0, 0.0, 1.0], 0.5), [0.25, 0.5, 1.0])


def test_gigpo_compares_turns_that_share_a_state() -> None:
    group = Group(
        TASK,
        [
            trajectory([0.0, 1.0], anchors=["kitchen", "fridge"]),
            trajectory([0.0, 0.0], anchors=["kitchen", "shelf"]),
        ],
    )
    steps = gigpo_steps(group, discount=0.5)
    # in "kitchen" the returns are 0.5 and 0: +-1/sqrt(2) with the sample deviation; the other states stand alone
    np.testing.assert_allclose(np.array(steps), [[0.70710, 0.0], [-0.70710, 0.0]], atol=1e-4)


def test_advantages_with_a_penalty_subtracts_it_unscaled_even_where_all_fail() -> None:
    group = Group(TASK, [trajectory([0.0, 0.0], valid=[True, False]), trajectory([0.0], valid=[True])])
    result = advantages([group], AdvantageConfig(invalid_action_penalty=0.3))
    np.testing.assert_allclose(result[0][0], [0.0, -0.3])
    np.testing.assert_allclose(result[0][1], [0.0])


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "dr_grpo", "reinforce_pp", "gigpo"])
def test_advantages_repeats_a_trajectory_level_value_over_its_turns(estimator: str) -> None:
    groups = [Group(TASK, [trajectory([0.0, 1.0]), trajectory([0.0, 0.0, 0.0])])]
    first, second = advantages(groups, AdvantageConfig(estimator=estimator))[0]
    assert first.shape == (2,)
    assert second.shape == (3,)
    assert len(set(first)) == len(set(second)) == 1
    assert first[0] > 0 > second[0]


@pytest.mark.parametrize(
    ("estimator", "first", "second"),
    [
        ("grpo", 0.70711, 0.70711),  # 0.5 / sqrt(0.5), 1 / sqrt(2)
        ("dr_grpo", 0.5, 1.0),
        ("rloo", 1.0, 2.0),
        ("reinforce_pp", 0.54772, 1.09545),  # 0.5 and 1 / sqrt(2.5 / 3), the deviation of +-0.5 and +-1
        ("gigpo", 1.41421, 1.41421),  # grpo's, and once more as all turns begin in one state
    ],
)
def test_advantages_of_two_groups_are_those_of_the_named_estimator(estimator: str, first: float, second: float) -> None:
    groups = [Group(TASK, [trajectory([r], anchors=["hall"]) for r in rewards]) for rewards in ((1.0, 0.0), (3.0, 1.0))]
    result = advantages(groups, AdvantageConfig(estimator=estimator))
    np.testing.assert_allclose(np.array(result)[:, :, 0], [[first, -first], [second, -second]], atol=1e-5)


def test_reinforce_pp_counts_the_groups_of_other_processes_in_its_deviation() -> None:
    mine, others = np.array([1.0, 0.0]), np.array([3.0, 1.0])
    whole = reinforce_pp([mine, others])
    np.testing.assert_allclose(reinforce_pp([mine], other_ranks=[others])[0], whole[0])


def test_penalties_are_taken_from_the_rewards_before_groups_are_compared() -> None:
    group = Group(TASK, [trajectory([1.0]), trajectory([1.0])])
    result = advantages([group], AdvantageConfig(estimator="dr_grpo"), penalties=[np.array([0.2, 0.0])])
    np.testing.assert_allclose(np.array(result[0])[:, 0], [-0.1, 0.1])


@pytest.mark.parametrize("penalties", [[], [np.zeros(1), np.zeros(1)], [np.zeros(2)]])
def test_penalties_of_other_groups_or_trajectories_than_were_played_are_refused(penalties: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="zip"):
        advantages([Group(TASK, [trajectory([1.0])])], AdvantageConfig(), penalties=penalties)


def test_gigpo_of_window_rows_gives_each_turn_its_own_value() -> None:
    first = trajectory([0.0, 1.0], anchors=["kitchen", "fridge"])
    second = trajectory([0.0, 0.0], anchors=["kitchen", "fridge"])
    for t in (first, second):  # a fresh prompt, and so a row, for every turn
        for i, turn in enumerate(t.turns):
            turn.row = i
    result = advantages([Group(TASK, [first, second])], AdvantageConfig(estimator="gigpo", discount=0.5))[0]
    # trajectory level +-1/sqrt(2); step level +-1/sqrt(2) in both states
    np.testing.assert_allclose(result[0], [np.sqrt(2), np.sqrt(2)], atol=1e-4)
    np.testing.assert_allclose(result[1], [-np.sqrt(2), -np.sqrt(2)], atol=1e-4)
