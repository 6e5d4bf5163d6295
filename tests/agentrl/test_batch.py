import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.learner.batch import BatchRow, assemble, micro_batches, token_weights
from agentrl.types import Group, Row, Status, Task, Trajectory, Turn

TASK = Task("toy", "train", 0)


def make_row(length: int, trained: list[int], *, advantage: float = 1.0) -> BatchRow:
    mask = np.zeros(length, bool)
    mask[trained] = True
    worth = np.where(mask, advantage, 0).astype(np.float32)
    return BatchRow(np.arange(length, dtype=np.int32) + 10, mask, worth, np.zeros(length, np.float32))


def test_assemble_spreads_a_turns_advantage_over_its_tokens_only() -> None:
    mask = np.array([0, 0, 1, 1, 0, 1], bool)
    row = Row(np.arange(6, dtype=np.int32), mask, np.zeros(6, np.float32))
    turns = [Turn(0, 2, 4, "", "", 0.0), Turn(0, 5, 6, "", "", 1.0)]
    lost = Trajectory(TASK, 1, [row], turns[:1], "", Status.TERMINATED)
    batch = assemble(
        [Group(TASK, [Trajectory(TASK, 0, [row], turns, "", Status.TERMINATED), lost])],
        [[np.array([0.5, -2.0]), np.array([-1.0])]],
    )
    np.testing.assert_array_equal(batch.rows[0].advantages, [0, 0, 0.5, 0.5, 0, -2])
    assert (batch.num_trained_tokens, batch.num_groups, batch.num_mixed_groups) == (6, 1, 1)


def test_micro_batch_pairs_each_trained_token_with_its_predecessor() -> None:
    rows = [make_row(19, [1]), make_row(20, [2, 4])]
    (part,) = micro_batches(rows, [0.25, 0.5], budget=100, pad_id=0, keep=lambda _: True)
    assert part.ids.tolist() == [list(range(10, 30)), [*range(10, 29), 0]]  # longest first
    assert part.targets.tolist() == [12, 14, 11]
    assert part.predecessors.tolist() == [1, 3, 20]
    assert part.row_index.tolist() == [0, 0, 1]
    assert part.weights.tolist() == [0.5, 0.5, 0.25]


@settings(deadline=None)
@given(st.lists(st.integers(2, 200), min_size=1, max_size=60), st.integers(1, 2000))
def test_micro_batches_keep_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    rows = [make_row(n, [n - 1]) for n in lengths]
    parts = micro_batches(rows, [1.0] * len(rows), budget=budget, pad_id=0, keep=lambda _: True)
    assert sorted(int((ids != 0).sum()) for part in parts for ids in part.ids) == sorted(lengths)
    assert all(part.ids.numel() <= budget or len(part.ids) == 1 for part in parts)


@settings(deadline=None)
@given(st.lists(st.integers(20, 200), min_size=1, max_size=60), st.sampled_from([1, 400, 4000, 1 << 20]))
def test_micro_batches_of_ragged_rows_pad_at_most_5_percent(lengths: list[int], budget: int) -> None:
    rows = [make_row(n, [n - 1]) for n in lengths]
    parts = micro_batches(rows, [1.0] * len(rows), budget=budget, pad_id=0, keep=lambda _: True)
    assert sum(lengths) >= 0.95 * sum(part.ids.numel() for part in parts)


def test_micro_batches_end_where_the_next_row_would_cost_too_much_padding() -> None:
    def shapes(*lengths: int) -> list[tuple[int, ...]]:
        rows = [make_row(n, [n - 1]) for n in lengths]
        parts = micro_batches(rows, [1.0] * len(rows), budget=1000, pad_id=0, keep=lambda _: True)
        return [tuple(part.ids.shape) for part in parts]

    assert shapes(100, 90) == [(2, 100)]  # 10 of 200
    assert shapes(100, 89) == [(1, 100), (1, 89)]
    assert shapes(100, 95, 90) == [(3, 100)]  # 15 of 300
    assert shapes(100, 95, 89) == [(2, 100), (1, 89)]
    assert shapes(100, 100, 10, 6) == [(2, 100), (2, 10)]  # 4 of 220: what the whole batch can afford


def test_micro_batches_leave_out_rows_that_cannot_contribute() -> None:
    rows = [make_row(4, [3]), make_row(4, [3], advantage=0.0)]
    parts = micro_batches(rows, [1.0, 1.0], budget=100, pad_id=0, keep=lambda row: bool(row.advantages.any()))
    assert sum(len(part.ids) for part in parts) == 1


@pytest.mark.parametrize(
    ("normalization", "weights"),
    [("token_mean", [1 / 3, 1 / 3]), ("sequence_mean", [1 / 2, 1 / 4]), ("constant", [1 / 20, 1 / 20])],
)
def test_token_weights_by_hand(normalization: str, weights: list[float]) -> None:
    rows = [make_row(3, [1]), make_row(5, [2, 4])]
    assert token_weights(rows, normalization=normalization, num_tokens=3, num_rows=2, row_tokens=10) == weights


def test_assemble_drops_groups_of_equal_rewards_from_the_denominator_where_asked() -> None:
    row = Row(np.arange(4, dtype=np.int32), np.array([0, 0, 1, 1], bool), np.zeros(4, np.float32))
    groups = [
        Group(TASK, [Trajectory(TASK, m, [row], [Turn(0, 2, 4, "", "", r)], "", Status.TERMINATED) for m, r in pair])
        for pair in ([(0, 1.0), (1, 0.0)], [(0, 1.0), (1, 1.0)])
    ]
    worth = [[np.array([1.0]), np.array([-1.0])], [np.array([0.0]), np.array([0.0])]]
    kept, dropped = assemble(groups, worth), assemble(groups, worth, drop_equal=True)
    assert (kept.num_trained_tokens, kept.num_groups, kept.num_mixed_groups) == (8, 2, 1)
    assert (dropped.num_trained_tokens, dropped.num_groups, dropped.num_mixed_groups) == (4, 2, 1)
