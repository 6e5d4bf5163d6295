"""Tool calling: methods with docstrings become tools in the chat template.

class Shop(gymnasium.Env):
    def search(self, query: str) -> str:
        '''Find products.

        Args:
            query: what to look for.
        '''
    ...                                     # reset and step as ever: step takes the final answer

python -m agentrl.train --env.id shop:Shop --env.format agentrl.envs.tools:ToolCalls
"""

import asyncio
import inspect
import json
import re
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, get_type_hints

import gymnasium

from agentrl.common.extras import MissingExtraError
from agentrl.envs.env_errors import DataError

_MARKS = re.compile(
    r"<tool_call>|<(think|thinking|thought|reasoning)>|\[THINK\]|</(?:think|thinking|thought|reasoning)>|\[/THINK\]"
)
_MODELS_FAULT = (TypeError, ValueError, LookupError, ArithmeticError)
"""What a tool raises because of its arguments; anything else is a failure of the environment."""


class ToolCalls(gymnasium.Wrapper[str, str, str, str]):
    """The model calls the environment's public methods, as <tool_call>{"name": ..., "arguments": {...}}</tool_call>.

    `info["tools"]` at reset holds their schemas, which the chat template shows. The return value of a method is the
    next observation, inside <tool_response> tags; a method may return Gymnasium's 5-tuple instead, and may be `async`.
    An answer without a call goes to `step`; what stands inside reasoning (<think> ... </think>) is no call. A call that
    cannot be carried out, one without its end included, is answered with the reason and marked as not valid.

    Args:
        env: text environment.
        tools: names of methods; None takes all public ones with a docstring that `gymnasium.Env` does not have,
            inherited ones included.

    Raises:
        DataError: there are no tools, one of the names is no method, or its hints and docstring make no schema.
    """

    def __init__(self, env: gymnasium.Env[str, str], *, tools: list[str] | None = None) -> None:
        super().__init__(env)
        owner = env.unwrapped
        found = public_methods(type(owner))
        tools = found if tools is None else tools
        name = type(owner).__name__
        if not tools:
            raise DataError(
                f"ToolCalls: {name} has no tools. Give it public methods with a docstring, or name some: tools=[...]."
            )
        for tool in tools:
            if not inspect.isroutine(inspect.getattr_static(owner, tool, None)):
                raise DataError(f"ToolCalls: {name} has no method {tool!r}. Its tools: {', '.join(found) or 'none'}.")
        self.tools = {tool: getattr(owner, tool) for tool in tools}
        self.schemas = [describe_tool(method) for method in self.tools.values()]
        self._loop: asyncio.AbstractEventLoop | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """First observation, with the tools' schemas in `info["tools"]`."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, {**info, "tools": self.schemas}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Carry out the calls of an answer in their order, or hand the answer to the environment."""
        calls = list(find_calls(action))
        if not calls:
            observation, reward, terminated, truncated, info = self.env.step(action)
            return observation, float(reward), terminated, truncated, info
        texts, total, over, cut, info = [], 0.0, False, False, {"is_valid_action": True}
        for call in calls:
            result = self._call(call)
            if isinstance(result, tuple):
                text, reward, over, cut, more = result
                total, info = total + float(reward), {**info, **more}
            else:
                text = result
                info["is_valid_action"] = info["is_valid_action"] and not text.startswith("Error: ")
            texts.append(f"<tool_response>\n{text}\n</tool_response>")
            if over or cut:
                break
        return "\n".join(texts), total, over, cut, info

    def close(self) -> None:
        """Close the environment, and the loop its asynchronous tools ran in."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None
        super().close()

    def _wait_for(self, result: Coroutine[Any, Any, Any]) -> Any:
        """What an asynchronous tool returns. One loop serves an environment's whole life: clients belong to a loop."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=_run_loop, args=(self._loop,), daemon=True).start()
        return asyncio.run_coroutine_threadsafe(result, self._loop).result()

    def _call(self, text: str | None) -> Any:
        if text is None:
            return "Error: the call has no end: </tool_call> is missing, the answer was cut. Answer in fewer tokens."
        try:
            call = json.loads(text)
            name, arguments = call["name"], call.get("arguments", {})
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            if name not in self.tools:
                return f"Error: there is no tool {name!r}. Tools: {', '.join(self.tools)}."
            inspect.signature(self.tools[name]).bind(**arguments)
        except (ValueError, RecursionError, *_MODELS_FAULT) as error:
            return f"Error: {type(error).__name__}: {error}"
        try:
            result = self.tools[name](**arguments)
            if inspect.iscoroutine(result):
                result = self._wait_for(result)
        except MissingExtraError:  # a `ValueError` too, but nothing that the model can mend
            raise
        except _MODELS_FAULT as error:
            return f"Error: {type(error).__name__}: {error}"
        return result if isinstance(result, tuple | str) else json.dumps(result, default=str)


def find_calls(answer: str) -> Iterator[str | None]:
    """Texts of an answer's calls in their order; None for a last one without an end.

    >>> list(find_calls("<think><tool_call>1</tool_call></think> <tool_call> 2 </tool_call><tool_call>3"))
    ['2', None]
    """
    # A template may have opened the reasoning in the prompt: then only its end is in the answer.
    opened = re.match(r"(?:(?!<think).)*?</think>", answer, re.DOTALL)
    place = opened.end() if opened else 0
    while mark := _MARKS.search(answer, place):
        place = mark.end()
        if mark.group() == "<tool_call>":
            end = answer.find("</tool_call>", place)
            yield answer[place:end].strip() if end >= 0 else None
            if end < 0:
                return
            place = end + len("</tool_call>")
        elif not mark.group().startswith(("</", "[/")):
            end_mark = "[/THINK]" if mark.group() == "[THINK]" else f"</{mark.group(1)}>"
            end = answer.find(end_mark, place)
            if end < 0:
                return
            place = end + len(end_mark)


def public_methods(owner: type) -> list[str]:
    """Names of the documented methods that a class has and `gymnasium.Env` has not, bases first."""
    names = [name for base in reversed(owner.__mro__) for name in vars(base) if not name.startswith("_")]
    return [
        name
        for name in dict.fromkeys(names)
        if not hasattr(gymnasium.Env, name)
        and inspect.isroutine(method := inspect.getattr_static(owner, name))
        and inspect.getdoc(getattr(method, "__func__", method))
    ]


def describe_tool(method: Any) -> dict[str, Any]:
    """JSON schema of a method from its signature, type hints and (Google style) docstring, as transformers writes it.

    A parameter that the docstring says nothing about is described by its name.

    >>> def add(a: int, b: int = 0) -> int: "Add two numbers."
    >>> describe_tool(add)["function"]["parameters"]["required"]
    ['a']

    Raises:
        DataError: a parameter has no type hint, or one that no schema can say.
    """
    from transformers.utils import get_json_schema

    def described() -> None: ...

    described.__name__ = method.__name__
    try:
        described.__annotations__ = get_type_hints(method)
        signature = inspect.signature(method)
        described.__signature__ = signature  # type: ignore[attr-defined]
        described.__doc__ = _with_all_parameters(inspect.getdoc(method) or method.__name__, list(signature.parameters))
        schema: dict[str, Any] = get_json_schema(described)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"ToolCalls: {method.__name__} makes no tool: {reason} Give every parameter a type hint and an entry under "
            "Args: in the docstring."
        ) from None
    return schema


def _with_all_parameters(text: str, names: list[str]) -> str:
    """A docstring whose Args section has an entry for every parameter."""
    missing = [name for name in names if not re.search(rf"^ +{name}(?: \([^)]*\))?:", text, re.MULTILINE)]
    entries = "".join(f"    {name}: {name.replace('_', ' ')}\n" for name in missing)
    if not missing:
        return text
    before, found, after = text.partition("\nArgs:\n")
    if found:
        return f"{before}{found}{entries}{after}"
    summary, found, after = text.partition("\nReturns:")
    return f"{summary.rstrip()}\n\nArgs:\n{entries}{found}{after}"


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()
