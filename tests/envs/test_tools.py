import json
from typing import Any, Literal

import gymnasium
import pytest

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
    assert [tool["function"]["name"] for tool in info["tools"]] == ["turn_knob", "taste", "give_up", "burn"]
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
        },
    }
    optional = describe_tool(Kitchen().taste)["function"]["parameters"]
    assert optional == {
        "type": "object", "properties": {"names": {"type": "array", "items": {"type": "string"}}}, "required": [],
    }  # fmt: skip


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
