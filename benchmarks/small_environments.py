"""Ten small text environments of different kinds, as a stranger would write his first one.

Each class says what is possible (`possible`: mean reward of the best player, who knows the rules and no hidden thing)
and what chance brings (`chance`: mean reward of a player who answers well-formed things at random). Both are exact, and
met by `_best` and `_guess`, which the tests play. A model from scratch starts below chance: most of what it says is no
answer at all. Answers are read leniently: the first number, or the first known word, counts.

| | turns | reward | answer | what it takes |
|---|---|---|---|---|
| Echo | 1 | binary | short | copy |
| Sum | 1 | graded | short | compute, or remember 25 sums |
| Larger | 1 | binary | short | compare; chance is half |
| Count | 1 | graded | long | five numbers in order |
| Guess | 1-4 | binary | short | never say the same twice |
| HigherLower | 1-3 | binary | short | use hints |
| Memory | 3 | binary | short | carry a word over turns |
| Corridor | 1-8 | binary | short | walk to a place |
| Offers | 1-4 | graded | short | stop at the right time |
| Price | 2-3 | binary | long | call a tool, tell what it said |
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from itertools import permutations
from typing import Any, ClassVar

import gymnasium
from gymnasium.spaces import Text

from agentrl.envs.tools import ToolCalls

WORDS = ("apple", "river", "stone", "cloud", "lamp", "horse", "bread", "glass")
Step = tuple[str, float, bool, bool, dict[str, Any]]


def first_number(answer: str) -> int | None:
    """The first number of a text; None where it has none, or one longer than any answer."""
    found = re.search(r"\d+", answer)
    return int(found.group()) if found and len(found.group()) < 4 else None


def first_word(answer: str, words: Sequence[str] = WORDS) -> str | None:
    """The known word that comes first in a text."""
    found = re.search("|".join(words), answer)
    return found.group() if found else None


class SmallEnv(gymnasium.Env[str, str]):
    """What the ten share: text in, text out, one seed one episode."""

    observation_space = action_space = Text(1000)
    possible: ClassVar[Fraction] = Fraction(1)
    chance: ClassVar[Fraction]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin."""
        super().reset(seed=seed)
        return self._begin(), {}

    def _begin(self) -> str:
        raise NotImplementedError

    def _best(self) -> str:
        """What the best player says now."""
        raise NotImplementedError

    def _guess(self) -> str:
        """A well-formed answer at random."""
        raise NotImplementedError

    def _draw(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return int(self.np_random.integers(low, high + 1))

    def _word(self) -> str:
        return str(self.np_random.choice(WORDS))


class Echo(SmallEnv):
    """Say the word back."""

    chance = Fraction(1, 8)

    def _begin(self) -> str:
        self.word = self._word()
        return f"You hear {self.word}. Say it back."

    def step(self, action: str) -> Step:
        """One answer."""
        return "Thank you.", float(first_word(action) == self.word), True, False, {}

    def _best(self) -> str:
        return self.word

    def _guess(self) -> str:
        return self._word()


class Sum(SmallEnv):
    """Add two numbers from 0 to 4; a sum that is off by 1 is worth three quarters, by 2 a half, by 3 a quarter."""

    chance = Fraction(sum(max(0, 4 - abs(a + b - x)) for a in range(5) for b in range(5) for x in range(9)), 4 * 25 * 9)

    def _begin(self) -> str:
        self.a, self.b = self._draw(0, 4), self._draw(0, 4)
        return f"{self.a} + {self.b} = ?"

    def step(self, action: str) -> Step:
        """One answer."""
        answer = first_number(action)
        distance = 4 if answer is None else abs(self.a + self.b - answer)
        return "Thank you.", max(0, 4 - distance) / 4, True, False, {"success": distance == 0}

    def _best(self) -> str:
        return str(self.a + self.b)

    def _guess(self) -> str:
        return str(self._draw(0, 8))


class Larger(SmallEnv):
    """Say the larger of two digits."""

    chance = Fraction(1, 2)

    def _begin(self) -> str:
        self.pair = [int(each) for each in self.np_random.permutation(10)[:2]]
        return f"Which is larger, {self.pair[0]} or {self.pair[1]}?"

    def step(self, action: str) -> Step:
        """One answer."""
        return "Thank you.", float(first_number(action) == max(self.pair)), True, False, {}

    def _best(self) -> str:
        return str(max(self.pair))

    def _guess(self) -> str:
        return str(self.pair[self._draw(0, 1)])


class Count(SmallEnv):
    """Five numbers in order; the reward is the share of places that are right."""

    chance = Fraction(1, 10)

    def _begin(self) -> str:
        self.start = self._draw(0, 5)
        return f"Count five numbers from {self.start}."

    def step(self, action: str) -> Step:
        """One answer."""
        said = [int(digit) for digit in re.findall(r"\d", action)][:5]
        right = sum(number == self.start + place for place, number in enumerate(said))
        return "Thank you.", right / 5, True, False, {"success": right == 5}

    def _best(self) -> str:
        return " ".join(str(self.start + place) for place in range(5))

    def _guess(self) -> str:
        return " ".join(str(self._draw(0, 9)) for _ in range(5))


class Guess(SmallEnv):
    """Guess a number from 1 to 8 in four tries, without a hint: who never repeats himself wins half of the games."""

    possible = Fraction(4, 8)
    chance = 1 - Fraction(7, 8) ** 4
    tries = 4

    def _begin(self) -> str:
        self.number, self.turn = self._draw(1, 8), 0
        return "Guess a number from 1 to 8."

    def step(self, action: str) -> Step:
        """One guess."""
        self.turn += 1
        guess = first_number(action)
        won = guess == self.number
        return self._answer(guess), float(won), won or self.turn == self.tries, False, {}

    def _answer(self, guess: int | None) -> str:
        return "No. Guess again."

    def _best(self) -> str:
        return str(self.turn + 1)

    def _guess(self) -> str:
        return str(self._draw(1, 8))


class HigherLower(Guess):
    """The same in three tries with hints: three questions tell 7 of 8 numbers apart."""

    possible = Fraction(7, 8)
    chance = 1 - Fraction(7, 8) ** 3
    tries = 3

    def _begin(self) -> str:
        self.low, self.high = 1, 8
        return super()._begin()

    def _answer(self, guess: int | None) -> str:
        if guess is None:
            return "That is no number."
        if guess < self.number:
            self.low = max(self.low, guess + 1)
            return f"It is higher than {guess}."
        self.high = min(self.high, guess - 1)
        return f"It is lower than {guess}."

    def _best(self) -> str:
        return str((self.low + self.high) // 2)


class Memory(SmallEnv):
    """A word is shown, another one distracts, then the first is asked for."""

    chance = Fraction(1, 8)

    def _begin(self) -> str:
        self.word, self.turn = self._word(), 0
        return f"Keep {self.word} in mind. Say ok."

    def step(self, action: str) -> Step:
        """Two answers that do not matter, then the one that does."""
        self.turn += 1
        if self.turn == 3:
            return "Thank you.", float(first_word(action) == self.word), True, False, {}
        return (
            f"Here is {self._word()}. Say ok." if self.turn == 1 else "What was the first word?",
            0.0,
            False,
            False,
            {},
        )

    def _best(self) -> str:
        return self.word if self.turn == 2 else "ok"

    def _guess(self) -> str:
        return self._word()


@cache
def _walk(place: int, goal: int, steps: int) -> Fraction:
    """The probability that fair steps between the walls 0 and 6 lead to the goal in time."""
    if place == goal or steps == 0:
        return Fraction(int(place == goal))
    return (_walk(max(0, place - 1), goal, steps - 1) + _walk(min(6, place + 1), goal, steps - 1)) / 2


class Corridor(SmallEnv):
    """Seven places in a row: walk to the goal, with two steps to spare."""

    chance = sum((_walk(a, b, abs(a - b) + 2) for a, b in permutations(range(7), 2)), Fraction(0)) / 42

    def _begin(self) -> str:
        self.place, self.goal = (int(each) for each in self.np_random.permutation(7)[:2])
        self.steps = abs(self.goal - self.place) + 2
        return self._tell()

    def step(self, action: str) -> Step:
        """One step; what is no direction costs a step too."""
        move = first_word(action, ("left", "right"))
        self.place = min(6, max(0, self.place + {"left": -1, "right": 1, None: 0}[move]))
        self.steps -= 1
        won = self.place == self.goal
        return self._tell(), float(won), won, self.steps == 0, {"is_valid_action": move is not None}

    def _tell(self) -> str:
        return f"You are at {self.place}, the goal is at {self.goal}. Go left or right?"

    def _best(self) -> str:
        return "right" if self.goal > self.place else "left"

    def _guess(self) -> str:
        return ("left", "right")[self._draw(0, 1)]


@cache
def offers_worth(left: int) -> Fraction:
    """What the best player gets of `left` throws of a die, in pips: he takes what exceeds the worth of the rest."""
    if left == 0:
        return Fraction(0)
    return sum((max(Fraction(pips), offers_worth(left - 1)) for pips in range(1, 7)), Fraction(0)) / 6


class Offers(SmallEnv):
    """Four offers of 1 to 6, one after the other: take one, or wait for the next."""

    possible = offers_worth(4) / 6
    chance = (1 - Fraction(1, 2) ** 4) * Fraction(7, 2) / 6

    def _begin(self) -> str:
        self.left = 4
        return self._offer()

    def step(self, action: str) -> Step:
        """Take or wait; who says neither waits."""
        word = first_word(action, ("take", "wait"))
        info = {"is_valid_action": word is not None, "success": word == "take" and self.offer > offers_worth(self.left)}
        if word == "take":
            return "Sold.", self.offer / 6, True, False, info
        if self.left == 0:
            return "No offer is left.", 0.0, True, False, info
        return self._offer(), 0.0, False, False, info

    def _offer(self) -> str:
        self.left, self.offer = self.left - 1, self._draw(1, 6)
        return f"Offer {self.offer}, {self.left} to come. Take or wait? Say take or wait."

    def _best(self) -> str:
        return "take" if self.offer > offers_worth(self.left) else "wait"

    def _guess(self) -> str:
        return ("take", "wait")[self._draw(0, 1)]


class Price(SmallEnv):
    """Look up a price with a tool, then tell it."""

    chance = Fraction(1, 9)

    def _begin(self) -> str:
        self.item, self.cost, self.asked = self._word(), self._draw(1, 9), False
        return f"What does the {self.item} cost?"

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin; a model from scratch cannot hit upon a call's notation, so there is somebody to imitate."""
        observation, info = super().reset(seed=seed, options=options)
        return observation, {**info, "expert_action": self._best()}

    def price(self, item: str) -> Step:
        """Look up what a thing costs.

        Args:
            item: its name.
        """
        self.asked = self.asked or item == self.item
        found = str(self.cost) if item == self.item else "unknown"
        return found, 0.0, False, False, {"expert_action": self._best()}

    def step(self, action: str) -> Step:
        """The answer."""
        return "Thank you.", float(first_number(action) == self.cost), True, False, {}

    def _best(self) -> str:
        call = f'<tool_call>{{"name": "price", "arguments": {{"item": "{self.item}"}}}}</tool_call>'
        return str(self.cost) if self.asked else call

    def _guess(self) -> str:
        return str(self._draw(1, 9))


class ToldTools(ToolCalls):
    """Tool calls of a model whose chat template shows no tools, as the tiny one's: it learns them from the expert."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """First observation, without schemas."""
        observation, info = super().reset(seed=seed, options=options)
        return observation, {key: value for key, value in info.items() if key != "tools"}


ENVIRONMENTS: tuple[type[SmallEnv], ...] = (
    Echo, Sum, Larger, Count, Guess, HigherLower, Memory, Corridor, Offers, Price,
)  # fmt: skip
