"""The stock engine, TextWorld with ALFWorld's naming, behind the interface of the native one.

For those who want the original, and for parity tests. Needs the extra "alfworld". The planner library under it keeps
global state: one process should step it from one thread only.
"""

import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agentrl.common.extras import MissingExtraError
from agentrl.envs.alfworld.game import KNIFE_TYPES, TOOL_TYPES, Game
from agentrl.envs.alfworld.pddl import PddlProblem, format_problem
from agentrl.envs.alfworld.text_engine import TextEngine

_NAMED_RECEPTACLE_TYPES = frozenset().union(*TOOL_TYPES.values())

# from the current text grammar to the one of data before 2.1.2
_TO_OLD_GRAMMAR = (
    ("move {o} to {r}", "put {o} in/on {r}"),
    ("You move the {o.name} to the {r.name}.", "You put the {o.name} in/on the {r.name}."),
    ("You arrive at {r.name}. ", "You arrive at {lend.name}. "),
)
_HELP_GRAMMAR = re.compile(r"action help \{.*?\n\}", re.DOTALL)
_HELP_DOMAIN = re.compile(r"\(:action help\b.*?\n\)", re.DOTALL)


class StockEngine:
    """The stock engine with the interface of `TextEngine`.

    Texts, admissible commands and `won` are TextWorld's. A native engine in the same state runs along, for what the
    stock engine cannot tell: `anchor`, and plans of the walkthrough expert. One instance plays any number of games;
    each further instance would load a further copy of the planner library and never free it.
    """

    def __init__(self) -> None:
        self._env = _make_stock_env()
        self._state: Any = None
        self.native: TextEngine
        self.game: Game

    def load(self, game: Game, data: Mapping[str, Any]) -> None:
        """Take a game: prepared for the native engine, and as the content of its official file."""
        content = dict(data)
        if game.dialect.name == "put":
            for new, old in _TO_OLD_GRAMMAR:
                content["grammar"] = content["grammar"].replace(new, old)
            content["grammar"] = _HELP_GRAMMAR.sub("", content["grammar"])
            content["pddl_domain"] = _HELP_DOMAIN.sub("", content["pddl_domain"])
        self.game, self.native = game, TextEngine(game)
        with _own_argv():
            self._env.load(content)

    def reset(self) -> str:
        """Start over; returns the opening text."""
        self.native.reset()
        with _own_argv():
            self._state = self._env.reset()
        return str(self._state.feedback)

    def step(self, command: str) -> str:
        """Send a command; returns the feedback."""
        self.native.step(command)
        self._state, _, _ = self._env.step(command)
        return str(self._state.feedback)

    @property
    def admissible(self) -> list[str]:
        """All commands that do something now, sorted."""
        commands: list[str] = self._state["admissible_commands"]
        return commands

    @property
    def won(self) -> bool:
        """Whether the goal holds now."""
        return bool(self._state["won"])

    @property
    def anchor(self) -> str:
        """See `TextEngine.anchor`."""
        return self.native.anchor


@contextmanager
def _own_argv() -> Iterator[None]:
    """The planner's translator overwrites `sys.argv`; put it back."""
    arguments = sys.argv
    try:
        yield
    finally:
        sys.argv = arguments


def _make_stock_env() -> Any:
    """TextWorld's PDDL environment under ALFWorld's naming wrapper."""
    try:
        import textworld
        from textworld.envs.pddl import PddlEnv
    except ImportError as error:
        raise MissingExtraError("textworld", "alfworld", "The textworld backend of ALFWorld") from error
    demangler = _import_demangler()
    infos = textworld.EnvInfos(won=True, admissible_commands=True)
    return demangler(PddlEnv(infos), shuffle=False)


def _import_demangler() -> Any:
    """ALFWorld's naming wrapper; importing the package must not set ALFWORLD_DATA or make folders for us."""
    before = os.environ.get("ALFWORLD_DATA")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ALFWORLD_DATA"] = before or folder
        try:
            from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
        except ImportError as error:
            raise MissingExtraError("alfworld", "alfworld", "The textworld backend of ALFWorld") from error
        finally:
            if before is None:
                del os.environ["ALFWORLD_DATA"]
    return AlfredDemangler


def game_file_content(problem: PddlProblem, *, task: str, walkthrough: Sequence[str]) -> dict[str, Any]:
    """The content of an official file for a game of our own, with the domain and grammar of the alfworld package."""
    package = importlib.util.find_spec("alfworld")
    if package is None or not package.submodule_search_locations:
        raise MissingExtraError("alfworld", "alfworld", "A generated game for the stock engine")
    texts = Path(package.submodule_search_locations[0], "data")
    return {
        "pddl_domain": (texts / "alfred.pddl").read_text(encoding="utf-8"),
        "grammar": (texts / "alfred.twl2").read_text(encoding="utf-8").replace("UNKNOWN GOAL.", task),
        "pddl_problem": format_problem(problem, name="generated", objects=_declarations(problem)),
        "solvable": True,
        "walkthrough": list(walkthrough),
    }


def _declarations(problem: PddlProblem) -> list[tuple[str, str]]:
    """(symbol, PDDL type) of all symbols in the facts and of the types that the domain names itself."""
    facts = problem.facts
    kinds = {row[0]: "agent" for row in facts["atlocation"]}
    kinds |= {row[1]: "location" for row in facts["receptacleatlocation"] | facts["atlocation"]}
    kinds |= {row[0]: "receptacle" for row in facts["receptacletype"]}
    kinds |= {row[0]: "object" for row in facts["objecttype"]}
    kinds |= dict.fromkeys({row[1] for row in facts["receptacletype"]} | _NAMED_RECEPTACLE_TYPES, "rtype")
    kinds |= dict.fromkeys({row[1] for row in facts["objecttype"] | facts["cancontain"]} | KNIFE_TYPES, "otype")
    return sorted(kinds.items())
