"""Text to index terms, as Lucene's English analysis chain does it.

Words are found by the word-break rules of Unicode Standard Annex 29 (Lucene's StandardTokenizer), lower-cased,
stripped of a trailing `'s`, filtered by Lucene's 33 stop words, and stemmed. The rules work on classes of characters,
not on characters: each character is first mapped to a one-letter class (`_CLASSES`), and one regular expression over
the string of classes finds the words. ASCII text, the usual case, skips the mapping.
"""

import re
import unicodedata
from functools import lru_cache

from envs.webshop.stemmer import stem

_STOP_WORDS = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they "
    "this to was will with"
)
STOP_WORDS = frozenset(_STOP_WORDS.split())
MAX_TOKEN_LENGTH = 255  # Lucene cuts longer words into pieces of this length

# The classes: a letter, h Hebrew letter, n digit, k Katakana, e connector (`_`), x mark or format character,
# m d q c Q punctuation that may stand inside a word (see _PUNCTUATION), j Han, i Hiragana, s a letter of a script
# written without spaces, E emoji, r regional indicator, T skin tone, V emoji variation selector, Z zero-width joiner,
# K keycap, b the keycap bases # and *, o anything else. ASCII digits are 0, other digits n.
_CONNECTORS = "_‿⁀⁔︳︴﹍﹎﹏＿\u202f"
_PUNCTUATION = {
    **dict.fromkeys(":·\u0387\u055f\u05f4‧\ufe13\ufe55：", "m"),  # between letters
    **dict.fromkeys(".‘’\u2024\ufe52＇．", "d"),  # between letters or between digits
    **dict.fromkeys(",;\u037e\u0589\u060c\u060d\u066c\u07f8⁄\ufe10\ufe14\ufe50\ufe54，；", "c"),  # between digits
    "'": "q",
    '"': "Q",
    "\u202f": "e",
    "\u200d": "Z",
    "\ufe0f": "V",
    "\u20e3": "K",
    "#": "b",
    "*": "b",
}
_EMOJI = re.compile(
    "[\u2600-\u2605\u2607-\u2612\u2614-\u2685\u2690-\u2705\u2708-\u2712\u2714\u2716\u271d\u2721\u2728\u2733\u2734"
    "\u2744\u2747\u274c\u274e\u2753-\u2755\u2757\u2763-\u2767\u2795-\u2797\u27a1\u27b0\u27bf\U0001f000-\U0001faff"
    "©®\u203c\u2049\u2122\u2139\u2194-\u21aa\u231a-\u2328\u23cf-\u23fa\u24c2\u25aa\u25ab\u25b6\u25c0\u25fb-\u25fe"
    "\u2934\u2935\u2b05-\u2b55\u3030\u303d\u3297\u3299]"
)
# letters that Unicode's general category does not call letters: circled and squared Latin capitals
_SYMBOL_LETTERS = re.compile("[\u24b6-\u24e9]")
_KATAKANA = re.compile("[\u3031-\u3035\u309b\u309c\u30a0-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u32d0-\u32fe\uff66-\uff9d]")
_SPACELESS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aad\ua9e0-\ua9ff\uaa60-\uaadf]")


def _character_class(character: str) -> str:
    """The class letter of one character (Word_Break property, rebuilt from general categories and names)."""
    if character in _PUNCTUATION:
        return _PUNCTUATION[character]
    if "\U0001f3fb" <= character <= "\U0001f3ff":
        return "T"
    if "\U0001f1e6" <= character <= "\U0001f1ff":
        return "r"
    category = unicodedata.category(character)
    if _EMOJI.match(character):
        return "E"
    if category in ("Mn", "Mc", "Me") or character in "\u200c\uff9e\uff9f":
        return "x"
    if category == "Cf":
        return "o" if character == "\u200b" else "x"
    if category == "Nd":
        return "0" if character.isascii() else "n"
    if category == "Pc":
        return "e"
    if _KATAKANA.match(character):
        return "k"
    is_letter = category[0] == "L" or category == "Nl" or _SYMBOL_LETTERS.match(character)
    return _letter_class(character) if is_letter else "o"


def _letter_class(letter: str) -> str:
    name = unicodedata.name(letter, "")
    if name.startswith(("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "IDEOGRAPHIC", "HANGZHOU")):
        return "j"
    if name.startswith("HIRAGANA"):
        return "i"
    if name.startswith("HEBREW LETTER"):
        return "h"
    return "s" if _SPACELESS.match(letter) else "a"


class _Classes(dict[int, str]):
    """Code point to class letter, filled on demand: a table for `str.translate`."""

    def __missing__(self, code_point: int) -> str:
        return self.setdefault(code_point, _character_class(chr(code_point)))


_CLASSES = _Classes()

# Rules WB5 to WB13 of the annex, with marks and format characters (X) clinging to what precedes them (WB4). Runs of
# connectors alone are matched too, and dropped by `term`: skipping them here would take quadratic time.
_WORD = """
    (?:eX)*+ CORE (?: (?:eX)++ CORE )*+ (?:eX)*+
""".replace(
    "CORE",
    "(?: (?:kX)++ (?:(?:eX)*kX)*  |  (?: hX(?:qX|QXhX) | DIGITS(?:[cdq]XDIGITS)*+ | LETTERS(?:[mdq]XLETTERS)*+ )++ )",
)
_UNICODE_TOKEN = re.compile(
    f"E T?V?(?:Z E V?)* | rr?X | [0b]V?K | [ji]X | (?:sX)+ | {_WORD} | (?:eX)++"
    .replace("DIGITS", "[0n][0nxTVZK]*+").replace("LETTERS", "[ah][ahxTVZK]*+").replace("X", "[xTVZK]*+"),
    re.VERBOSE,
)  # fmt: skip
# The same words where every character is ASCII: no marks, and of the scripts only Latin.
_ASCII_TOKEN = re.compile(
    "_*+ CORE (?: _++ CORE )*+ _*+ | _++"
    .replace("CORE", "(?: [0-9]++(?:[.,;'][0-9]++)*+ | [A-Za-z]++(?:[.:'][A-Za-z]++)*+ )++"),
    re.VERBOSE,
)  # fmt: skip


def words(text: str) -> list[str]:
    """The words of a text, unchanged, in order; what stands between them is dropped.

    >>> words("Men's 3.5-inch belt_clip ®")
    ["Men's", '3.5', 'inch', 'belt_clip', '®']
    """
    if text.isascii():
        found = _ASCII_TOKEN.findall(text)
    else:
        found = [text[match.start() : match.end()] for match in _UNICODE_TOKEN.finditer(text.translate(_CLASSES))]
    if len(text) > MAX_TOKEN_LENGTH and max(map(len, found), default=0) > MAX_TOKEN_LENGTH:
        steps = ((word, start) for word in found for start in range(0, len(word), MAX_TOKEN_LENGTH))
        found = [word[start : start + MAX_TOKEN_LENGTH] for word, start in steps]
    return found


@lru_cache(maxsize=1 << 16)
def term(word: str) -> str | None:
    """The index term of one word, or None for a stop word or a run of connectors such as `___`."""
    word = word.lower()
    if not word.strip(_CONNECTORS):
        return None
    if word[-1:] == "s" and word[-2:-1] in ("'", "’", "＇"):
        word = word[:-2]
    return None if word in STOP_WORDS else stem(word)


def terms(text: str) -> list[str]:
    """The index terms of a text, in order, duplicates kept.

    >>> terms("The men's running shoes")
    ['men', 'run', 'shoe']
    """
    return [found for found in map(term, words(text)) if found]
