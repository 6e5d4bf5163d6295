"""Generated games: seeded tasks of all six types in procedural rooms, each with a walkthrough that wins.

Game `index` of a split is drawn from (data_seed, room_size, split, index) alone, so any game can be made at any time in
any process. Task types take turns. Games of `train`, `valid_train` and `valid_seen` play in the same rooms with other
objects; those of `valid_unseen` play in held-out rooms.
"""

from functools import cache
from random import Random
from typing import Any, NamedTuple

from agentrl.common.data_source import DataSource
from agentrl.envs.alfworld.game import TASK_TYPES, Game, GameRecord
from agentrl.envs.alfworld.household import contents_of, flags_of, likely_places, objects_of, objects_with
from agentrl.envs.alfworld.pddl import Expression, PddlProblem, format_problem, parse_expression
from agentrl.envs.alfworld.planner import plan
from agentrl.envs.alfworld.rooms import (
    NUM_HELD_OUT_ROOMS,
    NUM_TRAIN_ROOMS,
    ROOM_KINDS,
    HouseholdRoom,
    Receptacle,
    entity_id,
    location_id,
    room,
)
from agentrl.envs.alfworld.stock import game_file_content
from agentrl.envs.alfworld.text_engine import TextEngine
from agentrl.envs.options import check_at_least, check_choice

ROOM_SIZES = ("small", "official")
DEFAULT_NUM_GAMES = {"train": 3600, "valid_train": 240, "valid_seen": 240, "valid_unseen": 240}


class _Type(NamedTuple):
    """What the generator needs to know of a task type."""

    room_kinds: tuple[str, ...]
    sentences: tuple[str, str]
    flag: str | None = None  # what the object must be, e.g. "heatable"
    tool: str | None = None  # the receptacle class that does it
    property: str | None = None
    num_objects: int = 1


_TYPES = {
    "pick_and_place_simple": _Type(ROOM_KINDS, ("put a {0} in {1}.", "put some {0} on {1}.")),
    "look_at_obj_in_light": _Type(
        ("livingroom", "bedroom"), ("look at {0} under the {1}.", "examine the {0} with the {1}.")
    ),
    "pick_clean_then_place_in_recep": _Type(
        ("kitchen", "bathroom"),
        ("put a clean {0} in {1}.", "clean some {0} and put it in {1}."),
        "cleanable", "sinkbasin", "isClean",
    ),
    "pick_heat_then_place_in_recep": _Type(
        ("kitchen",), ("put a hot {0} in {1}.", "heat some {0} and put it in {1}."), "heatable", "microwave", "isHot"
    ),
    "pick_cool_then_place_in_recep": _Type(
        ("kitchen",), ("put a cool {0} in {1}.", "cool some {0} and put it in {1}."), "coolable", "fridge", "isCool"
    ),
    "pick_two_obj_and_place": _Type(
        ROOM_KINDS, ("put two {0} in {1}.", "find two {0} and put them in {1}."), num_objects=2
    ),
}  # fmt: skip


_ONE_GOAL = (
    "(:goal (and (exists (?r - receptacle) (exists (?o - object) (and {treated} (objectType ?o {item}Type) "
    "(receptacleType ?r {target}Type) (inReceptacle ?o ?r))))))"
)
_TWO_GOAL = (
    "(:goal (and (exists (?r - receptacle) (exists (?o1 - object) (and (objectType ?o1 {item}Type) "
    "(receptacleType ?r {target}Type) (inReceptacle ?o1 ?r) (exists (?o2 - object) (and (not (= ?o1 ?o2)) "
    "(objectType ?o2 {item}Type) (receptacleType ?r {target}Type) (inReceptacle ?o2 ?r))))))))"
)
_LIGHT_GOAL = (
    "(:goal (and (exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and (objectType ?ot {target}Type) "
    "(toggleable ?ot) (isToggled ?ot) (receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?ot ?r))) "
    "(exists (?o - object ?a - agent) (and (objectType ?o {item}Type) (holds ?a ?o)))))"
)


class GeneratedGames:
    """The generated games of one split; `load(i)` makes game i anew each time."""

    def __init__(
        self,
        split: str,
        *,
        room_size: str = "small",
        num_games: int | None = None,
        data_seed: int = 0,
        task_types: tuple[str, ...] = TASK_TYPES,
    ) -> None:
        check_choice("room_size", room_size, ROOM_SIZES)
        check_at_least("num_games", num_games)
        self.split, self.room_size, self.data_seed, self.task_types = split, room_size, data_seed, task_types
        self.num_games = DEFAULT_NUM_GAMES[split] if num_games is None else num_games

    def __len__(self) -> int:
        return self.num_games

    @property
    def data_source(self) -> DataSource:
        """The rooms are made here."""
        return DataSource("generated", len(self), about=f"{self.room_size} rooms, data seed {self.data_seed}")

    def find(self, name: str) -> int:
        """The number of the game with this name; raises `ValueError` where there is none."""
        digits = name.rpartition("_")[2]
        if not digits.isdecimal() or int(digits) >= len(self) or self.load(int(digits)).name != name:
            raise ValueError(f"the generated games of {self.split!r} have no game {name!r}.")
        return int(digits)

    def load(self, index: int, *, grammar: str = "move") -> Game:
        """Game `index`, ready for play."""
        return self._draw(index, grammar)[0]

    def content(self, index: int) -> dict[str, Any]:
        """The game as the content of an official file, for the stock engine (needs the extra "alfworld")."""
        game, problem = self._draw(index, "move")
        return game_file_content(problem, task=game.task, walkthrough=game.walkthrough)

    def definition(self, index: int) -> dict[str, Any]:
        """What the game is, as JSON: nothing else determines an episode."""
        game, problem = self._draw(index, "move")
        text = format_problem(problem, name="generated", objects=())
        return {"pddl_problem": text, "task": game.task, "walkthrough": list(game.walkthrough)}

    def _draw(self, index: int, grammar: str) -> tuple[Game, PddlProblem]:
        """Draw until a game turns up that can be won."""
        task_type = self.task_types[index % len(self.task_types)]
        rng = Random(f"{self.data_seed}/{self.room_size}/{self.split}/{task_type}/{index}")
        trial = f"trial_G{self.data_seed}_{index:06d}"
        while True:
            made = _draw_room(rng, _TYPES[task_type].room_kinds, self.split, self.room_size, self.data_seed)
            candidates = _candidates(made, task_type)
            if not candidates:
                continue
            item = rng.choice(sorted(candidates))
            target = rng.choice(candidates[item])
            folder = f"{task_type}-{item.capitalize()}-None-{target.capitalize()}-{made.scene}"
            sentence = rng.choice(_TYPES[task_type].sentences).format(item, target)
            problem = _problem(rng, made, task_type, item, target, self.room_size)
            record = GameRecord(f"{self.split}/{folder}/{trial}", task_type, sentence, problem, ())
            game = Game(record, grammar=grammar)
            walkthrough = plan(TextEngine(game))
            if walkthrough is not None and len(walkthrough) >= 2:
                game.walkthrough = tuple(walkthrough)
                return game, problem


def _draw_room(rng: Random, kinds: tuple[str, ...], split: str, size: str, data_seed: int) -> HouseholdRoom:
    is_held_out = split == "valid_unseen"
    index = rng.randrange(NUM_HELD_OUT_ROOMS if is_held_out else NUM_TRAIN_ROOMS)
    return room(data_seed, size, rng.choice(kinds), index, is_held_out=is_held_out)


@cache
def _candidates(made: HouseholdRoom, task_type: str) -> dict[str, list[str]]:
    """Object classes with which the task can be set in the room, each with the possible target (or lamp) classes."""
    kind, classes = _TYPES[task_type], made.classes()
    if kind.tool is not None and kind.tool not in classes:
        return {}
    items = [item for item in objects_of(made.kind) if kind.flag is None or item in objects_with(kind.flag)]
    if task_type == "look_at_obj_in_light":
        lamp = ["desklamp"] if classes & likely_places("desklamp").keys() else []
        return {item: lamp for item in items if lamp and _places(item, classes)}
    found = {
        item: [
            target for target in sorted(classes)
            if item in contents_of(target) and target != kind.tool and _places(item, classes - {target})
        ]
        for item in items
    }  # fmt: skip
    return {item: targets for item, targets in found.items() if targets}


def _places(item: str, classes: frozenset[str]) -> frozenset[str]:
    """The receptacle classes, out of `classes`, in which the object may lie at the start."""
    if item in objects_with("toggleable"):
        return classes & likely_places(item).keys()
    return frozenset(place for place in classes if item in contents_of(place))


def _problem(rng: Random, made: HouseholdRoom, task_type: str, item: str, target: str, size: str) -> PddlProblem:
    """Distribute objects over the room and state the facts and the goal."""
    is_light = task_type == "look_at_obj_in_light"
    kind = _TYPES[task_type]
    wanted = [item] * (kind.num_objects + (rng.random() < 0.3))
    num_objects = rng.randint(6, 10) if size == "small" else int(rng.triangular(17, 60, 24))
    others = [name for name in objects_of(made.kind) if name != item and _places(name, made.classes())]
    more = [rng.choice(others) for _ in range(num_objects - len(wanted) - is_light)]
    facts = _room_facts(made)
    start = location_id(-12, rng)
    facts["atlocation"] = {("agent1", start)}
    for name in wanted:
        avoided = frozenset() if is_light else frozenset({target})
        _add_object(facts, name, _draw_place(rng, made, name, avoided), rng)
    for name in [target] * is_light + more:
        _add_object(facts, name, _draw_place(rng, made, name, frozenset()), rng)
    return PddlProblem(facts, _goal(task_type, item, target))


def _draw_place(rng: Random, made: HouseholdRoom, item: str, avoided: frozenset[str]) -> Receptacle:
    classes = _places(item, made.classes() - avoided)
    places = [receptacle for receptacle in made.receptacles if receptacle.kind in classes]
    likely = likely_places(item)
    return rng.choices(places, [likely.get(place.kind, 1) for place in places])[0]


def _add_object(facts: dict[str, set[tuple[str, ...]]], item: str, place: Receptacle, rng: Random) -> None:
    symbol = entity_id(item, rng)
    facts.setdefault("objecttype", set()).add((symbol, f"{item}type"))
    facts.setdefault("objectatlocation", set()).add((symbol, place.location))
    facts.setdefault("inreceptacle", set()).add((symbol, place.id))
    for flag in flags_of(item):
        facts.setdefault(flag, set()).add((symbol,))


def _room_facts(made: HouseholdRoom) -> dict[str, set[tuple[str, ...]]]:
    return {
        "receptacletype": {(place.id, f"{place.kind}type") for place in made.receptacles},
        "receptacleatlocation": {(place.id, place.location) for place in made.receptacles},
        "openable": {(place.id,) for place in made.receptacles if place.openable},
        "cancontain": {
            (f"{name}type", f"{item}type") for name in made.classes() for item in contents_of(name)
        },
    }  # fmt: skip


def _goal(task_type: str, item: str, target: str) -> Expression:
    """The goal in the form of the official games."""
    kind = _TYPES[task_type]
    template = _LIGHT_GOAL if task_type == "look_at_obj_in_light" else _TWO_GOAL if kind.num_objects == 2 else _ONE_GOAL
    treated = f"({kind.flag} ?o) ({kind.property} ?o)" if kind.property else ""
    return parse_expression(template.format(item=item, target=target, treated=treated).lower())
