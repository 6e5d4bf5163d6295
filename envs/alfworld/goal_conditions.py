"""When a game is won: the goal's formula, recognised once and then tested in microseconds.

ALFWorld's six task types use three formulas: some objects with some property in one receptacle of a type (one object,
or two different ones), and a lamp that is on at the agent's place while it holds an object. Anything that satisfies
the formula wins, also objects that lay there from the start.
"""

from typing import NamedTuple, Protocol

from agentrl.envs.alfworld.pddl import Expression, format_expression
from agentrl.envs.env_errors import DataError

_PROPERTIES = (("isclean", "cleanable"), ("ishot", "heatable"), ("iscool", "coolable"))

# the formulas of the published games without their type literals; quantified variables have fixed names there
_PLACE_ONE = frozenset({("inreceptacle", "?o", "?r")})
_PLACE_TWO = frozenset({("inreceptacle", "?o1", "?r"), ("inreceptacle", "?o2", "?r"), ("differ", "?o1", "?o2")})
_LIGHT = frozenset(
    {
        ("toggleable", "?ot"),
        ("istoggled", "?ot"),
        ("receptacleatlocation", "?r", "?l"),
        ("atlocation", "?a", "?l"),
        ("inreceptacle", "?ot", "?r"),
        ("holds", "?a", "?o"),
    }
)


class Entities(Protocol):
    """What a goal needs to know of a game: which entities, by index, are of a type or carry a flag."""

    def objects_of_type(self, kind: str) -> frozenset[int]:
        """The objects of a type."""

    def receptacles_of_type(self, kind: str) -> frozenset[int]:
        """The receptacles of a type."""

    def objects_with(self, flag: str) -> frozenset[int]:
        """The objects for which a unary fact is given."""


class Layout(Protocol):
    """What a goal needs to know of a game while it is played."""

    @property
    def receptacles_at(self) -> tuple[tuple[int, ...], ...]:
        """The receptacles at each location."""


class State(Protocol):
    """What a goal needs to know of the world now; the engine is one."""

    location: int
    held: int
    contents: list[tuple[int, ...]]
    states: dict[str, set[int]]

    @property
    def game(self) -> Layout:
        """The game being played."""


class PlaceGoal(NamedTuple):
    """`num_objects` of `objects`, each with `property`, are in one and the same of `receptacles`."""

    objects: frozenset[int]
    receptacles: frozenset[int]
    property: str | None  # "isclean", "ishot", "iscool"
    num_objects: int

    def is_reached(self, state: State) -> bool:
        """Whether the formula holds now."""
        wanted = self.objects
        if self.property is not None:
            wanted = wanted & state.states[self.property]
            if not wanted:
                return False
        contents = state.contents
        return any(
            len(wanted.intersection(contents[receptacle])) >= self.num_objects for receptacle in self.receptacles
        )


class LightGoal(NamedTuple):
    """An object out of `objects` is held, and a lamp out of `lamps` that was turned on is where the agent is."""

    objects: frozenset[int]
    lamps: frozenset[int]

    def is_reached(self, state: State) -> bool:
        """Whether the formula holds now."""
        if state.held not in self.objects:
            return False
        lit = self.lamps & state.states["istoggled"]
        here = state.game.receptacles_at[state.location]
        return bool(lit) and any(lit.intersection(state.contents[receptacle]) for receptacle in here)


Goal = PlaceGoal | LightGoal


def parse_goal(goal: Expression, entities: Entities) -> Goal:
    """Recognise the formula of a PDDL goal; raises `DataError` for one that no ALFWorld task has."""
    literals = _literals(goal[1:])
    types = {literal[1]: literal[2] for literal in literals if literal[0] in ("objecttype", "receptacletype")}
    rest = frozenset(literal for literal in literals if literal[0] not in ("objecttype", "receptacletype"))
    if rest == _PLACE_ONE and types.keys() == {"?o", "?r"}:
        return PlaceGoal(entities.objects_of_type(types["?o"]), entities.receptacles_of_type(types["?r"]), None, 1)
    if rest == _PLACE_TWO and types.keys() == {"?o1", "?o2", "?r"} and types["?o1"] == types["?o2"]:
        return PlaceGoal(entities.objects_of_type(types["?o1"]), entities.receptacles_of_type(types["?r"]), None, 2)
    if rest == _LIGHT and types.keys() == {"?ot", "?o"}:
        lamps = entities.objects_of_type(types["?ot"]) & entities.objects_with("toggleable")
        return LightGoal(entities.objects_of_type(types["?o"]), lamps)
    for predicate, flag in _PROPERTIES:
        if rest == _PLACE_ONE | {(predicate, "?o"), (flag, "?o")} and types.keys() == {"?o", "?r"}:
            objects = entities.objects_of_type(types["?o"]) & entities.objects_with(flag)
            return PlaceGoal(objects, entities.receptacles_of_type(types["?r"]), predicate, 1)
    raise DataError(f"the goal is none of ALFWorld's six task types: {format_expression(goal)[:300]}.")


def _literals(expressions: Expression) -> set[tuple[str, ...]]:
    """The literals under nested `and` and `exists`; `(not (= a b))` becomes ("differ", a, b)."""
    found: set[tuple[str, ...]] = set()
    for expression in expressions:
        match expression:
            case ["and", *parts] | ["exists", [*_], *parts]:
                found |= _literals(parts)
            case ["not", ["=", *symbols]]:
                found.add(("differ", *map(str, symbols)))
            case [*symbols]:
                found.add(tuple(map(str, symbols)))
            case _:
                found.add((expression,))
    return found
