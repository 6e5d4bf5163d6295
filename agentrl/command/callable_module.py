"""Commands that scripts call like functions: `agentrl.train(config)`, beside `python -m agentrl.train`."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def make_callable(name: str, function: Callable[..., Any]) -> None:
    """Let a call of the module `name` be a call of `function`."""

    class Command(ModuleType):
        """A module that is called."""

        def __call__(self, *arguments: Any, **named: Any) -> Any:
            return function(*arguments, **named)

    Command.__call__.__doc__ = function.__doc__
    sys.modules[name].__class__ = Command
