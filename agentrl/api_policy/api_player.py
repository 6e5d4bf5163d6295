"""Plays by asking an OpenAI-compatible chat server for every turn."""

import asyncio
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agentrl.api_policy.messages import Message, answer_text, chat_messages
from agentrl.api_policy.meter import Budget, Meter, Usage
from agentrl.common.extras import MissingExtraError
from agentrl.config.schema import RolloutConfig
from agentrl.console import note
from agentrl.errors import InfrastructureError, UserError
from agentrl.rollout.chat import Chat
from agentrl.rollout.engines.base import Completion
from agentrl.rollout.in_words import EpisodeInWords
from agentrl.rollout.scripted import Answer, PlayerWithoutEngine, TurnRequest

_NO_ROOM = ("context length", "context window", "context_length", "maximum context", "too long", "max_model_len")
"""How servers say that a prompt fills their context."""


@dataclass(frozen=True)
class ApiPolicy:
    """Which server plays, and how it is asked."""

    endpoint: str
    """Base address, `http://127.0.0.1:8000/v1`."""
    model: str
    """Name that the server knows."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key; servers of one's own need none."""
    timeout_s: float = 120.0
    """Seconds for a reply."""
    retries: int = 5
    """Tries after 429, 5xx, time-outs and lost connections, with the waits of the package `openai`."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Fields of the request besides ours; null takes one of ours away (`{"seed": null}`)."""
    limits: Budget = field(default_factory=Budget)
    """Prices and budget."""

    def describe(self) -> dict[str, Any]:
        """What an answer depends on, for the record; never the key."""
        return {"endpoint": self.endpoint, "model": self.model, "extra_body": self.extra_body}


class ApiPlayer(PlayerWithoutEngine):
    """Lets a chat server answer.

    429, 5xx and time-outs are tried again, then the episode fails as infrastructure does. What the model causes is
    data: refusals, answers cut at the limit, prompts that fill the context. The first request with tools finds out
    whether the server's chat takes them; otherwise they are told as text, and the record says so.

    Args:
        policy: the server.
        chat: turns words into ids of some tokenizer, which only keep the record.
        config: limits, temperature, stop strings, context.
        usage: counts of earlier sittings.
    """

    def __init__(self, policy: ApiPolicy, chat: Chat, config: RolloutConfig, *, usage: Usage | None = None) -> None:
        self.policy, self.chat, self.config = policy, chat, config
        self.meter = Meter(policy.limits, usage)
        self.native_tools: bool | None = None
        self.reported: set[str] = set()
        """Models and versions that the replies name."""
        self._client = _client(policy)
        self._threads = ThreadPoolExecutor(config.max_concurrent, thread_name_prefix="api")
        self._first_with_tools = asyncio.Lock()

    async def answer(self, asked: TurnRequest) -> Answer:
        """One reply.

        Raises:
            InfrastructureError: no reply after all retries.
            UserError: the server refuses the request itself (key, model, a field it does not know).
            BudgetSpent: it might cost too much.
        """
        words = asked.conversation()
        seed = int(np.random.SeedSequence(asked.key).generate_state(1)[0]) >> 1
        if words.tools and self.native_tools is None:
            async with self._first_with_tools:
                completion = await self._in_thread(self._ask, words, seed)
        else:
            completion = await self._in_thread(self._ask, words, seed)
        return Answer(completion)

    def close(self) -> None:
        """End requests under way and the connections."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._client.close()

    def describe(self) -> dict[str, Any]:
        """How the server was asked and what it said it is."""
        tools = {None: "none", True: "native", False: "as text"}[self.native_tools]
        context: str = self.config.context
        if context == "continuation" and not self._continues:
            context = "conversation, where the protocol continues one assistant turn"
        return {**self.policy.describe(), "reported": sorted(self.reported), "tools": tools, "context": context}

    @property
    def _continues(self) -> bool:
        wants = self.policy.extra_body.get("continue_final_message") is True
        return self.config.context == "continuation" and wants

    async def _in_thread(self, function: Callable[..., Completion], *words: Any) -> Completion:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *words)

    def _ask(self, asked: EpisodeInWords, seed: int) -> Completion:
        from openai import BadRequestError

        native = bool(asked.tools) and self.native_tools is not False
        try:
            completion = self._request(asked, seed, native)
        except BadRequestError as error:
            if not (native and self.native_tools is None and "tool" in str(error).lower()):
                return self._take_bad_request(error)
            self.native_tools = native = False
            note(f"the server's chat takes no tools, they are told as text: {_first_line(error)}")
            try:
                completion = self._request(asked, seed, native)
            except BadRequestError as second:
                return self._take_bad_request(second)
        if asked.tools:
            self.native_tools = native
        return completion

    def _take_bad_request(self, error: Exception) -> Completion:
        """A 400 is data where the episode causes it, else the user's to mend."""
        text = str(error).lower()
        if any(words in text for words in _NO_ROOM):
            self.meter.settle((0, 0), (0, 0), no_room=1)
            return Completion([], [], "no_room")
        if "content_filter" in text or "content management policy" in text:
            self.meter.settle((0, 0), (0, 0), refused=1)
            return self._completion("", "refused", (0, 0))
        raise UserError(f"--endpoint {self.policy.endpoint} refuses the request: {_first_line(error)}") from None

    def _request(self, asked: EpisodeInWords, seed: int, native: bool) -> Completion:
        import openai

        continues = self._continues and bool(asked.past)
        messages = chat_messages(asked, native_tools=native, continues=continues)
        body = self._body(messages, asked.tools if native else [], seed, continues)
        size = len(json.dumps([messages, body.get("tools")], ensure_ascii=False).encode())
        reserved = (size // 3 + 8, self.config.max_new_tokens)
        self.meter.reserve(*reserved)
        try:
            reply = self._client.chat.completions.create(
                model=self.policy.model, messages=messages, extra_body=body
            )  # fmt: skip
        except openai.BadRequestError:
            self.meter.settle(reserved, (0, 0))
            raise
        except openai.APIStatusError as error:
            is_users = error.status_code in (401, 403, 404, 405, 422)
            self.meter.settle(reserved, (0, 0), failed=1)
            kind = UserError if is_users else InfrastructureError
            where = f"--endpoint {self.policy.endpoint}, --model {self.policy.model}"
            hint = f" The key is read from {self.policy.key_variable}." if error.status_code in (401, 403) else ""
            raise kind(f"{where}: HTTP {error.status_code}: {_first_line(error)}{hint}") from None
        except openai.APIError as error:  # time-outs, lost connections, replies that are none
            self.meter.settle(reserved, (0, 0), failed=1)
            raise InfrastructureError(f"--endpoint {self.policy.endpoint}: {_first_line(error)}") from None
        return self._read(reply, reserved)

    def _body(self, messages: list[Message], tools: list[Any], seed: int, continues: bool) -> dict[str, Any]:
        """The request's fields besides model and messages."""
        body: dict[str, Any] = {
            "max_tokens": self.config.max_new_tokens, "temperature": self.config.temperature, "top_p": 1.0,
            "seed": seed,
        }  # fmt: skip
        if self.config.stop:
            body["stop"] = list(self.config.stop)
        if tools:
            body["tools"] = tools
        extra = dict(self.policy.extra_body)
        if "continue_final_message" in extra:  # asked for by the user, true only where there is something to go on with
            extra |= {"continue_final_message": continues, "add_generation_prompt": not continues}
        return {name: value for name, value in {**body, **extra}.items() if value is not None}

    def _read(self, reply: Any, reserved: tuple[int, int]) -> Completion:
        if not getattr(reply, "choices", None):
            self.meter.settle(reserved, (0, 0), failed=1)
            raise InfrastructureError(
                f"--endpoint {self.policy.endpoint}: a reply without an answer: {str(reply)[:200]}"
            )
        choice = reply.choices[0]
        named = [str(part) for part in (reply.model, reply.system_fingerprint) if part]
        self.reported.add(" ".join(named))
        text = answer_text(
            choice.message, stop=self.config.stop, stop_reason=(choice.model_extra or {}).get("stop_reason")
        )
        refused = choice.finish_reason == "content_filter" or bool(choice.message.refusal)
        finish = "refused" if refused else "length" if choice.finish_reason == "length" else "stop"
        usage = reply.usage
        estimate = (reserved[0], len(text.encode()) // 3 + 1)
        spent = (usage.prompt_tokens, usage.completion_tokens) if usage else estimate
        self.meter.settle(
            reserved, spent, requests=1, refused=refused, truncated=finish == "length", uncounted=usage is None
        )
        return self._completion(text, finish, spent)

    def _completion(self, text: str, finish: str, spent: tuple[int, int]) -> Completion:
        said = self.chat.answer_ids(text, ends_turn=finish != "length" and not text.endswith(tuple(self.config.stop)))
        said = said or [self.chat.end_id]  # a turn has at least one id
        return Completion(said, [0.0] * len(said), finish, spent)


def _client(policy: ApiPolicy) -> Any:
    try:
        import openai
    except ImportError:
        raise MissingExtraError("openai", "api", "--policy api") from None
    key = os.environ.get(policy.key_variable)
    if key is None and policy.key_variable != "OPENAI_API_KEY":
        raise UserError(f"--key-variable: the environment has no variable {policy.key_variable}. Set it to the key.")
    if not policy.endpoint.startswith(("http://", "https://")):
        raise UserError(f"--endpoint must be an address like http://127.0.0.1:8000/v1, got {policy.endpoint!r}.")
    return openai.OpenAI(
        base_url=policy.endpoint, api_key=key or "none", timeout=policy.timeout_s, max_retries=policy.retries
    )  # fmt: skip


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
