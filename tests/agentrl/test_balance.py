"""Rows that change processes before an update: who gets what, and that the parts come out even."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.learner.balance import TOLERANCE, balanced, plan
from agentrl.learner.batch import BatchRow
from agentrl.model.processes import Processes
from tests.agentrl.processes import together

PARTS = st.lists(st.lists(st.integers(0, 500), max_size=30), min_size=1, max_size=6)


def row(length: int, worth: float = 1.0) -> BatchRow:
    ids = np.full(length, length, np.int32)
    return BatchRow(ids, np.ones(length, bool), np.full(length, worth, np.float32), np.zeros(length, np.float32))


def loads(lengths: list[list[int]], moves: dict[tuple[int, int], int]) -> list[int]:
    parts = [0] * len(lengths)
    for rank, own in enumerate(lengths):
        for i, length in enumerate(own):
            parts[moves.get((rank, i), rank)] += length
    return parts


def test_the_largest_part_gives_the_row_that_evens_it_out() -> None:
    assert plan([[6, 4, 2], [4]]) == {(0, 1): 1}  # 12 and 4 -> 8 and 8
    assert plan([[9, 1], [0], [8]]) == {(0, 1): 1}  # 10, 0, 8: the nine would leave 1, 9, 8; the one leaves 9, 1, 8
    assert plan([[5, 5], [5, 5]]) == {}
    assert plan([[100], []]) == {}  # a single row cannot be shared


@given(PARTS)
def test_parts_differ_by_less_than_a_row_and_only_rows_with_tokens_move(lengths: list[list[int]]) -> None:
    moves = plan(lengths)
    before, after = [sum(own) for own in lengths], loads(lengths, moves)
    assert sum(after) == sum(before)
    assert max(after) <= max(before)
    assert all(lengths[rank][i] and target != rank for (rank, i), target in moves.items())
    high = after.index(max(after))
    held = [
        n for rank, own in enumerate(lengths) for i, n in enumerate(own) if n and moves.get((rank, i), rank) == high
    ]
    gap = max(after) - min(after)
    assert not held or gap <= TOLERANCE * sum(after) / len(after) or min(held) >= gap


def test_processes_exchange_whole_rows_and_leave_those_without_gradient() -> None:
    owned = [[row(6), row(4), row(2), row(50, 0.0)], [row(4)]]

    def exchange(processes: Processes) -> list[tuple[int, float]]:
        rows = balanced(owned[processes.rank], lambda r: bool(r.advantages.any()), processes)
        return [(len(r.ids), float(r.advantages[0])) for r in rows]

    assert together(2, exchange) == [[(6, 1.0), (2, 1.0), (50, 0.0)], [(4, 1.0), (4, 1.0)]]


@pytest.mark.parametrize("rows", [[], [row(3)]])
def test_alone_nothing_moves(rows: list[BatchRow]) -> None:
    assert balanced(rows, lambda _: True, Processes()) is rows
