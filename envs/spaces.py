"""A Gymnasium space for free text."""

import string
from typing import Any

import gymnasium
import numpy as np

from agentrl.envs.options import check_at_least

_SAMPLE_ALPHABET = string.ascii_lowercase + string.digits + " []<>/.,!?\n\té漢🙂"


class FreeText(gymnasium.Space[str]):
    """Every Python `str` of at most `max_length` characters.

    `gymnasium.spaces.Text` admits letters and digits only by default and checks each character against a set; agents
    write anything, so this space accepts any character.

        >>> "go to drawer 1\\n🙂" in FreeText(100)
        True
    """

    def __init__(self, max_length: int = 1 << 20, *, seed: int | np.random.Generator | None = None) -> None:
        check_at_least("max_length", max_length)
        self.max_length = max_length
        super().__init__(dtype=str, seed=seed)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """A random string of up to 32 characters from a mixed alphabet (for checkers, not for exploration)."""
        length = int(self.np_random.integers(0, min(self.max_length, 32) + 1))
        return "".join(_SAMPLE_ALPHABET[i] for i in self.np_random.integers(0, len(_SAMPLE_ALPHABET), length))

    def contains(self, x: Any) -> bool:
        """Whether `x` is a string within the length."""
        return isinstance(x, str) and len(x) <= self.max_length

    @property
    def is_np_flattenable(self) -> bool:
        """Text has no fixed-size array form."""
        return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FreeText) and self.max_length == other.max_length

    def __repr__(self) -> str:
        return f"FreeText({self.max_length})"
