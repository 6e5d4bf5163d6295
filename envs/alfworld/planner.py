"""A plan from any state to the goal, made with full knowledge of the game and tried out before it is given.

Serves the generator (every generated game carries a walkthrough that wins) and the walkthrough expert after the agent
has left the published walkthrough.
"""

from agentrl.envs.alfworld.game import Game
from agentrl.envs.alfworld.goal_conditions import LightGoal, PlaceGoal
from agentrl.envs.alfworld.text_engine import TextEngine

_TREATMENTS = {"isclean": "clean", "ishot": "heat", "iscool": "cool"}
_MAX_TARGETS = 4


def plan(engine: TextEngine) -> list[str] | None:
    """The shortest of a few scripted plans that win from the engine's state, or None where none does.

    The engine itself is left as it is.
    """
    goal = engine.game.goal
    if engine.won:
        return []
    if isinstance(goal, LightGoal):
        scripts = [_light_script(engine, goal, lamp) for lamp in sorted(goal.lamps)]
    else:
        targets = sorted(goal.receptacles, key=lambda place: (engine.is_closed(place), place))[:_MAX_TARGETS]
        scripts = [_place_script(engine, goal, target) for target in targets]
    winning = [script.commands for script in scripts if script is not None and script.engine.won]
    return min(winning, key=len, default=None)


class _Script:
    """Commands that are carried out on a copy of the engine while they are written down."""

    def __init__(self, engine: TextEngine) -> None:
        self.engine = engine.copy()
        self.game: Game = engine.game
        self.commands: list[str] = []

    def do(self, command: str) -> None:
        if command in self.engine.admissible:
            self.engine.step(command)
            self.commands.append(command)

    def reach(self, receptacle: int) -> None:
        """Stand before the receptacle."""
        self.do(f"go to {self.game.receptacle_names[receptacle]}")  # inadmissible where the agent already is there

    def open(self, receptacle: int) -> None:
        """Stand before the receptacle and have it open."""
        self.reach(receptacle)
        self.do(self.game.open_commands[receptacle])

    def fetch(self, item: int) -> bool:
        """Hold the object; says whether that worked."""
        if self.engine.held == item:
            return True
        if self.engine.held >= 0:
            self.drop()
        source = _source(self.engine, item)
        if source is None:
            return False
        self.open(source)
        self.do(self.game.take_commands[item, source])
        return self.engine.held == item

    def drop(self) -> None:
        """Put the held object into the nearest receptacle that takes it."""
        game, held = self.game, self.engine.held
        places = [
            place
            for place, kind in enumerate(game.receptacle_types)
            if (kind, game.object_types[held]) in game.can_contain and game.receptacle_locations[place] >= 0
        ]
        here = self.engine.location
        for place in sorted(places, key=lambda p: (game.receptacle_locations[p] != here, self.engine.is_closed(p)))[:1]:
            self.put(place)

    def put(self, receptacle: int) -> None:
        """Put the held object into the receptacle."""
        self.open(receptacle)
        self.do(self.game.put_commands[self.engine.held, receptacle])


def _source(engine: TextEngine, item: int) -> int | None:
    """The receptacle from which the object is taken soonest."""
    game = engine.game
    places = [
        place for place, items in enumerate(engine.contents) if item in items and game.receptacle_locations[place] >= 0
    ]
    return min(
        places,
        key=lambda place: (game.receptacle_locations[place] != engine.location, engine.is_closed(place)),
        default=None,
    )


def _cost(engine: TextEngine, item: int) -> tuple[int, int]:
    """How much it takes to hold the object: for sorting only."""
    source = _source(engine, item)
    if item == engine.held or source is None:
        return (0 if item == engine.held else 9, item)
    return (1 + (engine.game.receptacle_locations[source] != engine.location) + engine.is_closed(source), item)


def _place_script(engine: TextEngine, goal: PlaceGoal, target: int) -> _Script | None:
    script = _Script(engine)
    ready = goal.objects if goal.property is None else goal.objects & engine.states[goal.property]
    there = ready.intersection(engine.contents[target])
    movable = goal.objects & (engine.game.pickupable | {engine.held})
    for item in sorted(movable - there, key=lambda item: _cost(engine, item))[: goal.num_objects - len(there)]:
        if not script.fetch(item):
            return None
        if goal.property is not None and item not in script.engine.states[goal.property]:
            verb = _TREATMENTS[goal.property]
            for tool in sorted(engine.game.tools[verb])[:1]:
                script.reach(tool)
                script.do(engine.game.treat_commands[verb][item, tool])
        script.put(target)
    return script


def _light_script(engine: TextEngine, goal: LightGoal, lamp: int) -> _Script | None:
    script = _Script(engine)
    items = sorted(goal.objects & (engine.game.pickupable | {engine.held}), key=lambda item: _cost(engine, item))
    if not items or not script.fetch(items[0]):
        return None
    source = _source(script.engine, lamp)
    if source is None:
        return None
    script.reach(source)
    script.do(engine.game.use_commands[lamp])
    return script
