"""A seeded curriculum of arithmetic and algebra, small enough for a tiny model, and a pupil who makes mistakes.

Prompts and working are digits, signs and a few words. Five kinds of problems, by level:

| level | kind        | problem     | working and answer                         | mistake                          |
|-------|-------------|-------------|--------------------------------------------|----------------------------------|
| 1     | addition    | `47+38`     | `7+8=15 4+3+1=8 \\boxed{85}`                | the carry is forgotten           |
| 2     | subtraction | `52-17`     | `12-7=5 4-1=3 \\boxed{35}`                  | the smaller digit from the larger |
| 3     | precedence  | `3+4*2`     | `4*2=8 3+8=11 \\boxed{11}`                  | from left to right               |
| 4     | bracket     | `7*(9-5)`   | `9-5=4 7*4=28 \\boxed{28}`                  | only the first term is multiplied |
| 5     | equation    | `x+38=85`   | `x=85-38 15-8=7 7-3=4 \\boxed{47}`          | the term keeps its sign          |
"""

import hashlib
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from agentrl.envs.env_errors import DataError
from agentrl.envs.math.problems import Problem

LEVELS = ("addition", "subtraction", "precedence", "bracket", "equation")
EXPERTS = ("default", "careful")

_Numbers = tuple[int, ...]


class Solution(NamedTuple):
    """Working and result as a pupil writes them."""

    working: str
    result: int

    def __str__(self) -> str:
        return rf"{self.working} \boxed{{{self.result}}}"


class _ProblemKind(NamedTuple):
    """How problems of one level are drawn, written and solved.

    Attributes:
        numbers: lists the numbers of all problems of the level.
        write: the numbers -> its text.
        solve: the numbers, whether the pupil makes the mistake -> the solution.
        tempts: whether the mistake is possible with these numbers.
    """

    numbers: Callable[[], Iterable[_Numbers]]
    write: Callable[..., str]
    solve: Callable[..., Solution]
    tempts: Callable[..., bool]


@lru_cache(maxsize=8)
def make_problems(*, split: str, num_problems: int, seed: int = 0, levels: tuple[int, ...] = ()) -> tuple[Problem, ...]:
    """At most `num_problems` distinct problems of a split, as many of each level (1 to 5; default all) as it has.

    A problem belongs to the training or the test split by a hash of its text and the seed (a fifth is held out), so
    that the splits are disjoint whatever their sizes.

    Raises `DataError` for a level that does not exist.
    """
    chosen = levels or tuple(range(1, len(LEVELS) + 1))
    if not set(chosen) <= set(range(1, len(LEVELS) + 1)):
        raise DataError(f"levels of the curriculum are 1 to {len(LEVELS)}, got {list(levels)}.")
    share = -(-num_problems // len(chosen))
    made: list[Problem] = []
    for level in chosen:
        problems = [make_problem(level, numbers) for numbers in _KINDS[level - 1].numbers()]
        problems = [p for p in problems if is_held_out(p.problem, seed=seed) == (split != "train")]
        made += (problems[i] for i in np.random.default_rng((seed, level)).permutation(len(problems))[:share])
    # Shuffled, so that evenly spread picks meet all levels.
    return tuple(made[i] for i in np.random.default_rng(seed).permutation(len(made))[:num_problems])


def solve(problem: Problem, random: np.random.Generator | None = None, *, mistake_prob: float = 0.0) -> str:
    """A written solution; with `random`, one that makes its level's mistake with a probability where it is possible.

    >>> solve(make_problem(1, (47, 38)))
    '7+8=15 4+3+1=8 \\\\boxed{85}'
    """
    level, numbers = _parse(problem)
    kind = _KINDS[level - 1]
    errs = random is not None and random.random() < mistake_prob and kind.tempts(*numbers)
    return str(kind.solve(*numbers, errs))


def make_problem(level: int, numbers: _Numbers) -> Problem:
    """The problem of a level with given numbers."""
    kind = _KINDS[level - 1]
    text = kind.write(*numbers)
    answer = str(kind.solve(*numbers, False).result)
    return Problem(":".join(map(str, (level, *numbers))), text, answer, "curriculum", _metadata(level))


def _metadata(level: int) -> dict[str, str | int | float]:
    return {"subject": LEVELS[level - 1], "level": level}


def _parse(problem: Problem) -> tuple[int, _Numbers]:
    level, *numbers = map(int, problem.id.split(":"))
    return level, tuple(numbers)


def is_held_out(text: str, *, seed: int, share: float = 0.2) -> bool:
    """Whether a text belongs to the test split: the same answer in every process."""
    digest = hashlib.blake2b(f"{seed}:{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _add(a: int, b: int, mistake: bool) -> Solution:
    units = a % 10 + b % 10
    carry = units // 10 if not mistake else 0
    tens = a // 10 + b // 10 + carry
    carried = f"+{carry}" if carry else ""
    return Solution(f"{a % 10}+{b % 10}={units} {a // 10}+{b // 10}{carried}={tens}", 10 * tens + units % 10)


def _subtract(a: int, b: int, mistake: bool) -> Solution:
    top, bottom, left = a % 10, b % 10, a // 10
    if top < bottom and mistake:
        top, bottom = bottom, top
    elif top < bottom:
        top, left = top + 10, left - 1
    tens = left - b // 10
    return Solution(f"{top}-{bottom}={top - bottom} {left}-{b // 10}={tens}", 10 * tens + top - bottom)


def _precedence(a: int, b: int, c: int, mistake: bool) -> Solution:
    if mistake:
        return Solution(f"{a}+{b}={a + b} {a + b}*{c}={(a + b) * c}", (a + b) * c)
    return Solution(f"{b}*{c}={b * c} {a}+{b * c}={a + b * c}", a + b * c)


def _bracket(a: int, b: int, c: int, mistake: bool) -> Solution:
    if mistake:
        return Solution(f"{a}*{b}={a * b} {a * b}-{c}={a * b - c}", a * b - c)
    return Solution(f"{b}-{c}={b - c} {a}*{b - c}={a * (b - c)}", a * (b - c))


def _equation(b: int, right: int, mistake: bool) -> Solution:
    moved = _add(right, b, False) if mistake else _subtract(right, b, False)
    return Solution(f"x={right}{'+' if mistake else '-'}{b} {moved.working}", moved.result)


_TWO_DIGITS = range(10, 100)
_FACTORS, _DIGITS = range(2, 10), range(1, 10)

_KINDS = (
    _ProblemKind(
        lambda: product(_TWO_DIGITS, _TWO_DIGITS), "{}+{}".format, _add,
        tempts=lambda a, b: a % 10 + b % 10 >= 10,
    ),
    _ProblemKind(
        lambda: ((a, b) for a in _TWO_DIGITS for b in range(10, a + 1)), "{}-{}".format, _subtract,
        tempts=lambda a, b: a % 10 < b % 10,
    ),
    _ProblemKind(
        lambda: product(_DIGITS, _FACTORS, _FACTORS), "{}+{}*{}".format, _precedence,
        tempts=lambda a, b, c: True,
    ),
    _ProblemKind(
        lambda: ((a, c + d, c) for a in _FACTORS for c in _DIGITS for d in _DIGITS), "{}*({}-{})".format, _bracket,
        tempts=lambda a, b, c: True,
    ),
    _ProblemKind(
        lambda: ((b, right) for b in _TWO_DIGITS for right in range(b + 1, 100)), "x+{}={}".format, _equation,
        tempts=lambda b, right: True,
    ),
)  # fmt: skip
