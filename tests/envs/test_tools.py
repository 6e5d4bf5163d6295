import asyncio
import json
from typing import Any, Literal

import gymnasium
import pytest
from transformers.utils import get_json_schema

from agentrl.common.extras import MissingExtraError
from agentrl.envs.env_errors import DataError
from agentrl.envs.spaces import FreeText
from agentrl.envs.tools import ToolCalls, describe_tool


class Kitchen(gymnasium.Env[str, str]):
    """Cook until the soup is hot."""

    observation_space = action_space = FreeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.heat = 0
        return "Make the soup hot, then tell me.", {"task": "soup"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "Thank you.", float(self.heat == 3 and "hot" in action), True, False, {}

    def turn_knob(self, level: int, plate: Literal["left", "right"] = "left") -> str:
        """Set the heat of a plate.

        Args:
            level: 0 (off) to 3,
                no more.
            plate: which one.
        """
        if not 0 <= level <= 3:
            raise ValueError("the knob goes from 0 to 3")
        self.heat = level
        return f"The {plate} plate is at {level}."

    def taste(self, names: list[str] | None = None) -> dict[str, Any]:
        """Try the soup."""
        return {"hot": self.heat == 3}

    def give_up(self) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """End it."""
        return "Pity.", -1.0, True, False, {"success": False}

    def burn(self) -> str:
        """Fail for a reason that is not the model's."""
        raise ConnectionError("the gas is off")

    def weigh(self) -> str:
        """Fail for want of a package."""
        raise MissingExtraError("scales", "kitchen", "weighing")

    def not_a_tool(self) -> None:
        return None

    def _hidden(self) -> None:
        """Nobody calls this."""


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@pytest.fixture
def env() -> ToolCalls:
    made = ToolCalls(Kitchen())
    made.reset(seed=0)
    return made


def test_reset_offers_public_methods_with_docstrings_as_tools(env: ToolCalls) -> None:
    _, info = env.reset(seed=0)
    assert [tool["function"]["name"] for tool in info["tools"]] == ["turn_knob", "taste", "give_up", "burn", "weigh"]
    assert info["task"] == "soup"


def test_describe_tool_takes_types_defaults_and_meanings_from_the_method() -> None:
    assert describe_tool(Kitchen().turn_knob) == {
        "type": "function",
        "function": {
            "name": "turn_knob",
            "description": "Set the heat of a plate.",
            "parameters": {
                "type": "object",
                "properties": {
                    "level": {"type": "integer", "description": "0 (off) to 3, no more."},
                    "plate": {"type": "string", "enum": ["left", "right"], "description": "which one."},
                },
                "required": ["level"],
            },
            "return": {"type": "string"},
        },
    }
    assert describe_tool(Kitchen().turn_knob) == get_json_schema(Kitchen().turn_knob)
    optional = describe_tool(Kitchen().taste)["function"]["parameters"]
    names = {"type": "array", "items": {"type": "string"}, "nullable": True, "description": "names"}
    assert optional == {"type": "object", "properties": {"names": names}}


def test_a_call_is_carried_out_and_its_result_is_the_observation(env: ToolCalls) -> None:
    observation, reward, terminated, truncated, info = env.step("I turn it up. " + call("turn_knob", level=3))
    assert observation == "<tool_response>\nThe left plate is at 3.\n</tool_response>"
    assert (reward, terminated, truncated, info["is_valid_action"]) == (0.0, False, False, True)
    assert env.step(call("taste"))[0] == '<tool_response>\n{"hot": true}\n</tool_response>'
    assert env.step("It is hot.")[1:3] == (1.0, True)


def test_several_calls_are_carried_out_in_order_until_the_end(env: ToolCalls) -> None:
    observation, reward, terminated, _, info = env.step(call("taste") + call("give_up") + call("taste"))
    assert observation.count("<tool_response>") == 2
    assert (reward, terminated, info["success"]) == (-1.0, True, False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<tool_call>{</tool_call>", "JSONDecodeError"),
        ("<tool_call>[1]</tool_call>", "TypeError"),
        ('<tool_call>{"name": ["x"]}</tool_call>', "TypeError"),
        ('<tool_call>{"arguments": {}}</tool_call>', "KeyError"),
        ('<tool_call>{"name": "taste", "arguments": 3}</tool_call>', "TypeError"),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", "Error: "),
        (call("_hidden"), "no tool '_hidden'. Tools: turn_knob, taste"),
        (call("reset"), "no tool 'reset'"),
        (call("turn_knob"), "missing a required argument: 'level'"),
        (call("turn_knob", level=1, colour="red"), "unexpected keyword argument 'colour'"),
        (call("turn_knob", level=9), "the knob goes from 0 to 3"),
        (call("turn_knob", level="x"), "TypeError"),
    ],
)  # fmt: skip
def test_a_call_that_cannot_be_carried_out_is_answered_and_marked(env: ToolCalls, text: str, reason: str) -> None:
    observation, reward, terminated, truncated, info = env.step(text)
    assert reason in observation
    assert (reward, terminated, truncated, info["is_valid_action"]) == (0.0, False, False, False)


def test_a_tool_that_breaks_by_itself_is_no_fault_of_the_model(env: ToolCalls) -> None:
    with pytest.raises(ConnectionError, match="the gas is off"):
        env.step(call("burn"))
    with pytest.raises(MissingExtraError, match="weighing needs the package"):
        env.step(call("weigh"))


class Base(gymnasium.Env[str, str]):
    observation_space = action_space = FreeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        return "Go on.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return f"heard: {action}", 0.0, True, False, {}

    @property
    def trap(self) -> str:
        """A property that must not be read."""
        raise RuntimeError("read")

    class Options:
        """A class is no tool."""


class Lookup(Base):
    def look(self, place: str) -> str:
        """Look somewhere.

        Args:
            place: where.
        """
        return f"nothing at {place}"


class AsyncLookup(Lookup):
    async def ask(self, question: str) -> str:
        """Ask somebody far away.

        Args:
            question: what to ask.
        """
        self.loops = [*getattr(self, "loops", []), id(asyncio.get_running_loop())]
        await asyncio.sleep(0)
        if not question:
            raise ValueError("no question")
        return f"answer to {question}"

    @staticmethod
    def count(number: int) -> str:
        """Count.

        Args:
            number: how far.
        """
        return str(number)


def test_inherited_and_static_methods_are_tools_and_properties_and_classes_are_left_alone() -> None:
    assert list(ToolCalls(AsyncLookup()).tools) == ["look", "ask", "count"]
    assert ToolCalls(AsyncLookup()).step(call("count", number=3))[0] == "<tool_response>\n3\n</tool_response>"


def test_an_async_tool_is_awaited_in_one_loop_even_inside_a_running_one() -> None:
    env = ToolCalls(AsyncLookup())

    async def twice() -> list[str]:
        return [env.step(call("ask", question=q))[0] for q in ("a", "b", "")]

    first, second, error = asyncio.run(twice())
    assert "answer to a" in first
    assert "answer to b" in second
    assert "Error: ValueError: no question" in error
    assert len(set(env.unwrapped.loops)) == 1  # type: ignore[attr-defined]
    env.close()


def test_without_tools_or_with_an_unknown_one_or_an_untyped_one_there_is_an_error() -> None:
    class Untyped(Base):
        def do(self, thing) -> str:  # type: ignore[no-untyped-def]
            """Do."""
            return ""

    for env, tools, message in (
        (Base(), None, "no tools"),
        (Lookup(), [], "no tools"),
        (Lookup(), ["fly"], "no method 'fly'"),
        (Lookup(), ["trap"], "no method 'trap'"),
        (Untyped(), None, "type hint"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            ToolCalls(env, tools=tools)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "observation", "valid"),
    [
        ("<think>I could " + call("look", place="x") + "</think> Done.", "heard: ", True),
        ("I could " + call("look", place="x") + "</think> Done.", "heard: ", True),
        ("<think>I could " + call("look", place="x"), "heard: ", True),
        ("[THINK]" + call("look", place="x") + "[/THINK]Done.", "heard: ", True),
        ("<think>no</think>" + call("look", place="y"), "nothing at y", True),
        (call("look", place="<think>"), "nothing at <think>", True),
        ('<tool_call>\n{"name": "look", "arg', "Error: the call has no end", False),
        (call("look", place="z") + "<tool_call>", "Error: the call has no end", False),
    ],
)
def test_reasoning_holds_no_calls_and_a_cut_call_is_an_invalid_one(answer: str, observation: str, valid: bool) -> None:
    text, _, _, _, info = ToolCalls(Lookup()).step(answer)
    assert observation in text
    assert info.get("is_valid_action", True) == valid
