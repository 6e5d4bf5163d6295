"""A parsed game: everything that never changes while it is played, shared by all who play it.

Objects, receptacles and locations are numbered in the order of their ids, which is the order of every list in the
game's texts.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from agentrl.envs.alfworld.goal_conditions import parse_goal
from agentrl.envs.alfworld.pddl import PddlProblem
from agentrl.envs.alfworld.texts import DIALECTS
from agentrl.envs.env_errors import DataError
from agentrl.envs.options import check_choice

TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)

# one-place facts about objects
_FLAGS = ("pickupable", "cleanable", "heatable", "coolable", "toggleable", "sliceable", "isreceptacleobject")
_STATES = ("ishot", "iscool", "isclean", "istoggled", "issliced")
TOOL_TYPES = {
    "clean": frozenset({"sinkbasintype", "sinktype"}),
    "heat": frozenset({"microwavetype"}),
    "cool": frozenset({"fridgetype"}),
}
KNIFE_TYPES = frozenset({"knifetype", "butterknifetype"})

_ID_SEPARATOR = "_bar_"


class Action(NamedTuple):
    """What a command does: a verb of the engine with the indices of what it names (-1: nothing)."""

    verb: str
    first: int = -1
    second: int = -1


class GameRecord(NamedTuple):
    """A game as its file or generator gives it, before it is prepared for play."""

    name: str  # path relative to json_2.1.1, without the file name
    category: str  # one of TASK_TYPES
    task: str  # the task sentence
    problem: PddlProblem
    walkthrough: tuple[str, ...]  # commands of the `move` dialect that win


class _Commands(dict[tuple[int, int], str]):
    """The commands of one two-place verb by the indices of what they name, written on first use."""

    def __init__(self, verb: str, template: str, first: Sequence[str], second: Sequence[str], game: "Game") -> None:
        self._verb, self._template, self._first, self._second = verb, template, first, second
        self._actions = game.actions

    def __missing__(self, key: tuple[int, int]) -> str:
        command = self._template.format(self._first[key[0]], self._second[key[1]])
        self._actions[command] = Action(self._verb, *key)
        self[key] = command
        return command


class Game:
    """One game in one dialect, prepared for play.

    Attributes name what the engine asks for: names by index, who is where at the start, which object may go where, and
    the commands by what they name. `actions` maps every command that was ever offered to its `Action`.
    """

    def __init__(self, record: GameRecord, *, grammar: str = "move") -> None:
        check_choice("grammar", grammar, DIALECTS)
        self.name, self.category, self.task = record.name, record.category, record.task
        self.dialect = DIALECTS[grammar]
        self.walkthrough = tuple(translate_command(command, grammar) for command in record.walkthrough)
        facts = record.problem.facts
        self._read_entities(facts)
        self._read_rules(facts)
        self._read_start(facts)
        self.goal = parse_goal(record.problem.goal, self)
        self._write_commands()

    def _read_entities(self, facts: dict[str, set[tuple[str, ...]]]) -> None:
        """Number and name objects, receptacles and locations."""
        names = _names(symbol for arguments in facts.values() for row in arguments for symbol in row)
        located = facts.get("receptacleatlocation", set())
        contained = facts.get("inreceptacle", set())
        receptacles = {row[0] for row in located | facts.get("receptacletype", set())} | {row[1] for row in contained}
        objects = {row[0] for row in contained | facts.get("objectatlocation", set()) | facts.get("objecttype", set())}
        objects |= {symbol for row in facts.get("inreceptacleobject", set()) for symbol in row}
        objects |= {row[0] for flag in _FLAGS + _STATES for row in facts.get(flag, set())}
        places = {row[1] for row in located | facts.get("objectatlocation", set()) | facts.get("atlocation", set())}
        if not facts.get("atlocation") or not receptacles:
            raise DataError("expected the facts of a room: an agent's location and receptacles; found none.")
        self._object_index = {symbol: index for index, symbol in enumerate(sorted(objects))}
        self._receptacle_index = {symbol: index for index, symbol in enumerate(sorted(receptacles))}
        self._location_index = {symbol: index for index, symbol in enumerate(sorted(places))}
        self.object_names = tuple(names.get(symbol, f"{symbol} ") for symbol in self._object_index)
        self.receptacle_names = tuple(names.get(symbol, f"{symbol} ") for symbol in self._receptacle_index)
        self.location_names = tuple(names.get(symbol, f"{symbol} ") for symbol in self._location_index)

    def _read_rules(self, facts: dict[str, set[tuple[str, ...]]]) -> None:
        """What is of which type and may be done with it, and which receptacle stands where."""
        object_index, receptacle_index = self._object_index, self._receptacle_index
        self._flags = {
            flag: frozenset(object_index[row[0]] for row in facts.get(flag, ())) for flag in _FLAGS + _STATES
        }
        object_types = {row[0]: row[1] for row in facts.get("objecttype", ())}
        receptacle_types = {row[0]: row[1] for row in facts.get("receptacletype", ())}
        self.object_types = tuple(object_types.get(symbol, "") for symbol in object_index)
        self.receptacle_types = tuple(receptacle_types.get(symbol, "") for symbol in receptacle_index)
        self.openable = frozenset(
            receptacle_index[row[0]] for row in facts.get("openable", ()) if row[0] in receptacle_index
        )
        self.can_contain = _shared(frozenset(facts.get("cancontain", ())))
        self.pickupable, self.toggleable = self._flags["pickupable"], self._flags["toggleable"]
        self.sliceable, self.containers = self._flags["sliceable"], self._flags["isreceptacleobject"]
        self.knives = frozenset(index for index, kind in enumerate(self.object_types) if kind in KNIFE_TYPES)
        self.treatable = {verb: self._flags[f"{verb}able"] for verb in TOOL_TYPES}
        self.tools = {
            verb: frozenset(index for index, kind in enumerate(self.receptacle_types) if kind in types)
            for verb, types in TOOL_TYPES.items()
        }
        where = {row[0]: row[1] for row in facts.get("receptacleatlocation", ())}
        self.receptacle_locations = tuple(
            self._location_index.get(where.get(symbol, ""), -1) for symbol in receptacle_index
        )
        at: list[list[int]] = [[] for _ in self._location_index]
        for receptacle, location in enumerate(self.receptacle_locations):
            if location >= 0:
                at[location].append(receptacle)
        self.receptacles_at = tuple(map(tuple, at))

    def _read_start(self, facts: dict[str, set[tuple[str, ...]]]) -> None:
        """The state in which play begins."""
        objects, receptacles, locations = self._object_index, self._receptacle_index, self._location_index
        contents: list[list[int]] = [[] for _ in receptacles]
        for item, receptacle in facts.get("inreceptacle", ()):
            contents[receptacles[receptacle]].append(objects[item])
        self.start_contents = tuple(tuple(sorted(items)) for items in contents)
        self.start_places = frozenset(
            (objects[item], locations[place]) for item, place in facts.get("objectatlocation", ())
        )
        self.start_location = locations[next(iter(facts["atlocation"]))[1]]
        self.start_opened = frozenset(receptacles[row[0]] for row in facts.get("opened", ()) if row[0] in receptacles)
        self.start_states = {state: self._flags[state] for state in _STATES}
        inner: dict[int, list[int]] = {}
        for item, container in facts.get("inreceptacleobject", ()):
            inner.setdefault(objects[container], []).append(objects[item])
        self.inner = {container: tuple(sorted(items)) for container, items in inner.items()}

    def _write_commands(self) -> None:
        """The commands by what they name; those with two names are written when first offered."""
        self.plain_commands = ("help", "inventory", "look") if self.dialect.has_help else ("inventory", "look")
        self.actions = {command: Action(command) for command in self.plain_commands}
        self.open_commands = self._one_place("open", "open {}", self.receptacle_names)
        self.close_commands = self._one_place("close", "close {}", self.receptacle_names)
        self.examine_commands = self._one_place("examine", "examine {}", self.receptacle_names)
        self.inspect_commands = self._one_place("inspect", "examine {}", self.object_names)
        self.use_commands = self._one_place("use", "use {}", self.object_names)
        go_to = self._one_place("go", "go to {}", self.receptacle_names)
        self.go_commands = tuple(self._go_commands_from(here, go_to) for here in range(len(self.location_names)))
        objects, receptacles = self.object_names, self.receptacle_names
        self.take_commands = _Commands("take", "take {} from {}", objects, receptacles, self)
        self.put_commands = _Commands("put", self.dialect.put_command, objects, receptacles, self)
        self.slice_commands = _Commands("slice", "slice {} with {}", objects, objects, self)
        self.treat_commands = {
            verb: _Commands(verb, verb + " {} with {}", objects, receptacles, self) for verb in TOOL_TYPES
        }

    def _go_commands_from(self, here: int, go_to: Sequence[str]) -> tuple[str, ...]:
        """The sorted commands that lead away from a location; none for one where the agent never is."""
        if not self.receptacles_at[here] and here != self.start_location:
            return ()
        where = zip(go_to, self.receptacle_locations, strict=True)
        return tuple(sorted(command for command, location in where if location not in (-1, here)))

    def _one_place(self, verb: str, template: str, names: Sequence[str]) -> tuple[str, ...]:
        commands = tuple(template.format(name) for name in names)
        self.actions.update((command, Action(verb, index)) for index, command in enumerate(commands))
        return commands

    def objects_of_type(self, kind: str) -> frozenset[int]:
        """The objects of a type, e.g. "mugtype"."""
        return frozenset(index for index, found in enumerate(self.object_types) if found == kind)

    def receptacles_of_type(self, kind: str) -> frozenset[int]:
        """The receptacles of a type, e.g. "desktype"."""
        return frozenset(index for index, found in enumerate(self.receptacle_types) if found == kind)

    def objects_with(self, flag: str) -> frozenset[int]:
        """The objects with a one-place fact, e.g. "cleanable"."""
        return self._flags[flag]


def _names(symbols: Iterable[str]) -> dict[str, str]:
    """Names such as "cabinet 13" for the ids among the symbols.

    A class is what precedes the first separator, with "basin" appended where the id contains that word. Within a class
    the ids count downwards in their order: the first gets the highest number.
    Source: ALFWorld, `agents/utils/misc.py`, class `Demangler`, without its shuffling.
    """
    ids = sorted({symbol for symbol in symbols if _ID_SEPARATOR in symbol})
    classes = [id_.split(_ID_SEPARATOR, 1)[0] + ("basin" if "basin" in id_ else "") for id_ in ids]
    remaining = Counter(classes)
    names = {}
    for id_, class_name in zip(ids, classes, strict=True):
        names[id_] = f"{class_name} {remaining[class_name]}"
        remaining[class_name] -= 1
    return names


_SHARED: dict[frozenset[tuple[str, ...]], frozenset[tuple[str, ...]]] = {}


def _shared(pairs: frozenset[tuple[str, ...]]) -> frozenset[tuple[str, ...]]:
    """The same object for equal sets: games of one scene share their containment rules."""
    return _SHARED.setdefault(pairs, pairs)


_MOVE = re.compile(r"move (.+) to (.+)")


def translate_command(command: str, grammar: str) -> str:
    """A command of the `move` dialect in the dialect asked for.

    >>> translate_command("move mug 1 to desk 2", "put")
    'put mug 1 in/on desk 2'
    """
    match = _MOVE.fullmatch(command) if grammar == "put" else None
    return DIALECTS["put"].put_command.format(*match.groups()) if match else command
