"""One episode between two awaits: rows that grow token by token, turns, and how it ended."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from agentrl.config.schema import RolloutConfig
from agentrl.rollout.chat import Chat, PastTurn, window_prompt
from agentrl.rollout.in_words import EpisodeInWords
from agentrl.rollout.scripted import Player, TurnRequest
from agentrl.types import Row, Status, Task, Trajectory, Turn


@dataclass
class _Draft:
    """A row while it grows: ids, which of them were sampled, and their log-probs."""

    ids: list[int]
    trained: list[bool]
    logprobs: list[float]

    @classmethod
    def start(cls, ids: list[int]) -> "_Draft":
        return cls(list(ids), [False] * len(ids), [0.0] * len(ids))

    def without_last(self, count: int) -> "_Draft":
        """A copy that lacks its last `count` ids."""
        end = len(self.ids) - count
        return _Draft(self.ids[:end], self.trained[:end], self.logprobs[:end])

    def append(self, ids: list[int], logprobs: list[float] | None = None) -> None:
        """Add sampled ids (with log-probs) or ids from outside."""
        self.ids.extend(ids)
        self.trained.extend([logprobs is not None] * len(ids))
        self.logprobs.extend(logprobs if logprobs is not None else [0.0] * len(ids))

    def finish(self) -> Row:
        """The row up to its last sampled token; what follows cannot be trained on."""
        end = len(self.trained) - self.trained[::-1].index(True)
        return Row(
            np.array(self.ids[:end], np.int32),
            np.array(self.trained[:end], np.bool_),
            np.array(self.logprobs[:end], np.float32),
        )


class EpisodeInPlay:
    """State of one episode between two awaits."""

    def __init__(
        self,
        task: Task,
        member: int,
        observation: str,
        info: dict[str, Any],
        *,
        player: Player,
        config: RolloutConfig,
        chat: Chat,
        seed: int,
        system: str | None,
        success_threshold: float,
    ) -> None:
        self.task, self.member = task, member
        self.player, self.config, self.chat = player, config, chat
        self.seed, self.version = seed, player.version
        self.success_threshold = success_threshold
        self.session = f"{task.position}/{member}"
        self.system = system if system is not None else info.get("system")
        self.tools = info.get("tools")
        self.first_observation = self.observation = observation
        self.info = info
        self.rows: list[_Draft] = []
        self.turns: list[Turn] = []
        self.past: list[PastTurn] = []
        self.status: Status | None = None
        self.num_verdict_timeouts = 0
        self.unasked_tokens = 0

    async def answer(self) -> str | None:
        """Let the model act; None (and a status) where the context has no room for another turn."""
        row = self._next_row()
        if len(row.ids) >= self.config.max_context_tokens:
            self._end_without_room(len(row.ids))
            return None
        asked = TurnRequest(
            row.ids, self.info, (self.seed, self.task.position, self.member, len(self.turns)),
            session=self.session if self.config.context != "window" else None, conversation=self.conversation,
        )  # fmt: skip
        answer = await self.player.answer(asked)
        completion, start = answer.completion, len(row.ids)
        if completion.finish == "no_room":
            self._end_without_room(start)
            return None
        row.append(completion.ids, completion.logprobs)
        text = self.chat.decode_answer(completion.ids)
        anchor = self.info.get("anchor")
        self.turns.append(
            Turn(
                len(self.rows) - 1, start, len(row.ids), text, "", 0.0,
                anchor=anchor, finish=completion.finish, imitate=answer.imitate, counted=completion.counted,
            )
        )  # fmt: skip
        return text

    def conversation(self) -> EpisodeInWords:
        """The same in words."""
        is_window = self.config.context == "window"
        return EpisodeInWords(
            self.system, self.tools or [], () if is_window else tuple(self.past),
            self._window_prompt() if is_window else self.observation,
        )  # fmt: skip

    def observe(
        self, action: str, observation: str, reward: float, terminated: bool, truncated: bool, info: dict[str, Any]
    ) -> None:
        """Take in what the environment answered."""
        turn = self.turns[-1]
        turn.observation, turn.reward = observation, reward
        turn.is_valid = info.get("is_valid_action", True)
        self.num_verdict_timeouts += info.get("verdict") == "timeout"
        self.past.append(PastTurn(self.observation, action))
        self.info.pop("success", None)  # said of what is over, and perhaps not again
        self.observation, self.info = observation, {**self.info, **info}
        if terminated:
            self.status = Status.TERMINATED
        elif truncated:
            self.status = Status.TRUNCATED
        elif len(self.turns) >= self.config.max_turns:
            self.status = Status.TURN_LIMIT

    def finish(self) -> Trajectory:
        """The finished trajectory."""
        assert self.status is not None
        rows = [row.finish() for row in self.rows]
        for turn in self.turns:
            assert rows[turn.row].trained[turn.start : turn.end].all(), "a turn's tokens are sampled tokens"
        success = self.info.get("success")
        if success is None:
            success = bool(self.turns) and sum(turn.reward for turn in self.turns) >= self.success_threshold
        return Trajectory(
            self.task, self.member, rows, self.turns, self.first_observation, self.status, self.version,
            success=success,
            tells_success="success" in self.info,
            score=self.info.get("score"),
            category=self.info.get("category", ""),
            name=self.info.get("task", ""),
            answer=self.info.get("answer"),
            metadata=self.info.get("metadata", {}),
            verdict=str(self.info.get("verdict", "")),
            num_verdict_timeouts=self.num_verdict_timeouts,
            unasked_tokens=self.unasked_tokens,
            info=self.info,
        )  # fmt: skip

    def _next_row(self) -> _Draft:
        """The row that the next answer extends."""
        if self.config.context == "window":
            prompt = self._window_prompt()
            self.rows.append(_Draft.start(self.chat.open(prompt, system=self.system, tools=self.tools)))
        elif not self.rows:
            self.rows.append(_Draft.start(self.chat.open(self.observation, system=self.system, tools=self.tools)))
        elif self.config.context == "continuation":
            return self._continue_turn(self.chat.continue_raw(self.observation))
        else:
            self.rows[0].append(self.chat.follow(self.rows[0].ids, self.observation))
        return self.rows[-1]

    def _window_prompt(self) -> str:
        shown = self.past[len(self.past) - min(self.config.window_turns, len(self.past)) :]
        return window_prompt(self.observation, shown, task=self.first_observation, num_turns=len(self.turns))

    def _end_without_room(self, num_tokens: int) -> None:
        """The prompt of this turn fills the context."""
        self.status = Status.TOKEN_LIMIT
        if not self.turns:
            self.unasked_tokens = num_tokens
        if not any(self.rows[-1].trained):
            self.rows.pop()

    def _continue_turn(self, ids: list[int]) -> _Draft:
        """The row with `ids` in place of the special tokens at the end of the last answer, as Search-R1 builds it.

        Where no room for another answer is left, nothing goes on behind the end of turn, and it stays.
        """
        row, last = self.rows[0], self.turns[-1]
        dropped = self.chat.num_dropped(row.ids[last.start : last.end])
        going_on = row.without_last(dropped)
        going_on.append(ids)
        if len(going_on.ids) < self.config.max_context_tokens:
            last.end -= dropped
            self.rows[0] = going_on
        return going_on
