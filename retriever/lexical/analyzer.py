"""Text to index terms, as Lucene's English analysis chain does it.

Words are found by the word-break rules of Unicode Standard Annex 29 (Lucene's StandardTokenizer), lower-cased,
stripped of a trailing `'s`, filtered by Lucene's 33 stop words, and stemmed. The rules work on classes of characters,
not on characters: each character is first mapped to a one-letter class (`word_break`), and one regular expression over
the string of classes finds the words. ASCII text, the usual case, skips the mapping.
"""

import re
import sys
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache

from agentrl.retriever.lexical.stemmer import stem
from agentrl.retriever.lexical.word_break import RANGES

_STOP_WORDS = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they "
    "this to was will with"
)
STOP_WORDS = frozenset(_STOP_WORDS.split())
MAX_TOKEN_UNITS = 255  # UTF-16 units; Lucene cuts longer words


class _Classes(dict[int, str]):
    """Code point to class letter, filled on demand: a table for `str.translate`."""

    def __init__(self) -> None:
        bounds = ((letter, span.partition("-")) for letter, spans in RANGES.items() for span in spans.split())
        self._ranges = sorted((int(first, 16), int(last or first, 16), letter) for letter, (first, _, last) in bounds)

    def __missing__(self, code_point: int) -> str:
        first, last, letter = self._ranges[bisect_right(self._ranges, (code_point, sys.maxunicode, "~")) - 1]
        return self.setdefault(code_point, letter if first <= code_point <= last else "-")


_CLASSES = _Classes()

# The rules WB4 to WB13 of the annex and the emoji sequences of Unicode Technical Standard 51, over the letters of
# `RANGES`. What may follow any character and clings to it:
_X = "[xSTVvZKGg]*+"
_Y = "[xSTZKGg]*+"  # the same without the two variation selectors, which close an emoji
_LETTERS = f"(?: [aA][aAxSTVvZKGg]*+ | h{_X} ) (?: [mdq]{_X}[ahA]{_X} )*+"
_DIGITS = f"n[nxSTVvZKGg]*+ (?: [cdq]{_X} n[nxSTVvZKGg]*+ )*+"
_CORE = f"(?: (?:k{_X})++ | (?: h{_X}(?: q{_X} | Q{_X}h{_X} ) | {_DIGITS} | {_LETTERS} )++ )"
# a word with more connectors in front is longer than Lucene's window, and is looked at again
_WORD = f"(?:e{_X}){{0,255}}+ {_CORE} (?: (?:e{_X})++ {_CORE} )*+ (?:e{_X})*+"
_EMOJIS = f"[EA]{_Y} (?: (?<=Z)[EA]{_Y} )*+ V?"
_SKIN_TONE = f"T{_Y} (?: (?<=Z){_EMOJIS} )?"  # not behind an emoji
_EMOJI = f"(?: Z*+{_EMOJIS} | {_SKIN_TONE} ) (?: (?: Z++{_EMOJIS} | Z{_SKIN_TONE} )++ | G++g )?"
# a letter that is an emoji begins a word, unless joiners tie it to an emoji that is no letter
_TIED = f"(?= (?: A{_Y} (?:VZ++)? (?<=Z) )++ E )"
_KEYCAP = f"b (?: {_Y}VK | [xSTZGg]*+K ) {_Y}"
# Runs of connectors or joiners that begin nothing: to skip them one by one would take quadratic time.
_SKIPPED = "(?: e[xVvKGg]*+ (?: Z++(?![EA])[xVvKGg]*+ )*+ )++ | Z++"
_UNICODE_TOKEN = re.compile(
    f"{_TIED}{_EMOJI} | {_WORD} | {_EMOJI} | {_KEYCAP} | r{_X}r{_X} | j{_X} | [sS][sxSTVvZKGg]*+ | ({_SKIPPED})",
    re.VERBOSE,
)
# The same words where every character is ASCII: no marks, and of the scripts only Latin.
_ASCII_TOKEN = re.compile(
    "_*+ CORE (?: _++ CORE )*+ _*+"
    .replace("CORE", "(?: [0-9]++(?:[.,;'][0-9]++)*+ | [A-Za-z]++(?:[.:'][A-Za-z]++)*+ )++"),
    re.VERBOSE,
)  # fmt: skip


def words(text: str) -> list[str]:
    """The words of a text, unchanged, in order; what stands between them is dropped.

    >>> words("Men's 3.5-inch belt_clip ®")
    ["Men's", '3.5', 'inch', 'belt_clip', '®']
    """
    if text.isascii() and "__" not in text:
        found = _ASCII_TOKEN.findall(text)
        is_long = len(text) > MAX_TOKEN_UNITS and max(map(len, found), default=0) > MAX_TOKEN_UNITS
    else:
        matches = list(_UNICODE_TOKEN.finditer(text.translate(_CLASSES)))
        found = [text[match.start() : match.end()] for match in matches if match[1] is None]
        # a character beyond the basic plane has two units
        is_long = max((match.end() - match.start() for match in matches), default=0) > MAX_TOKEN_UNITS // 2
    return list(_words_in_window(text)) if is_long else found


def _num_units(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def _words_in_window(text: str) -> Iterator[str]:
    """The words as Lucene finds them when it sees no further than `MAX_TOKEN_UNITS` from where it looks for one."""
    classes, begin = text.translate(_CLASSES), 0
    while begin < len(text):
        end = begin + MAX_TOKEN_UNITS
        while _num_units(text[begin:end]) > MAX_TOKEN_UNITS:
            end -= 1
        match = _UNICODE_TOKEN.match(classes, begin, end)
        if match is None or match[1] is not None:
            begin += 1
        else:
            yield text[begin : match.end()]
            begin = match.end()


@lru_cache(maxsize=1 << 16)
def term(word: str) -> str | None:
    """The index term of one word, or None for a stop word."""
    word = word.lower()
    if word[-1:] == "s" and word[-2:-1] in ("'", "’", "＇"):
        word = word[:-2]
    return None if word in STOP_WORDS else stem(word)


def terms(text: str) -> list[str]:
    """The index terms of a text, in order, duplicates kept.

    >>> terms("The men's running shoes")
    ['men', 'run', 'shoe']
    """
    return [found for found in map(term, words(text)) if found]
