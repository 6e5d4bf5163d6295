"""Who plays well: an expert that explores with open eyes, and one that follows the walkthrough.

The exploring expert is told what the agent is told, the observation texts and the agent's own actions, and nothing
else; what it does next depends on that alone, and the same situation leads to the same action. So its episodes can be
imitated by a model, from any state that another policy has led it into.
"""

import re
from typing import Any, NamedTuple, Protocol

from agentrl.envs.alfworld.household import contents_of, likely_places
from agentrl.envs.alfworld.planner import plan
from agentrl.envs.alfworld.text_engine import TextEngine
from agentrl.envs.alfworld.texts import DIALECTS, NOTHING_HAPPENS

EXPERTS = ("exploring", "walkthrough")


class HouseholdExpert(Protocol):
    """Proposes the next action of one episode."""

    def observe(self, action: str, observation: str) -> None:
        """Take note of what the agent did and what came of it."""

    def act(self) -> str:
        """The action to take now."""


class HouseholdTask(NamedTuple):
    """What a task sentence asks for; for a light task `place` is the class of the lamp."""

    item: str
    place: str
    treatment: str | None = None  # the verb that gives the object the property: "clean", "heat", "cool"
    num_objects: int = 1
    is_light: bool = False


_SENTENCES: tuple[tuple[re.Pattern[str], dict[str, Any]], ...] = (
    (re.compile(r"put two (\w+) in (\w+)\.|find two (\w+) and put them in (\w+)\."), {"num_objects": 2}),
    (re.compile(r"put a clean (\w+) in (\w+)\.|clean some (\w+) and put it in (\w+)\."), {"treatment": "clean"}),
    (re.compile(r"put a hot (\w+) in (\w+)\.|heat some (\w+) and put it in (\w+)\."), {"treatment": "heat"}),
    (re.compile(r"put a cool (\w+) in (\w+)\.|cool some (\w+) and put it in (\w+)\."), {"treatment": "cool"}),
    (re.compile(r"put a (\w+) in (\w+)\.|put some (\w+) on (\w+)\."), {}),
    (re.compile(r"look at (\w+) under the (\w+)\.|examine the (\w+) with the (\w+)\."), {"is_light": True}),
)
_TOOLS = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}
_DOORS = frozenset({"fridge", "microwave", "cabinet", "drawer", "safe"})

_TASK = re.compile(r"Your task is to: (.*)")
_ROOM = re.compile(r"you see (.*?)\.\n")
_VIEW = re.compile(r"(?:On the|The) (\w+ \d+)(?: is open\. In it)?, you see (.*?)\.")
_CLOSED = re.compile(r"The (\w+ \d+) is closed\.|You close the (\w+ \d+)\.")
_TAKEN = re.compile(r"You pick up the (\w+ \d+) from the (\w+ \d+)\.")
_PUT = re.compile(r"You (?:move|put) the (\w+ \d+) (?:to|in/on) the (\w+ \d+)\.")
_TREATED = re.compile(r"You (clean|heat|cool) the (\w+ \d+) using")
_NAME = re.compile(r"\w+ \d+")
_TRIED = re.compile(r"(go to|open|take|move|put) (\w+ \d+)(?: (?:from|to|in/on) (\w+ \d+))?")


def parse_task(sentence: str) -> HouseholdTask:
    """What the sentence asks for; raises `ValueError` for one that is none of ALFWorld's templates.

    >>> parse_task("heat some mug and put it in coffeemachine.")
    HouseholdTask(item='mug', place='coffeemachine', treatment='heat', num_objects=1, is_light=False)
    """
    for pattern, properties in _SENTENCES:
        match = pattern.fullmatch(sentence.strip())
        if match:
            item, place = (group for group in match.groups() if group)
            return HouseholdTask(item, place, **properties)
    raise ValueError(f"expected a task sentence of ALFWorld, got {sentence!r}.")


def _class(name: str) -> str:
    return name.split(" ")[0]


def _number(name: str) -> int:
    return int(name.split(" ")[1])


class ExploringExpert:
    """Looks for the object where it is likeliest, treats it where the task says so, and brings it to its place.

    Receptacles are visited in a fixed order: by the share of such receptacles that hold such an object in the training
    games, per step that a look costs, then by name and number. What was seen on the way is remembered. A receptacle
    that cannot be gone to because it is right here is examined instead.
    """

    def __init__(self, observation: str, *, grammar: str = "move") -> None:
        task, room = _TASK.search(observation), _ROOM.search(observation)
        if not task or not room:
            raise ValueError(f"expected the opening text of a game, got {observation[:200]!r}.")
        self.task = parse_task(task.group(1))
        self._dialect = DIALECTS[grammar]
        self._receptacles = sorted(_NAME.findall(room.group(1)), key=lambda name: (_class(name), _number(name)))
        self._here: set[str] = set()  # receptacles known to be at the agent's location
        self._together: dict[str, set[str]] = {}  # receptacles found to share a location
        self._seen: dict[str, list[str]] = {}  # what each receptacle held when last seen
        self._closed: set[str] = set()
        self._refused: set[str] = set()  # targets that did not take the object
        self._treated: set[str] = set()
        self._held: str | None = None
        self._origin = ""

    # ---------------------------------------------------------------- what was seen

    def observe(self, action: str, observation: str) -> None:
        """Take note of what the agent did and what came of it."""
        action = action.strip()
        if observation == NOTHING_HAPPENS:
            self._note_failure(action)
        elif observation.startswith("You arrive at"):
            receptacle = action.removeprefix("go to ")
            self._here = self._together.setdefault(receptacle, {receptacle})
        for receptacle, items in _VIEW.findall(observation):
            self._seen[receptacle] = _NAME.findall(items)
            self._closed.discard(receptacle)
        for names in _CLOSED.findall(observation):
            self._closed.add(names[0] or names[1])
        for item, receptacle in _TAKEN.findall(observation):
            self._held, self._origin = item, receptacle
            self._seen[receptacle] = [other for other in self._seen.get(receptacle, []) if other != item]
        for item, receptacle in _PUT.findall(observation):
            self._held = None
            self._seen.setdefault(receptacle, []).append(item)
        for verb, item in _TREATED.findall(observation):
            if verb == self.task.treatment:
                self._treated.add(item)
            elif {verb, self.task.treatment} == {"heat", "cool"}:  # one undoes the other
                self._treated.discard(item)

    def _note_failure(self, action: str) -> None:
        """Learn from "Nothing happens."."""
        match = _TRIED.fullmatch(action)
        verb, first, second = match.groups() if match else ("", "", "")
        if verb == "go to" and first in self._receptacles and self._here:
            self._here.add(first)  # it cannot be gone to because it is here
            self._together[first] = self._here
        elif verb == "take" and second in self._seen:
            self._seen[second] = [item for item in self._seen[second] if item != first]
        elif verb in ("move", "put") and second:
            self._refused.add(second)
        elif verb == "open":
            self._closed.discard(first)

    # ---------------------------------------------------------------- what to do

    def act(self) -> str:
        """The action to take now."""
        if not self._receptacles:
            return "look"  # the opening text named none, as where the agent starts in front of one
        held = self._held
        if held is not None and _class(held) != self.task.item:
            return self._bring(held, self._origin)
        if self.task.is_light:
            return self._find(self.task.item) if held is None else self._light()
        if held is None:
            return self._find(self.task.item)
        if self.task.treatment is not None and held not in self._treated:
            tool = self._first(_TOOLS[self.task.treatment])
            return self._reach(tool) or f"{self.task.treatment} {held} with {tool}"
        return self._bring(held, self._target())

    def _find(self, item: str) -> str:
        """Take an object of the class, or look where the next one may be."""
        placed = set() if self.task.is_light else self._ready_in(self._target())
        for receptacle in sorted(self._seen, key=lambda name: (name not in self._here, self._rank(item, name))):
            for found in self._seen[receptacle]:
                if _class(found) == item and found not in placed:
                    return self._reach(receptacle) or self._opened(receptacle) or f"take {found} from {receptacle}"
        return self._explore(item)

    def _light(self) -> str:
        """Turn on a lamp, or look where one may be."""
        lamp = self.task.place
        for receptacle in sorted(self._seen, key=lambda name: (name not in self._here, self._rank(lamp, name))):
            for found in self._seen[receptacle]:
                if _class(found) == lamp:
                    return self._reach(receptacle) or f"use {found}"
        return self._explore(lamp)

    def _explore(self, item: str) -> str:
        """Look into the next receptacle that may hold the object."""
        unseen = [receptacle for receptacle in self._receptacles if receptacle not in self._seen]
        if not unseen:
            self._seen.clear()  # somebody moved it: start over
            unseen = self._receptacles
        receptacle = min(unseen, key=lambda name: (name not in self._here, self._rank(item, name)))
        return self._reach(receptacle) or self._opened(receptacle) or f"examine {receptacle}"

    def _bring(self, item: str, receptacle: str) -> str:
        return self._reach(receptacle) or self._opened(receptacle) or self._dialect.put_command.format(item, receptacle)

    def _reach(self, receptacle: str) -> str | None:
        return None if receptacle in self._here else f"go to {receptacle}"

    def _opened(self, receptacle: str) -> str | None:
        return f"open {receptacle}" if receptacle in self._closed else None

    # ---------------------------------------------------------------- where to go

    def _rank(self, item: str, receptacle: str) -> tuple[float, bool, str, int]:
        """Smaller is visited sooner."""
        kind = _class(receptacle)
        chance = likely_places(item).get(kind, 0.5 if item in contents_of(kind) else 0.0)
        has_door = kind in _DOORS  # opening it costs a second step
        return (-chance / (2 if has_door else 1), has_door, kind, _number(receptacle))

    def _first(self, kind: str) -> str:
        """The receptacle of the class with the lowest number; the first one of all where there is none."""
        return next((name for name in self._receptacles if _class(name) == kind), self._receptacles[0])

    def _target(self) -> str:
        """The receptacle that is to hold the objects: the one that holds most of them, else the first of its class."""
        targets = [name for name in self._receptacles if _class(name) == self.task.place and name not in self._refused]
        return max(targets, key=lambda name: len(self._ready_in(name)), default=self._first(self.task.place))

    def _ready_in(self, receptacle: str) -> set[str]:
        """Objects in the receptacle that count for the goal."""
        return {
            item
            for item in self._seen.get(receptacle, [])
            if _class(item) == self.task.item and (self.task.treatment is None or item in self._treated)
        }


class WalkthroughExpert:
    """Follows the game's walkthrough; where the agent has left it, a plan made with full knowledge of the game."""

    def __init__(self, engine: TextEngine) -> None:
        self._engine = engine
        self._plan: list[str] | None = list(engine.game.walkthrough)

    def observe(self, action: str, observation: str) -> None:
        """Take note of what the agent did."""
        if self._plan and action.strip() == self._plan[0]:
            self._plan.pop(0)
        elif observation != NOTHING_HAPPENS:
            self._plan = None  # the plan may no longer hold: make one when asked

    def act(self) -> str:
        """The next command of the plan; "look" where the goal is reached or out of reach."""
        if self._plan is None:
            self._plan = plan(self._engine)
        return self._plan[0] if self._plan else "look"
