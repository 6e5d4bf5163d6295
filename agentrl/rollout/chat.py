"""The only place where messages become tokens.

Sampled ids are kept and extended, never decoded and encoded again: a follow-up turn appends only the ids that the chat
template puts between two answers. Templates that rewrite earlier turns (dropping past <think> blocks, say) cannot be
extended and are refused when the run starts.
"""

from dataclasses import dataclass
from typing import Any

from agentrl.errors import UserError

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
        UserError: the template rewrites earlier turns, so a conversation cannot grow by appending.
    """

    def __init__(self, tokenizer: Any, *, stop_ids: list[int], growing: bool = True) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = frozenset(stop_ids)
        self.end_id: int = tokenizer.eos_token_id
        """The id that the template itself puts behind an answer."""
        self._answer_tail = ""
        self._around_observation: tuple[str, str] | None = None
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        added = getattr(tokenizer, "added_tokens_decoder", {}).items()
        self._dropped = self.stop_ids | {i for i, token in added if token.special}
        if growing:
            self._probe_template()

    def open(self, observation: str, *, system: str | None = None, tools: list[Any] | None = None) -> list[int]:
        """Ids of a fresh conversation that asks for the first answer."""
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": observation})
        return self._encode(self._render(messages, ask=True, tools=tools))

    def follow(self, ids: list[int], observation: str) -> list[int]:
        """Ids to append after a sampled answer so that the next answer can begin.

        Args:
            ids: the row so far, ending in the sampled answer (with or without its end-of-turn id).
            observation: what the environment said.
        """
        ended = bool(ids) and ids[-1] in self.stop_ids
        tail = self._tail_after_stop(ids[-1]) if ended else self._answer_tail
        return self._encode(tail + self._suffix(observation))

    def continue_raw(self, observation: str) -> list[int]:
        """Ids of text appended inside one assistant turn (Search-R1's context)."""
        return self._encode(observation)

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
        if self._backend is not None:
            return str(self._backend.decode(ids, skip_special_tokens=False))
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def answer_ids(self, text: str, *, ends_turn: bool = True) -> list[int]:
        """Ids of an answer given as text, by default with the end of turn: how demonstrations enter a row."""
        return [*self._encode(text), self.end_id] if ends_turn else self._encode(text)

    def _suffix(self, observation: str) -> str:
        """What the template puts behind a finished answer: the observation as a user message and the next question."""
        if self._around_observation is not None:
            before, after = self._around_observation
            return before + observation + after
        base = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _MARK_ANSWER}]
        whole = self._render([*base, {"role": "user", "content": observation}], ask=True)
        return whole[len(self._render(base, ask=False)) :]

    def _tail_after_stop(self, stop_id: int) -> str:
        stop = self.tokenizer.convert_ids_to_tokens(stop_id)
        return self._answer_tail.removeprefix(stop) if self._answer_tail.startswith(stop) else ""

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
            if answer == _MARK_ANSWER:
                self._answer_tail = one[one.rindex(answer) + len(answer) :]
        # Most templates copy the observation as it is; rendering is then a concatenation.
        probe = f" \n{_MARK_OBSERVATION}\n "
        before, found, after = self._suffix(probe).partition(probe)
        self._around_observation = (before, after) if found else None
        ends = [i for i in self._encode(self._answer_tail) if i in self.stop_ids]
        self.end_id = ends[0] if ends else self.end_id

    def _render(self, messages: list[dict[str, str]], *, ask: bool, tools: list[Any] | None = None) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=ask))

    def _encode(self, text: str) -> list[int]:
        if self._backend is not None:  # the Rust tokenizer without the wrapper's overhead of each call
            return list(self._backend.encode(text, add_special_tokens=False).ids)
        return list(self.tokenizer.encode(text, add_special_tokens=False))


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
