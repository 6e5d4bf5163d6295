"""The literal texts of the game, in the two dialects in which it was published.

Games of data versions >= 2.1.2 say `move X to Y`; older ones, and papers and prompts written with them, say
`put X in/on Y`, name locations on arrival, and know no `help`.
Source: the text grammar inside the official `game.tw-pddl` files; the older dialect from their 2.1.1 -> 2.1.2 patch.
"""

from collections.abc import Sequence
from typing import NamedTuple

NOTHING_HAPPENS = "Nothing happens."

INTRO = "-= Welcome to TextWorld, ALFRED! =-\n\n{view}\n\nYour task is to: {task}"

HELP = """Available commands:
  look:                             look around your current location
  inventory:                        check your current inventory
  go to (receptacle):               move to a receptacle
  open (receptacle):                open a receptacle
  close (receptacle):               close a receptacle
  take (object) from (receptacle):  take an object from a receptacle
  move (object) to (receptacle):  place an object in or on a receptacle
  examine (something):              examine a receptacle or an object
  use (object):                     use an object
  heat (object) with (receptacle):  heat an object using a receptacle
  clean (object) with (receptacle): clean an object using a receptacle
  cool (object) with (receptacle):  cool an object using a receptacle
  slice (object) with (object):     slice an object using a sharp object
"""


class Dialect(NamedTuple):
    """What differs between the two published versions of the text grammar."""

    name: str
    put_command: str  # format with the object's and the receptacle's name
    put_feedback: str
    arrival_names_location: bool  # "You arrive at loc 12." instead of "You arrive at desk 1."
    has_help: bool


DIALECTS = {
    "move": Dialect("move", "move {} to {}", "You move the {} to the {}.", False, True),
    "put": Dialect("put", "put {} in/on {}", "You put the {} in/on the {}.", True, False),
}


def list_phrase(items: Sequence[str]) -> str:
    """An enumeration in the engine's style: two items, too, are separated by ", and ".

    >>> list_phrase([]), list_phrase(["a mug 1"]), list_phrase(["a mug 2", "a mug 1"])
    ('nothing', 'a mug 1', 'a mug 2, and a mug 1')
    """
    if not items:
        return "nothing"
    if len(items) == 1:
        return items[0]
    return ", ".join(items[:-1]) + ", and " + items[-1]


def describe_object(name: str, *, hot: bool, cool: bool, clean: bool, on: bool, sliced: bool, sliceable: bool) -> str:
    """The text of `examine` for a held object that is no container; the first fitting description wins.

    A cold object is called "cold", and a sliced one must be sliceable, only where nothing else is known of it.
    """
    temperature = "hot" if hot else "cool" if cool else ""
    if not temperature and not clean:
        if on:
            return f"This {name} is on."
        return f"This is a sliced {name}." if sliced and sliceable else f"There's nothing special about {name}."
    if temperature == "cool" and not clean and not sliced:
        return f"This is a cold {name}."
    properties = f"{temperature} and clean" if temperature and clean else temperature or "clean"
    return f"This is a {properties} {'sliced ' if sliced else ''}{name}."
