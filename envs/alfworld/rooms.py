"""Procedural rooms: which receptacles stand where and which of them have doors.

A room is drawn from its kind's table and a seeded random stream. Rooms of the training pool and held-out rooms come
from different streams, and a held-out room is drawn anew until no training room has the same furniture.
"""

from collections import Counter
from functools import cache
from random import Random
from typing import NamedTuple

from agentrl.envs.alfworld.household import OPENABLE_SHARE

ROOM_KINDS = ("kitchen", "livingroom", "bedroom", "bathroom")

# scene numbers are those of the official floor plans' hundreds, moved to where no official scene is
_SCENE_BASE = {"kitchen": 1000, "livingroom": 1200, "bedroom": 1300, "bathroom": 1400}
_HELD_OUT_BASE = 1000  # added to the scene numbers of held-out rooms

NUM_TRAIN_ROOMS, NUM_HELD_OUT_ROOMS = 40, 16  # of each kind

# small rooms: what every room of the kind has, and what is added (repeated names are likelier)
_SMALL = {
    "kitchen": (
        "fridge microwave sinkbasin countertop",
        "cabinet cabinet drawer drawer diningtable garbagecan shelf sidetable coffeemachine",
    ),
    "livingroom": (
        "sofa sidetable",
        "armchair coffeetable drawer drawer tvstand shelf diningtable dresser cabinet ottoman garbagecan desk",
    ),
    "bedroom": ("bed desk", "sidetable drawer drawer drawer dresser shelf shelf garbagecan safe armchair cabinet"),
    "bathroom": (
        "sinkbasin toilet countertop",
        "cabinet cabinet drawer drawer garbagecan shelf bathtubbasin sidetable cart toiletpaperhanger",
    ),
}
_SMALL_SIZES = (5, 6, 7, 8)

# official rooms: how many there are of each class, one entry per observed scene or group of scenes
_OFFICIAL = {
    "kitchen": {
        "cabinet": (4, 8, 9, 10, 10, 11, 12, 13, 13, 15, 16, 18, 20, 20, 23, 26), "stoveburner": (4,),
        "countertop": (1, 2, 2, 3, 3, 4), "drawer": (1, 3, 3, 3, 4, 4, 5, 5, 6, 6, 8, 9, 12), "fridge": (1,),
        "garbagecan": (1,), "toaster": (1,), "sinkbasin": (1,), "microwave": (1,), "coffeemachine": (1,),
        "diningtable": (0, 0, 0, 1, 1, 1, 2), "shelf": (0, 0, 0, 0, 0, 0, 3), "sidetable": (0, 0, 0, 0, 0, 0, 0, 1),
    },
    "livingroom": {
        "sofa": (1, 1, 1, 2), "garbagecan": (1,), "armchair": (1, 1, 1, 2), "coffeetable": (0, 1, 1, 1, 2),
        "sidetable": (1, 1, 2, 3), "drawer": (0, 0, 1, 4, 4, 6, 7), "diningtable": (0, 0, 1, 1), "tvstand": (0, 1),
        "shelf": (0, 0, 0, 0, 2, 4, 8), "dresser": (0, 0, 1), "ottoman": (0, 0, 0, 0, 0, 1),
        "cabinet": (0, 0, 0, 0, 0, 0, 0, 4), "safe": (0,) * 20 + (1,), "desk": (0,) * 20 + (1,),
    },
    "bedroom": {
        "bed": (1, 1, 1, 1, 1, 2), "garbagecan": (1,), "drawer": (2, 2, 3, 4, 5, 6, 8, 10, 11, 16),
        "shelf": (0, 0, 1, 1, 2, 5, 7, 12), "desk": (0, 1, 1), "sidetable": (0, 1, 1, 2), "dresser": (0, 1),
        "laundryhamper": (0, 0, 0, 1), "armchair": (0, 0, 0, 0, 1, 2), "safe": (0, 0, 0, 0, 0, 1),
        "cabinet": (0, 0, 0, 0, 0, 2, 4), "diningtable": (0, 0, 0, 0, 0, 1),
    },
    "bathroom": {
        "sinkbasin": (1, 2), "towelholder": (1, 1, 2), "handtowelholder": (1, 1, 2), "toiletpaperhanger": (1,),
        "garbagecan": (1,), "toilet": (1,), "countertop": (0, 1, 1, 1, 1, 1, 2), "bathtubbasin": (0, 1, 1),
        "drawer": (0, 0, 0, 2, 4, 4, 6, 8), "cabinet": (0, 0, 4, 4, 5), "shelf": (0, 0, 0, 1, 2),
        "cart": (0,) * 12 + (1,), "dresser": (0,) * 12 + (1,), "sidetable": (0,) * 12 + (1,),
    },
}  # fmt: skip
_SHARED_LOCATION_PROB = 0.12  # official rooms: a receptacle stands where the one before it stands


class Receptacle(NamedTuple):
    """One piece of furniture: its PDDL id, class, whether it has a door, and the location from which it is reached."""

    id: str
    kind: str
    openable: bool
    location: str


class HouseholdRoom(NamedTuple):
    """A room of one kind: its scene number and its receptacles."""

    kind: str
    scene: int
    receptacles: tuple[Receptacle, ...]

    @property
    def furniture(self) -> frozenset[tuple[tuple[str, bool], int]]:
        """How many receptacles there are of each class, with and without door: what tells rooms apart."""
        return frozenset(Counter((item.kind, item.openable) for item in self.receptacles).items())

    def classes(self) -> frozenset[str]:
        """The classes of the receptacles."""
        return frozenset(item.kind for item in self.receptacles)


@cache
def room(data_seed: int, size: str, kind: str, index: int, *, is_held_out: bool) -> HouseholdRoom:
    """The room number `index` of a kind in the training pool or among the held-out rooms."""
    rng = Random(f"{data_seed}/{size}/{kind}/{index}/{'held out' if is_held_out else 'train'}")
    scene = _SCENE_BASE[kind] + index + (_HELD_OUT_BASE if is_held_out else 0)
    known = _train_furniture(data_seed, size, kind) if is_held_out else frozenset()
    while True:
        made = HouseholdRoom(kind, scene, _furnish(_classes(kind, size, rng), rng, size))
        if made.furniture not in known:
            return made


@cache
def _train_furniture(data_seed: int, size: str, kind: str) -> frozenset[object]:
    rooms = (room(data_seed, size, kind, index, is_held_out=False) for index in range(NUM_TRAIN_ROOMS))
    return frozenset(made.furniture for made in rooms)


def _classes(kind: str, size: str, rng: Random) -> list[str]:
    """The classes of a room's receptacles, with repetitions."""
    if size == "small":
        always, more = (names.split() for names in _SMALL[kind])
        return always + rng.sample(more, rng.choice(_SMALL_SIZES) - len(always))
    counts = {name: rng.choice(numbers) for name, numbers in _OFFICIAL[kind].items()}
    return [name for name, count in counts.items() for _ in range(count)]


def _furnish(classes: list[str], rng: Random, size: str) -> tuple[Receptacle, ...]:
    receptacles: list[Receptacle] = []
    for index, name in enumerate(classes):
        shares = size == "official" and index and rng.random() < _SHARED_LOCATION_PROB
        location = receptacles[-1].location if shares else location_id(4 * index, rng)
        is_openable = rng.random() < OPENABLE_SHARE.get(name, 0.0)
        receptacles.append(Receptacle(entity_id(name, rng), name, is_openable, location))
    return tuple(receptacles)


def location_id(position: int, rng: Random) -> str:
    """A location in the style of the official games; equal positions along x are not given twice by callers."""
    z, turn = rng.randint(-12, 12), rng.randrange(4)
    return mangle(f"loc|{position}|{z}|{turn}|{rng.choice((30, 45, 60))}").lower()


def entity_id(name: str, rng: Random) -> str:
    """The id of an object or receptacle: its class and three coordinates; basins name the thing they belong to."""
    place = "|".join(f"{rng.uniform(-4, 4):+06.2f}" for _ in range(3))
    if name.endswith("basin"):
        return mangle(f"{name.removesuffix('basin')}|{place}|{name}")
    return mangle(f"{name}|{place}")


def mangle(text: str) -> str:
    """An id in PDDL's alphabet.

    >>> mangle("desk|+01.25|-00.50")
    'desk_bar__plus_01_dot_25_bar__minus_00_dot_50'
    """
    for sign, word in (("|", "_bar_"), ("-", "_minus_"), ("+", "_plus_"), (".", "_dot_")):
        text = text.replace(sign, word)
    return text
