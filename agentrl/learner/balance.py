"""Rows change processes before an update, so that all have about as many tokens to compute. Same gradient.

Episodes differ in length and groups of equal rewards need no gradient, so the processes' own parts do too, and all wait
for the largest. Source of the idea: verl's `balance_batch`.
"""

from collections.abc import Callable, Sequence

from agentrl.learner.batch import BatchRow
from agentrl.model.processes import Processes

TOLERANCE = 0.01
"""Difference between the largest and the smallest part that is left alone, as a share of the mean part."""


def balanced(rows: list[BatchRow], keep: Callable[[BatchRow], bool], processes: Processes) -> list[BatchRow]:
    """This process's rows after the exchange: its own, less those it gave away, and those it was given.

    Args:
        rows: this process's rows.
        keep: rows for which this is False need no gradient; they stay where they are and weigh nothing.
        processes: all of them must ask together.
    """
    if processes.count == 1:
        return rows
    lengths = processes.gather([len(row.ids) if keep(row) else 0 for row in rows])
    moves = plan(lengths)
    if not moves:
        return rows
    given = {i: rows[i] for rank, i in moves if rank == processes.rank}
    everywhere = processes.gather(given)
    taken = [everywhere[rank][i] for (rank, i), target in moves.items() if target == processes.rank]
    return [row for i, row in enumerate(rows) if i not in given] + taken


def plan(lengths: Sequence[Sequence[int]]) -> dict[tuple[int, int], int]:
    """Which rows go where: (process, place among its rows) -> another process. Few rows move.

    Again and again the largest part gives the smallest the row that brings the two closest together, until none does or
    the parts differ by less than `TOLERANCE`.

    Args:
        lengths: tokens of every row, a list for each process; rows of no tokens stay.
    """
    parts = [{(rank, i): n for i, n in enumerate(own) if n} for rank, own in enumerate(lengths)]
    loads = [sum(part.values()) for part in parts]
    mean = sum(loads) / len(loads)
    while True:
        high, low = loads.index(max(loads)), loads.index(min(loads))
        gap = loads[high] - loads[low]
        fitting = [(abs(gap - 2 * n), n, row) for row, n in parts[high].items() if n < gap]
        if gap <= TOLERANCE * mean or not fitting:
            break
        _, length, row = min(fitting)
        parts[low][row] = parts[high].pop(row)
        loads[high] -= length
        loads[low] += length
    return {row: rank for rank, part in enumerate(parts) for row in part if row[0] != rank}
