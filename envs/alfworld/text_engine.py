"""The rules of the game as a state machine: commands in, texts out.

Reproduces the published PDDL domain under TextWorld's text grammar, including what looks odd in it: receptacles at the
agent's own location cannot be gone to; `look` names as objects on the floor those that were taken from a receptacle
here and put down here; `take` removes an object from the named receptacle only; heating and cooling need no open
door; lamps stay on; play goes on after the goal, and the goal may be lost again.
"""

from collections.abc import Callable, Sequence

from agentrl.envs.alfworld.game import Game
from agentrl.envs.alfworld.texts import HELP, INTRO, NOTHING_HAPPENS, describe_object, list_phrase


class TextEngine:
    """One game in play.

    `location` and `held` are indices (held is -1 for empty hands); `contents[r]` are the objects in receptacle r in id
    order (one object may lie in several receptacles); `places` holds (object, location) facts; `left` the (object,
    receptacle) pairs that `take` parted; `states` the objects per one-place fact ("ishot" …); `won` says whether the
    goal holds now.

        engine = TextEngine(game)
        text = engine.reset()
        text = engine.step("go to desk 1")
    """

    __slots__ = ("_admissible", "contents", "game", "held", "left", "location", "opened", "places", "states", "won")

    def __init__(self, game: Game) -> None:
        self.game = game
        self._start()

    def _start(self) -> None:
        game = self.game
        self.location, self.held = game.start_location, -1
        self.contents = list(game.start_contents)
        self.opened = set(game.start_opened)
        self.places = set(game.start_places)
        self.left: set[tuple[int, int]] = set()
        self.states = {state: set(objects) for state, objects in game.start_states.items()}
        self._admissible: list[str] | None = None
        self.won = self.game.goal.is_reached(self)

    def reset(self) -> str:
        """Start over; returns the opening text."""
        self._start()
        return INTRO.format(view=self._surroundings(is_opening=True), task=self.game.task)

    def step(self, command: str) -> str:
        """Do what the command says, where it is admissible (outer blanks aside); returns the feedback."""
        command = command.strip()
        if command not in self.admissible:
            return NOTHING_HAPPENS
        verb, first, second = self.game.actions[command]
        return _VERBS[verb](self, first, second)

    @property
    def admissible(self) -> list[str]:
        """All commands that do something now, sorted. The list is the engine's own: copy it before changing it."""
        if self._admissible is None:
            self._admissible = self._list_commands()
        return self._admissible

    @property
    def anchor(self) -> str:
        """A short text that is equal for equal states of one game: place, hands, and what differs from the start."""
        game = self.game
        contents = [
            (place, now)
            for place, (now, was) in enumerate(zip(self.contents, game.start_contents, strict=True))
            if now != was
        ]
        states = [sorted(objects ^ game.start_states[state]) for state, objects in self.states.items()]
        places = sorted(self.places ^ game.start_places)
        return f"{self.location} {self.held} {sorted(self.opened)} {contents} {states} {places} {sorted(self.left)}"

    def is_closed(self, receptacle: int) -> bool:
        """Whether the receptacle has a door that is closed."""
        return receptacle in self.game.openable and receptacle not in self.opened

    def copy(self) -> "TextEngine":
        """An engine in the same state that can be played on independently."""
        twin = object.__new__(TextEngine)
        twin.game, twin.location, twin.held, twin.won = self.game, self.location, self.held, self.won
        twin.contents, twin.opened = self.contents.copy(), self.opened.copy()
        twin.places, twin.left = self.places.copy(), self.left.copy()
        twin.states = {state: objects.copy() for state, objects in self.states.items()}
        twin._admissible = self._admissible
        return twin

    # ---------------------------------------------------------------- what can be done

    def _list_commands(self) -> list[str]:
        game, here = self.game, self.game.receptacles_at[self.location]
        commands = [*game.go_commands[self.location], *game.plain_commands]
        accessible = []
        for place in here:
            commands.append(game.examine_commands[place])
            if self.is_closed(place):
                commands.append(game.open_commands[place])
                continue
            accessible.append(place)
            if place in game.openable:
                commands.append(game.close_commands[place])
        # a lamp can lie in two receptacles here and is offered once
        commands += {
            game.use_commands[lamp] for place in here for lamp in game.toggleable.intersection(self.contents[place])
        }
        if self.held >= 0:
            commands += self._commands_of_held(here, accessible)
        else:
            take, pickupable = game.take_commands, game.pickupable
            commands += [
                take[item, place] for place in accessible for item in self.contents[place] if item in pickupable
            ]
        commands.sort()
        return commands

    def _commands_of_held(self, here: tuple[int, ...], accessible: list[int]) -> list[str]:
        """What can be done with the held object."""
        game, held = self.game, self.held
        kind, types = game.object_types[held], game.receptacle_types
        commands = [game.inspect_commands[held]]
        commands += [game.put_commands[held, place] for place in accessible if (types[place], kind) in game.can_contain]
        for verb, tools in game.tools.items():
            if held in game.treatable[verb]:
                commands += [game.treat_commands[verb][held, place] for place in here if place in tools]
        if held in game.knives:
            lying = [item for item in game.sliceable if (item, self.location) in self.places]
            commands += [game.slice_commands[item, held] for item in lying]
        return commands

    # ---------------------------------------------------------------- what is seen

    def _view(self, receptacle: int) -> str:
        """The receptacle and what it shows."""
        name = self.game.receptacle_names[receptacle]
        if receptacle not in self.game.openable:
            return f"On the {name}, you see {self._objects(self.contents[receptacle])}."
        if receptacle in self.opened:
            return f"The {name} is open. In it, you see {self._objects(self.contents[receptacle])}."
        return f"The {name} is closed."

    def _objects(self, items: Sequence[int]) -> str:
        names = self.game.object_names
        return list_phrase([f"a {names[item]}" for item in items])

    def _surroundings(self, *, is_opening: bool = False) -> str:
        """What `look` says. In the middle of the room, only the opening text names the receptacles."""
        game, here = self.game, self.game.receptacles_at[self.location]
        if not here:
            located = zip(game.receptacle_names, game.receptacle_locations, strict=True)
            seen = list_phrase([f"a {name}" for name, location in located if location >= 0] if is_opening else [])
            return f"You are in the middle of a room. Looking quickly around you, you see {seen}."
        facing = list_phrase([game.receptacle_names[place] for place in here])
        floor = sorted(
            (item, left) for item, left in self.left if left in here and (item, self.location) in self.places
        )
        return f"You are facing the {facing}. Next to it, you see {self._objects([item for item, _ in floor])}."

    # ---------------------------------------------------------------- the verbs

    def _look(self, _first: int, _second: int) -> str:
        return self._surroundings()

    def _inventory(self, _first: int, _second: int) -> str:
        if self.held < 0:
            return "You are not carrying anything."
        return f"You are carrying: {self._objects([self.held])}."

    def _help(self, _first: int, _second: int) -> str:
        return HELP

    def _examine(self, receptacle: int, _second: int) -> str:
        return self._view(receptacle)

    def _inspect(self, item: int, _second: int) -> str:
        name, states = self.game.object_names[item], self.states
        if item in self.game.containers:
            return f"This is a normal {name}. In it, you see {self._objects(self.game.inner.get(item, ()))}."
        return describe_object(
            name,
            hot=item in states["ishot"],
            cool=item in states["iscool"],
            clean=item in states["isclean"],
            on=item in states["istoggled"] and item in self.game.toggleable,
            sliced=item in states["issliced"],
            sliceable=item in self.game.sliceable,
        )

    def _go(self, receptacle: int, _second: int) -> str:
        game = self.game
        self.location = game.receptacle_locations[receptacle]
        self._after_change()
        name = game.receptacle_names[receptacle]
        if game.dialect.arrival_names_location:
            name = game.location_names[self.location]
        return f"You arrive at {name}. {self._view(receptacle)}"

    def _open(self, receptacle: int, _second: int) -> str:
        self.opened.add(receptacle)
        self._after_change()
        return f"You open the {self.game.receptacle_names[receptacle]}. {self._view(receptacle)}"

    def _close(self, receptacle: int, _second: int) -> str:
        self.opened.discard(receptacle)
        self._after_change()
        return f"You close the {self.game.receptacle_names[receptacle]}."

    def _take(self, item: int, receptacle: int) -> str:
        self.contents[receptacle] = tuple(other for other in self.contents[receptacle] if other != item)
        self.left.add((item, receptacle))
        self.places.discard((item, self.location))
        self.held = item
        self._after_change()
        return f"You pick up the {self.game.object_names[item]} from the {self.game.receptacle_names[receptacle]}."

    def _put(self, item: int, receptacle: int) -> str:
        self.contents[receptacle] = tuple(sorted({*self.contents[receptacle], item}))
        self.left.discard((item, receptacle))
        self.places.add((item, self.location))
        self.held = -1
        self._after_change()
        names = self.game.object_names[item], self.game.receptacle_names[receptacle]
        return self.game.dialect.put_feedback.format(*names)

    def _clean(self, item: int, receptacle: int) -> str:
        self.states["isclean"].add(item)
        return self._treated("clean", item, receptacle)

    def _heat(self, item: int, receptacle: int) -> str:
        self.states["ishot"].add(item)
        self.states["iscool"].discard(item)
        return self._treated("heat", item, receptacle)

    def _cool(self, item: int, receptacle: int) -> str:
        self.states["iscool"].add(item)
        self.states["ishot"].discard(item)
        return self._treated("cool", item, receptacle)

    def _treated(self, verb: str, item: int, receptacle: int) -> str:
        self._after_change()
        return f"You {verb} the {self.game.object_names[item]} using the {self.game.receptacle_names[receptacle]}."

    def _use(self, lamp: int, _second: int) -> str:
        self.states["istoggled"].add(lamp)
        self._after_change()
        return f"You turn on the {self.game.object_names[lamp]}."

    def _slice(self, item: int, knife: int) -> str:
        self.states["issliced"].add(item)
        self._after_change()
        return f"You sliced the {self.game.object_names[item]} with the {self.game.object_names[knife]}."

    def _after_change(self) -> None:
        self._admissible = None
        self.won = self.game.goal.is_reached(self)


_VERBS: dict[str, Callable[[TextEngine, int, int], str]] = {
    "look": TextEngine._look,
    "inventory": TextEngine._inventory,
    "help": TextEngine._help,
    "examine": TextEngine._examine,
    "inspect": TextEngine._inspect,
    "go": TextEngine._go,
    "open": TextEngine._open,
    "close": TextEngine._close,
    "take": TextEngine._take,
    "put": TextEngine._put,
    "clean": TextEngine._clean,
    "heat": TextEngine._heat,
    "cool": TextEngine._cool,
    "use": TextEngine._use,
    "slice": TextEngine._slice,
}
