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

import inspect
import json
import re
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import gymnasium

_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}
_MODELS_FAULT = (TypeError, ValueError, LookupError, ArithmeticError)
"""What a tool raises because of its arguments; anything else is a failure of the environment."""


class ToolCalls(gymnasium.Wrapper[str, str, str, str]):
    """The model calls the environment's public methods, as <tool_call>{"name": ..., "arguments": {...}}</tool_call>.

    `info["tools"]` at reset holds their schemas, which the chat template shows. The return value of a method is the
    next observation, inside <tool_response> tags; a method may return Gymnasium's 5-tuple instead. An answer without a
    call goes to `step`. A call that cannot be carried out is answered with the reason and marked as not valid.

    Args:
        env: text environment.
        tools: names of methods; None takes all public ones with a docstring that `gymnasium.Env` does not have.
    """

    def __init__(self, env: gymnasium.Env[str, str], *, tools: list[str] | None = None) -> None:
        super().__init__(env)
        owner = env.unwrapped
        if tools is None:
            names = [name for name in vars(type(owner)) if not name.startswith("_")]
            tools = [n for n in names if not hasattr(gymnasium.Env, n) and _documented(getattr(owner, n, None))]
        self.tools = {name: getattr(owner, name) for name in tools}
        self.schemas = [describe_tool(method) for method in self.tools.values()]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """First observation, with the tools' schemas in `info["tools"]`."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, {**info, "tools": self.schemas}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Carry out the calls of an answer in their order, or hand the answer to the environment."""
        calls = _CALL.findall(action)
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

    def _call(self, text: str) -> Any:
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
        except _MODELS_FAULT as error:
            return f"Error: {type(error).__name__}: {error}"
        return result if isinstance(result, tuple | str) else json.dumps(result, default=str)


def describe_tool(method: Any) -> dict[str, Any]:
    """JSON schema of a method from its signature, type hints and (Google style) docstring.

    >>> def add(a: int, b: int = 0) -> int: "Add two numbers."
    >>> describe_tool(add)["function"]["parameters"]["required"]
    ['a']
    """
    hints = get_type_hints(method)
    text = inspect.getdoc(method) or ""
    meanings = dict(re.findall(r"^ {4}(\w+)(?: \([^)]*\))?: (.+(?:\n {8}.+)*)", _section(text, "Args"), re.MULTILINE))
    properties: dict[str, Any] = {}
    required = []
    for name, parameter in inspect.signature(method).parameters.items():
        properties[name] = _describe_type(hints.get(name, str))
        if name in meanings:
            properties[name]["description"] = " ".join(meanings[name].split())
        if parameter.default is parameter.empty:
            required.append(name)
    summary = " ".join(re.split(r"\n\s*(?:Args|Returns|Raises):", text)[0].split())
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": method.__name__, "description": summary, "parameters": parameters}}


def _describe_type(hint: Any) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"type": _TYPES.get(type(arguments[0]), "string"), "enum": list(arguments)}
    if origin in (Union, UnionType):
        kinds = [_describe_type(a) for a in arguments if a is not NoneType]
        return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    schema: dict[str, Any] = {"type": _TYPES.get(origin or hint, "string")}
    if origin is list and arguments:
        schema["items"] = _describe_type(arguments[0])
    return schema


def _section(text: str, name: str) -> str:
    found = re.search(rf"^{name}:\n((?: +.*\n?|\n)*)", text, re.MULTILINE)
    return found.group(1) if found else ""


def _documented(value: Any) -> bool:
    return callable(value) and bool(inspect.getdoc(value))
