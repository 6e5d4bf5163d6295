"""Fuzzy comparison of short texts: `thefuzz.fuzz.token_set_ratio` on rapidfuzz, rewritten without dependencies."""

import re
from functools import lru_cache

_NOT_ALPHANUMERIC = re.compile(r"[\W_]")
# thefuzz deletes the upper half of Latin 1, and only it; rapidfuzz lower-cases characters one by one
_TRANSLATION: dict[int, str | None] = dict.fromkeys(range(0x80, 0x100)) | {ord("İ"): "i", ord("Σ"): "σ"}


def _tokens(text: str) -> frozenset[str]:
    cleaned = _NOT_ALPHANUMERIC.sub(" ", text.translate(_TRANSLATION))
    return frozenset(cleaned.lower().split())


def _common_subsequence_length(left: str, right: str) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyrö 2004): one integer step a character of `right`."""
    places: dict[str, int] = {}
    for position, character in enumerate(left):
        places[character] = places.get(character, 0) | 1 << position
    all_places = (1 << len(left)) - 1
    free = all_places  # a zero bit marks a matched place
    for character in right:
        matched = free & places.get(character, 0)
        free = (free + matched | free - matched) & all_places
    return len(left) - free.bit_count()


def _ratio(distance: int, length: int) -> float:
    return 100 - 100 * distance / length


@lru_cache(maxsize=1 << 16)
def token_set_ratio(left: str, right: str) -> int:
    """How alike the words of two texts are, 0 to 100; 100 where all words of one are in the other.

    >>> token_set_ratio("x-large", "large"), token_set_ratio("32w x 30l", "32w x 32l"), token_set_ratio("red", "blue")
    (100, 89, 29)
    """
    left_tokens, right_tokens = _tokens(left), _tokens(right)
    if not left_tokens or not right_tokens:
        return 0
    common = left_tokens & right_tokens
    only_left, only_right = " ".join(sorted(left_tokens - common)), " ".join(sorted(right_tokens - common))
    if common and not (only_left and only_right):
        return 100
    num_common = len(" ".join(sorted(common)))
    left_length = num_common + (num_common > 0) + len(only_left)
    right_length = num_common + (num_common > 0) + len(only_right)
    distance = len(only_left) + len(only_right) - 2 * _common_subsequence_length(only_left, only_right)
    best = _ratio(distance, left_length + right_length)
    if num_common:
        best = max(
            best,
            _ratio(1 + len(only_left), num_common + left_length),
            _ratio(1 + len(only_right), num_common + right_length),
        )
    return round(best)
