"""The only place where messages become tokens.

Sampled ids are kept and extended, never decoded and encoded again: a follow-up turn appends only the ids that the chat
template puts between two answers. Templates that rewrite earlier turns (dropping past <think> blocks, say) cannot be
extended and are refused when the run starts.
"""

import copy
import json
import re
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from agentrl.config.schema import RolloutConfig
from agentrl.errors import UserError

_DATE = datetime(2024, 7, 26)
"""The day that templates are told: prompts of a task are the same whenever it is played. (Llama 3.1's own default.)"""
_PROBE_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "probe_of_tools",
        "description": "Nothing.",
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}
_PROBE_SYSTEM = "the system message"
_MARK_ANSWER = "the answer"
_MARK_OBSERVATION = "the observation"


@dataclass(frozen=True)
class PastTurn:
    """What the `window` context remembers of a turn."""

    observation: str
    """Text the model saw before it acted."""
    answer: str
    """Text the model wrote."""


class Chat:
    """Renders conversations of one model.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        stop_ids: ids that end an answer.
        growing: whether conversations will be extended turn by turn, which the template must allow.

    Raises:
        UserError: the template rewrites earlier turns, so a conversation cannot grow by appending, or refuses one.
    """

    def __init__(self, tokenizer: Any, *, stop_ids: list[int], growing: bool = True) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = frozenset(stop_ids)
        self._answer_tail = self._answer_head = ""
        self._around_observation: tuple[str, str] | None = None
        self._backend = _plain_backend(tokenizer)
        self._special_ids = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        self._adds_prefix = self._decode(self._encode("x") + self._encode("x")) != "xx"
        self._prompt_end: list[int] = []
        self.end_id: int = self._probe_answer()
        """The id that the template itself puts behind an answer."""
        self.stop_ids |= {self.end_id}
        added = getattr(tokenizer, "added_tokens_decoder", {}).items()
        self._dropped = self.stop_ids | {i for i, token in added if token.special}
        if growing:
            self._probe_template()

    def open(self, observation: str, *, system: str | None = None, tools: list[Any] | None = None) -> list[int]:
        """Ids of a fresh conversation that asks for the first answer."""
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": observation})
        if system and not self.takes_system:
            raise UserError(
                "the chat template of this model has no system role, but env.system or the environment's "
                'info["system"] gives a system message. Set env.system = "" and tell the task in the observation, or '
                "take a model whose template has one."
            )
        if tools and not self.takes_tools:
            raise UserError(
                "the chat template of this model does not show tools, but the environment offers some: the model would "
                "never see them. Take a model whose template takes tools, or an env.format that tells them as text."
            )
        return self._encode(self._render(messages, ask=True, tools=tools or None))

    @cached_property
    def takes_system(self) -> bool:
        """Whether the template writes a system message."""
        messages = [{"role": "system", "content": _PROBE_SYSTEM}, {"role": "user", "content": "x"}]
        try:
            return _PROBE_SYSTEM in self._render(messages, ask=True)
        except UserError:
            return False

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the template writes the tools it is given."""
        try:
            text = self._render([{"role": "user", "content": "x"}], ask=True, tools=[_PROBE_TOOL])
        except UserError:
            return False
        return str(_PROBE_TOOL["function"]["name"]) in text

    def follow(self, ids: list[int], observation: str) -> list[int]:
        """Ids to append after a sampled answer so that the next answer can begin.

        Args:
            ids: the row so far, ending in the sampled answer (with or without its end-of-turn id).
            observation: what the environment said.
        """
        ended = bool(ids) and ids[-1] in self.stop_ids
        tail = self._tail_after_stop(ids[-1]) if ended else self._answer_tail
        return self._encode_behind(ids[-1:], tail + self._suffix(observation))

    def continue_raw(self, observation: str) -> list[int]:
        """Ids of text appended inside one assistant turn (Search-R1's context)."""
        return self._encode_behind([], observation)

    def num_dropped(self, ids: list[int]) -> int:
        """How many ids at the end of a sampled answer are gone where its assistant turn goes on.

        The end of turn and other special tokens: Search-R1 decodes an answer without them (`skip_special_tokens`).
        """
        kept = len(ids)
        while kept and ids[kept - 1] in self._dropped:
            kept -= 1
        return len(ids) - kept

    def decode_answer(self, ids: list[int]) -> str:
        """Text of sampled ids without the end-of-turn id."""
        if ids and ids[-1] in self.stop_ids:
            ids = ids[:-1]
        return self._decode(ids).removeprefix(self._answer_head)

    def answer_ids(self, text: str, *, ends_turn: bool = True) -> list[int]:
        """Ids of an answer given as text, by default with the end of turn: how demonstrations enter a row."""
        ids = self._encode_behind(self._prompt_end, self._answer_head + text)
        return [*ids, self.end_id] if ends_turn else ids

    def _suffix(self, observation: str) -> str:
        """What the template puts behind a finished answer: the observation as a user message and the next question."""
        if self._around_observation is not None:
            before, after = self._around_observation
            return before + observation + after
        base = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _MARK_ANSWER}]
        whole = self._render([*base, {"role": "user", "content": observation}], ask=True)
        return whole[len(self._render(base, ask=False)) :]

    def _tail_after_stop(self, stop_id: int) -> str:
        """What the template writes behind the stop id; all it writes behind an answer where it ends with another."""
        stop = self._decode([stop_id])
        return self._answer_tail.partition(stop)[2] if stop in self._answer_tail else self._answer_tail

    def _probe_answer(self) -> int:
        """What the template writes around an answer; the id of its end of turn."""
        first = [{"role": "user", "content": "x"}]
        asked = self._render(first, ask=True)
        self._prompt_end = self._encode(asked)[-1:]
        answered = self._render([*first, {"role": "assistant", "content": _MARK_ANSWER}], ask=False)
        before, found, self._answer_tail = answered.rpartition(_MARK_ANSWER)
        head = before.removeprefix(asked) if before.startswith(asked) else ""
        self._answer_head = "" if head.strip() else head  # a blank is part of the format, a thought is not
        eos: int | None = self.tokenizer.eos_token_id
        special = self._special_ids | self.stop_ids
        written = [i for i in self._encode(self._answer_tail) if i in special] if found else []
        if not written and eos is None and not self.stop_ids:
            raise UserError(
                "model.path: nothing ends an answer: the tokenizer has no eos_token, and its chat template writes no "
                "special token behind an answer. Set tokenizer.eos_token and save it."
            )
        known = [i for i in written if i in self.stop_ids]
        return [*known, *written, *([] if eos is None else [eos]), *sorted(self.stop_ids)][0]

    def _probe_template(self) -> None:
        first = [{"role": "user", "content": "x"}]
        for answer in (_MARK_ANSWER, f"<think>\na thought\n</think>\n\n{_MARK_ANSWER}"):
            said = [*first, {"role": "assistant", "content": answer}]
            one = self._render(said, ask=False)
            two = self._render([*said, {"role": "user", "content": _MARK_OBSERVATION}], ask=True)
            if not two.startswith(one) or answer not in one:
                raise UserError(
                    "the chat template of this model rewrites earlier turns"
                    + (" (it drops past <think> blocks)" if "<think>" in answer else "")
                    + ", so a growing conversation cannot keep its token ids. "
                    'Use rollout.context = "window" or "continuation", or a model whose template only appends.'
                )
        # Most templates copy the observation as it is; rendering is then a concatenation.
        probe = f" \n{_MARK_OBSERVATION}\n "
        before, found, after = self._suffix(probe).partition(probe)
        self._around_observation = (before, after) if found else None

    def _render(self, messages: list[dict[str, str]], *, ask: bool, tools: list[Any] | None = None) -> str:
        try:
            template = _at_a_fixed_date(self.tokenizer.get_chat_template(None, tools))
            text = self.tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=ask, chat_template=template
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            roles = ", ".join(message["role"] for message in messages)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"the chat template of this model refuses a conversation of the roles {roles}: {reason} Take an "
                'instruct model whose template allows it, or rollout.context = "window".'
            ) from None
        return str(text)

    def _encode(self, text: str) -> list[int]:
        if self._backend is not None:  # the Rust tokenizer without the wrapper's overhead of each call
            return list(self._backend.encode(text, add_special_tokens=False).ids)
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _encode_behind(self, before: list[int], text: str) -> list[int]:
        """Ids of a piece of text within a row, without the blank that SentencePiece puts before a text of its own."""
        if not self._adds_prefix or not text:
            return self._encode(text)
        anchors = ["x", "0", ".", ";"]
        if before and before[-1] in self._special_ids:
            anchors.insert(0, self._decode(before[-1:]))
        for anchor in anchors:
            head, whole = self._encode(anchor), self._encode(anchor + text)
            if whole[: len(head)] == head:
                return whole[len(head) :]
        return self._encode(text)

    def _decode(self, ids: list[int]) -> str:
        if self._backend is not None:
            return str(self._backend.decode(ids, skip_special_tokens=False))
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _at_a_fixed_date(template: str) -> str:
    """A template to which it is always the same day: prompts of a task must not depend on when it is played."""
    if "strftime_now" not in template:
        return template
    formats = dict.fromkeys(re.findall(r"""strftime_now\(\s*(?:'([^']*)'|"([^"]*)")""", template))
    days = {text: _DATE.strftime(text) for pair in formats for text in pair if text}
    cases = "".join(f"{{%- if format == {json.dumps(text)} -%}}{day}{{%- endif -%}}" for text, day in days.items())
    return f"{{%- macro strftime_now(format) -%}}{cases}{{%- endmacro -%}}{template}"


def _plain_backend(tokenizer: Any) -> Any:
    """The Rust tokenizer where it alone gives transformers' ids; a saved one may also cut and pad, unasked."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    backend = copy.deepcopy(backend)
    backend.no_truncation()
    backend.no_padding()
    texts = ["x", " Two words.\n\nAnd <b>ünïcode</b> 12 + 3\n", *tokenizer.all_special_tokens]
    texts.append("".join(texts))
    alike = all(
        list(backend.encode(text, add_special_tokens=False).ids) == tokenizer.encode(text, add_special_tokens=False)
        for text in texts
    )
    return backend if alike else None


def window_prompt(observation: str, past: list[PastTurn], *, task: str, num_turns: int) -> str:
    """One user message with the task, the last turns and the current observation (verl-agent's kind of context).

    Args:
        observation: the current observation.
        past: the turns to show, oldest first.
        task: the first observation of the episode.
        num_turns: turns taken so far.
    """
    if not past:
        return observation
    first = num_turns - len(past) + 1
    history = "\n".join(
        f"[Observation {i}: '{turn.observation}', Action {i}: '{turn.answer}']" for i, turn in enumerate(past, first)
    )
    return (
        f"{task}\n\nYou have taken {num_turns} step(s). The last {len(past)} observations and actions:\n{history}\n"
        f"You are now at step {num_turns + 1} and your current observation is: {observation}"
    )


def chat_for(tokenizer: Any, module: Any, config: RolloutConfig) -> Chat:
    """The chat of a model in the context of an experiment."""
    return Chat(tokenizer, stop_ids=stop_token_ids(tokenizer, module), growing=config.context == "conversation")


def stop_token_ids(tokenizer: Any, module: Any) -> list[int]:
    """Ids that end a turn: the tokenizer's end of sequence and those of both configs; `Chat` adds its template's."""
    ids = {tokenizer.eos_token_id}
    for config in (module.generation_config, module.config):
        configured = getattr(config, "eos_token_id", None)
        ids.update(configured if isinstance(configured, list) else [configured])
    return sorted(i for i in ids if i is not None)
