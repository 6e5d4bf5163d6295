"""Episodes as chat messages, and a server's reply as the text that an environment reads. Pure."""

import json
import re
from collections.abc import Sequence
from typing import Any

from agentrl.rollout.in_words import EpisodeInWords

Message = dict[str, Any]

_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
_RESPONSE = re.compile(r"<tool_response>\n?(.*?)\n?</tool_response>", re.DOTALL)
_TOOLS_AS_TEXT = (
    "You may call one or more functions. Their signatures:\n<tools>\n{tools}\n</tools>\n"
    "For each call, return a JSON object with the function's name and arguments within tags:\n"
    '<tool_call>\n{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>'
)
"""What the chat templates of Qwen and Hermes models say, for servers whose chat takes no tools."""


def chat_messages(conversation: EpisodeInWords, *, native_tools: bool, continues: bool = False) -> list[Message]:
    """What is sent to the server.

    Args:
        conversation: the episode so far.
        native_tools: whether calls and their results are messages of their own kind, and the schemas stand beside the
            messages; else both are text.
        continues: whether all turns form one assistant message that the server goes on writing (Search-R1's context).
    """
    system = conversation.system or ""
    if conversation.tools and not native_tools:
        told = _TOOLS_AS_TEXT.format(tools="\n".join(json.dumps(tool) for tool in conversation.tools))
        system = f"{system}\n\n{told}".strip()
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    observations = [turn.observation for turn in conversation.past] + [conversation.observation]
    messages.append({"role": "user", "content": observations[0]})
    answers = [turn.answer for turn in conversation.past]
    if continues and answers:
        said = "".join(answer + seen for answer, seen in zip(answers, observations[1:], strict=True))
        return [*messages, {"role": "assistant", "content": said}]
    for number, (answer, seen) in enumerate(zip(answers, observations[1:], strict=True)):
        calls = _read_calls(answer, number) if native_tools and conversation.tools else []
        if calls:
            messages.append({"role": "assistant", "content": _CALL.sub("", answer).strip(), "tool_calls": calls})
            messages += _tool_results(calls, seen)
        else:
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": seen}]
    return messages


def answer_text(message: Any, *, stop: Sequence[str], stop_reason: Any = None) -> str:
    """The reply as an environment reads it: native calls as `<tool_call>` text, the stop string put back.

    Args:
        message: of the reply, as the package `openai` gives it.
        stop: strings that end a turn; servers cut them off.
        stop_reason: the one that did, where the server tells (vLLM).
    """
    text = message.content or message.refusal or ""
    for call in message.tool_calls or []:
        function = call.function
        name = json.dumps(function.name)
        text += f'\n<tool_call>\n{{"name": {name}, "arguments": {function.arguments or "{}"}}}\n</tool_call>'
    return with_stop(text.lstrip("\n") if message.tool_calls else text, stop, stop_reason)


def with_stop(text: str, stop: Sequence[str], stop_reason: Any = None) -> str:
    """A text with the stop string that its server cut off: the one it names, else the end of a tag left open.

    >>> with_stop("I ask <search> who", ("</search>", "</answer>"))
    'I ask <search> who</search>'
    """
    if isinstance(stop_reason, str) and stop_reason in stop:
        return text if text.endswith(stop_reason) else text + stop_reason
    for mark in stop:
        opening = mark.replace("</", "<", 1)
        if mark.startswith("</") and text.rfind(opening) > text.rfind(mark):
            return text + mark
    return text


def _read_calls(answer: str, number: int) -> list[Message]:
    """The calls of an earlier answer, with names that say turn and place."""
    calls = []
    for place, text in enumerate(_CALL.findall(answer)):
        try:
            call = json.loads(text)
            name, arguments = call["name"], call.get("arguments", {})
        except (ValueError, KeyError, TypeError, AttributeError):
            return []  # what is no call stays text
        arguments = arguments if isinstance(arguments, str) else json.dumps(arguments)
        identity = f"call_{number}_{place}"
        calls.append({"id": identity, "type": "function", "function": {"name": str(name), "arguments": arguments}})
    return calls


def _tool_results(calls: list[Message], observation: str) -> list[Message]:
    """One result a call, as protocols ask; where the episode's text cannot be shared out, the first one has it all."""
    texts = _RESPONSE.findall(observation)
    if len(texts) != len(calls):
        texts = [observation] + [""] * (len(calls) - 1)
    return [{"role": "tool", "tool_call_id": c["id"], "content": t} for c, t in zip(calls, texts, strict=True)]
