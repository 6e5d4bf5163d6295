"""Who answers in an episode: an engine, or a scripted policy (chance, oracle, demonstrations) in its place."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from agentrl.errors import UserError
from agentrl.rollout.chat import Chat
from agentrl.rollout.engines.base import Completion, Engine, Sampling
from agentrl.rollout.in_words import EpisodeInWords

ScriptedPolicy = Callable[[dict[str, Any], np.random.Generator], tuple[str, bool]]
"""(info of the last reset or step, random numbers) -> (answer, whether to imitate it)."""


@dataclass(frozen=True)
class TurnRequest:
    """What a player is asked."""

    ids: list[int]
    """The row so far."""
    info: dict[str, Any]
    """Of the last reset or step."""
    key: tuple[int, ...]
    """Integers that alone determine the random numbers of this turn."""
    session: str | None
    """Name of a growing row, until `release`."""
    conversation: Callable[[], EpisodeInWords]
    """The same in words, for players that take no ids."""


@dataclass(frozen=True)
class Answer:
    """One turn's tokens."""

    completion: Completion
    imitate: bool = True
    """False for an exploratory action of a scripted policy."""


class Player(Protocol):
    """Answers prompts of episodes."""

    @property
    def version(self) -> int:
        """Weight updates it has seen."""
        ...

    async def answer(self, asked: TurnRequest) -> Answer:
        """The next turn of a row."""
        ...

    def release(self, session: str) -> None:
        """The episode is over."""
        ...

    def pause(self) -> None:
        """The batch is over."""
        ...

    def counts(self) -> dict[str, float]:
        """`Engine.counts`."""
        ...


class EnginePlayer:
    """Lets an engine sample.

    Args:
        engine: of this process.
        sampling: limits, temperature, what ends a turn.
    """

    def __init__(self, engine: Engine, sampling: Sampling) -> None:
        self.engine, self.sampling = engine, sampling
        self.release, self.pause, self.counts = engine.release, engine.pause, engine.counts

    @property
    def version(self) -> int:
        """The engine's."""
        return self.engine.version

    async def answer(self, asked: TurnRequest) -> Answer:
        """One sampled turn."""
        return Answer(await self.engine.generate(asked.ids, self.sampling, key=asked.key, session=asked.session))


class PlayerWithoutEngine:
    """What players share that hold neither weights nor rows."""

    version = 0

    def release(self, session: str) -> None:
        """Nothing is kept."""

    def pause(self) -> None:
        """Nothing is held."""

    def counts(self) -> dict[str, float]:
        """Nothing is counted."""
        return {}


class ScriptedPlayer(PlayerWithoutEngine):
    """Lets a scripted policy answer as if an engine had sampled its words.

    Args:
        policy: what answers.
        chat: turns its words into ids.
        stop: strings that end a turn: a sampled answer is cut there, before any end of turn.
    """

    def __init__(self, policy: ScriptedPolicy, chat: Chat, *, stop: Sequence[str]) -> None:
        self.policy, self.chat, self.stop = policy, chat, tuple(stop)

    async def answer(self, asked: TurnRequest) -> Answer:
        """The policy's words."""
        text, imitate = self.policy(asked.info, np.random.default_rng(asked.key))
        said = self.chat.answer_ids(text, ends_turn=not text.endswith(self.stop))
        return Answer(Completion(said, [0.0] * len(said), "stop"), imitate)


def random_policy(info: dict[str, Any], random: np.random.Generator) -> tuple[str, bool]:
    """A uniformly drawn admissible action, or one of those that an environment offers in place of all of them."""
    actions = info.get("admissible_actions") or info.get("random_actions")
    if not actions:
        raise UserError(
            'this environment offers neither info["admissible_actions"] nor info["random_actions"] to draw from.'
        )
    return str(actions[int(random.integers(len(actions)))]), False


def expert_policy(info: dict[str, Any], random: np.random.Generator) -> tuple[str, bool]:
    """The environment's own expert."""
    action = info.get("expert_action")
    if action is None:
        raise UserError('this environment offers no info["expert_action"] to imitate.')
    return str(action), True


def fallback_policy(info: dict[str, Any], random: np.random.Generator) -> tuple[str, bool]:
    """A random admissible action where there are any, else an empty answer: enough to see an environment's texts."""
    return random_policy(info, random) if info.get("admissible_actions") else ("", False)


def noisy_expert(noise: float, *, train_noise: bool) -> ScriptedPolicy:
    """The expert, except that a turn errs with probability `noise`, so that the student sees how to recover.

    Half of the errors are random admissible actions, half are a slip: the beginning of one action and the end of
    another, which the environment will mostly refuse.
    """

    def act(info: dict[str, Any], random: np.random.Generator) -> tuple[str, bool]:
        if not noise or not info.get("admissible_actions") or random.random() >= noise:
            return expert_policy(info, random)
        action = random_policy(info, random)[0]
        if random.random() < 0.5:
            action = _slip(expert_policy(info, random)[0], action, random)
        return action, train_noise

    return act


def _slip(first: str, second: str, random: np.random.Generator) -> str:
    """The first words of one action followed by the last words of another."""
    head, tail = first.split(), second.split()
    return " ".join(head[: int(random.integers(1, len(head) + 1))] + tail[int(random.integers(len(tail))) :])
