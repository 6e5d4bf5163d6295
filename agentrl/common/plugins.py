"""Things of one's own by name: `module:Class` or `module:function`, from the user's own folders."""

import difflib
import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from agentrl.errors import UserError

_PACKAGE = os.path.dirname(os.path.dirname(__file__))
_OURS = {os.path.join(_PACKAGE, room) for room in ("", "common", "environment", "rollout")}
HERE = "__main__:"
"""How names begin of what only this process has: things of a script, a notebook cell, a function."""
_GIVEN: dict[str, Any] = {}
"""Name -> object that a script handed over and that no import finds."""


def make_importable(folder: str | Path) -> None:
    """Let modules in a folder be imported, before installed ones of the same name.

    `python -m` does this for the working directory; commands, notebooks and config files elsewhere need it too.
    """
    path = os.path.abspath(folder)
    if path in sys.path or (path == os.getcwd() and "" in sys.path):
        return
    sys.path.insert(0 if path == os.getcwd() else 1, path)


def find_object(path: str, where: str) -> Any:
    """What `module:name` names.

    Args:
        path: of a class or function; `module:Class.method` reaches inside.
        where: config key that holds it, for messages.

    Raises:
        UserError: no such module or name, or the module fails.
    """
    if path in _GIVEN:
        return _GIVEN[path]
    module_name, _, name = path.partition(":")
    found = import_module(module_name, where, path)
    for part in name.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=1)
            if path.startswith(HERE):
                raise UserError(
                    f"{where}: {name} is of the script or notebook that started the run, and is not defined here. "
                    "Go on there, or put it into a file and name it module:name."
                )
            raise UserError(f"{where}: {module_name} has no {name!r}." + (f" Did you mean {near[0]}?" if near else ""))
        found = getattr(found, part)
    return found


def name_object(given: Any) -> str:
    """The name under which `find_object` finds something: `module:name`, or in this process alone `__main__:name`."""
    name = getattr(given, "__qualname__", type(given).__qualname__)
    found: Any = sys.modules.get(getattr(given, "__module__", ""))
    is_ours = found is sys.modules["__main__"]
    path = f"{HERE if is_ours or found is None else found.__name__ + ':'}{name}"
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not given:  # inside a function, a partial, an instance
        path = f"{HERE}{name}"
        _GIVEN[path] = given
    else:
        _GIVEN.pop(path, None)
    return path


def find_callable(path: str, where: str) -> Any:
    """`find_object` of something that can be called."""
    found = find_object(path, where)
    if not callable(found):
        raise UserError(f"{where}: {path} is a {type(found).__name__}; a class or a function is needed.")
    return found


def call_own(path: str, where: str, **arguments: Any) -> Any:
    """What a class or function of the user's makes of these arguments.

    Raises:
        UserError: it cannot be found, or does not take them.
    """
    factory = find_callable(path, where)
    try:
        return factory(**arguments)
    except UserError:
        raise
    except Exception as error:
        given = ", ".join(arguments) or "nothing"
        raise UserError(f"{where}: {path}, called with {given}, raised {explain(error)}.") from error


def import_module(name: str, where: str, path: str) -> Any:
    """A module, also from the folder that the command was given in."""
    make_importable(os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        hint = f" A module is named without its ending: {path.replace('.py:', ':')}." if name.endswith(".py") else ""
        raise UserError(f"{where}: cannot import {name!r} for {path!r}: {error}.{hint}") from None
    except Exception as error:
        raise UserError(f"{where}: cannot import {name!r} for {path!r}: {explain(error)}.") from error


def explain(error: Exception) -> str:
    """One line: type, message and the innermost place in somebody's own code."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    is_syntax = isinstance(error, SyntaxError)  # whose message names the place
    is_told = is_syntax or not frames or os.path.dirname(frames[-1].filename) in _OURS
    place = "" if is_told else f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})"
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
