"""Games of TextArena (https://github.com/LeonGuertler/TextArena, package `textarena`) as Gymnasium environments."""

import random
from collections.abc import Callable
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import gymnasium

from agentrl.common.extras import MissingExtraError
from agentrl.envs.env_errors import DataError
from agentrl.envs.spaces import FreeText

Opponent = Callable[[str], str]


class TextArenaEnv(gymnasium.Env[str, str]):
    """One player's seat in a TextArena game.

    An observation holds what the game and the other players have said since the last turn. The reward comes with the
    end and is TextArena's; `success` is a reward of at least 1. TextArena draws from Python's global `random`: each
    instance keeps the state of its own game, so that games in one process do not disturb each other.

    Args:
        game: TextArena's id, such as "GuessTheNumber-v0".
        num_players: seats; more than one needs `opponent`.
        opponent: `module:function`, text -> text, which plays all other seats.
        options: keyword arguments of the game.

    Raises:
        DataError: no such game, or other seats and nobody to take them.
        MissingExtraError: TextArena is not installed.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        game: str = "GuessTheNumber-v0",
        *,
        num_players: int = 1,
        opponent: str | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        if num_players > 1 and opponent is None:
            raise DataError(f"{game} with {num_players} players needs opponent = module:function for the other seats.")
        self.game, self.num_players, self.options = game, num_players, options or {}
        self.observation_space, self.action_space = FreeText(), FreeText()
        self._opponent = _find_function(opponent) if opponent else None
        self._random_state: Any = None
        self._env = self._make()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """A new game; the same seed gives the same game."""
        super().reset(seed=seed)
        self._random_state = random.Random(int(self.np_random.integers(2**32))).getstate()
        with self._own_random():
            # A game of its own each time: TextArena's wrappers keep the messages of the game before.
            self._env = self._make()
            self._env.reset(num_players=self.num_players, seed=int(self.np_random.integers(2**31)))
            text, _ = self._play_others(done=False)
        return text, {"task": self.game, "category": self.game}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """One move; where it is somebody else's turn then, theirs too."""
        with self._own_random():
            before = self._num_errors()
            done, _ = self._env.step(action)
            valid = self._num_errors() <= before
            text, done = self._play_others(done=bool(done))
            reward, info = 0.0, {"is_valid_action": valid, "task": self.game, "category": self.game}
            if done:
                rewards, seats = self._env.close()
                reward, seat = float((rewards or {}).get(0, 0.0)), seats[0]
                info |= {"success": reward >= 1, "is_valid_action": not seat.get("invalid_move", False)}
                text = str(seat.get("reason") or text)
        return text, reward, done, False, info

    def _play_others(self, *, done: bool) -> tuple[str, bool]:
        """(what seat 0 has not yet heard, whether the game is over) when it is seat 0's turn again."""
        while not done and self._env.state.current_player_id != 0:
            assert self._opponent is not None, "a game with several seats has an opponent"
            done, _ = self._env.step(self._opponent(self._hear()))
        return ("", True) if done else (self._hear(), False)

    def _hear(self) -> str:
        core = self._env
        while hasattr(core, "env"):  # the wrappers repeat the whole game each turn
            core = core.env
        player, messages = core.get_observation()
        names = core.state.role_mapping
        return "\n".join(
            text if sender < 0 else f"[{names.get(sender, f'Player {sender}')}] {text}"
            for sender, text, *_ in messages
            if sender != player
        )

    def _num_errors(self) -> int:
        """Invalid moves in a row that the game has forgiven so far."""
        return int(getattr(self._env.state, "error_count", 0))

    def _make(self) -> Any:
        try:
            import textarena
        except ImportError:
            raise MissingExtraError("textarena", "textarena", "TextArenaEnv") from None
        try:
            return textarena.make(self.game, **self.options)
        except ValueError as error:
            raise DataError(f"TextArena: {error}") from None

    @contextmanager
    def _own_random(self) -> Any:
        outside = random.getstate()
        if self._random_state is not None:
            random.setstate(self._random_state)
        try:
            yield
        finally:
            self._random_state = random.getstate()
            random.setstate(outside)


def _find_function(path: str) -> Opponent:
    module, _, name = path.partition(":")
    try:
        function: Opponent = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise DataError(f"opponent must be module:function, got {path!r}: {error}.") from None
    return function
