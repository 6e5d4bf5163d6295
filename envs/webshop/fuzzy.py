"""Fuzzy comparison of short texts: `thefuzz.fuzz.token_set_ratio`, of which only the cleaning of texts is our own."""

import re
from functools import lru_cache

from rapidfuzz import fuzz

_NOT_ALPHANUMERIC = re.compile(r"[\W_]")
# thefuzz deletes the upper half of Latin 1, and only it; rapidfuzz lower-cases characters one by one
_TRANSLATION: dict[int, str | None] = dict.fromkeys(range(0x80, 0x100)) | {ord("İ"): "i", ord("Σ"): "σ"}


def _clean(text: str) -> str:
    # By Python's idea of a letter: rapidfuzz's own cleaning goes by another version of Unicode.
    return _NOT_ALPHANUMERIC.sub(" ", text.translate(_TRANSLATION)).lower().strip()


@lru_cache(maxsize=1 << 16)
def token_set_ratio(left: str, right: str) -> int:
    """How alike the words of two texts are, 0 to 100; 100 where all words of one are in the other.

    >>> token_set_ratio("x-large", "large"), token_set_ratio("32w x 30l", "32w x 32l"), token_set_ratio("red", "blue")
    (100, 89, 29)
    """
    left, right = _clean(left), _clean(right)
    return round(fuzz.token_set_ratio(left, right)) if left and right else 0
