"""Reading and writing the PDDL problem of a game: its initial facts and its goal.

Only the `:init` and `:goal` sections carry information; the `:objects` section repeats names. All symbols are
lower-cased, as the planner under the stock engine (Fast Downward) does.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from agentrl.envs.env_errors import DataError

_FACT = re.compile(r"\(([a-z]\w*) ([^()=]+)\)")
_GOAL_TOKEN = re.compile(r"[()]|[^\s()]+")
_COMMENT = re.compile(r";[^\n]*")

Expression = list["Expression | str"]


class PddlProblem(NamedTuple):
    """Initial facts and goal of one game.

    `facts` maps a predicate to the set of its argument tuples, all lower case, e.g.
    `facts["inreceptacle"] == {("mug_bar_…", "desk_bar_…")}`. `goal` is the goal as a nested list of symbols.
    """

    facts: dict[str, set[tuple[str, ...]]]
    goal: Expression


def parse_problem(text: str) -> PddlProblem:
    """Read the facts and the goal of a PDDL problem.

    Raises `DataError` where a section is missing or the parentheses of the goal do not match.
    """
    text = text.lower()
    if ";" in text:
        text = _COMMENT.sub("", text)
    start, end = text.find("(:init"), text.find("(:goal")
    if start < 0 or end < start:
        raise DataError("expected a PDDL problem with an :init section before its :goal section, found none.")
    facts: dict[str, set[tuple[str, ...]]] = {}
    # games repeat facts (a third of them): split the arguments of distinct ones only
    for predicate, arguments in set(_FACT.findall(text, start, end)):
        facts.setdefault(predicate, set()).add(tuple(arguments.split()))
    return PddlProblem(facts, parse_expression(text[end:]))


def parse_expression(text: str) -> Expression:
    """The first parenthesised expression of `text` as nested lists of symbols."""
    stack: list[Expression] = []
    for token in _GOAL_TOKEN.findall(text):
        if token == "(":
            stack.append([])
        elif not stack:
            break
        elif token == ")":
            done = stack.pop()
            if not stack:
                return done
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    raise DataError(f"the goal of the PDDL problem is not a closed expression: {text[:60]!r}.")


def format_expression(expression: Expression) -> str:
    """The expression as PDDL text.

    >>> format_expression(["and", ["holds", "?a", "?o"]])
    '(and (holds ?a ?o))'
    """
    return "(" + " ".join(part if isinstance(part, str) else format_expression(part) for part in expression) + ")"


def format_problem(problem: PddlProblem, *, name: str, objects: Iterable[tuple[str, str]]) -> str:
    """The PDDL problem as text that the stock engine reads; `objects` are (symbol, PDDL type) pairs."""
    declared = "\n".join(f"    {symbol} - {kind}" for symbol, kind in objects)
    facts = "\n".join(
        f"    ({predicate} {' '.join(arguments)})"
        for predicate in sorted(problem.facts)
        for arguments in sorted(problem.facts[predicate])
    )
    return (
        f"(define (problem {name})\n(:domain alfred)\n(:objects\n{declared}\n)\n"
        f"(:init\n{facts}\n)\n{format_expression(problem.goal)}\n)\n"
    )
