"""Writings of one answer that no algebra relates: a choice and its text, names in any order, bases, decimal commas."""

import re
from fractions import Fraction

from agentrl.envs.math.numerals import parse_numeral

_LETTER = re.compile(r"(?:\\(?:text|textbf|textrm|mathrm|mathbf)\s{0,5}\{)?\s{0,5}\(?([A-J])\)?\s{0,5}\}?")
_CHOICE = re.compile(
    r"(?:\\(?:text|textbf|textrm|mathrm|mathbf)\s{0,5}\{)?\s{0,5}(?i:option|choice|answer)?\s{0,5}\(?([A-J])"
    r"(?:\)?\s{0,5}\}?|\s{0,5}[.:)]\s{0,5}.{0,400})",
    re.DOTALL,
)
_IN_BASE = re.compile(r"([0-9A-F]{1,60})\s{0,3}_\s{0,3}\{?\s{0,3}(?:\\text\s{0,3}\{)?\s{0,3}([0-9]{1,2})\s{0,3}\}{0,2}")
_MODULUS = re.compile(r"(-?[0-9]{1,30})\s{0,5}\\(?:pmod|bmod|mod)\s{0,5}\{?\s{0,5}[0-9]{1,30}\s{0,5}\}?")
_COMMA = re.compile(r"(-?[0-9]{1,12}),([0-9]{1,12})")
_TEXT = re.compile(r"\\(?:text|textbf|textrm|mbox|mathrm)\s{0,5}\{([^{}]{1,400})\}|([A-Za-z][A-Za-z ,.&]{0,400})")


def same_by_convention(gold: str, prediction: str, *, written: str = "") -> bool | None:
    r"""Whether two normalised answers are the same by a convention of writing; None where none applies.

    `written` is the prediction before it was normalised: the letter of a choice is text before a number.

    >>> same_by_convention("B", "B. 5"), same_by_convention("101_2", "101_{3}"), same_by_convention("0.25", "0,25")
    (True, False, True)
    """
    letter, choice = _LETTER.fullmatch(gold), _CHOICE.fullmatch(written) or _CHOICE.fullmatch(prediction)
    if letter and choice:
        return letter[1] == choice[1]
    first, second = _IN_BASE.fullmatch(gold), _IN_BASE.fullmatch(prediction)
    if first and second:
        return (first[1].lstrip("0"), int(first[2])) == (second[1].lstrip("0"), int(second[2]))
    modulus = _MODULUS.fullmatch(gold)
    if modulus and (number := parse_numeral(prediction)):
        return number.value == int(modulus[1])
    if (names := _names(gold)) and (others := _names(prediction)):
        return True if names == others else None
    return _decimal_comma(gold, prediction)


def _names(answer: str) -> list[str]:
    """Several names or words, sorted: `\\text{Alice and Bob}`; empty for anything else, and for letters."""
    match = _TEXT.fullmatch(answer)
    text = (match[1] or match[2]) if match else ""
    parts = [part.strip(" .").lower() for part in re.split(r",|&|\band\b", text)]
    parts = [part for part in parts if part]
    return sorted(parts) if len(parts) > 1 and min(map(len, parts)) > 1 and not re.search(r"[0-9\\$=]", text) else []


def _decimal_comma(gold: str, prediction: str) -> bool | None:
    """`0,25` where the gold answer is a broken number and equal to it; else a comma parts a list, or thousands."""
    number, match = parse_numeral(gold), _COMMA.fullmatch(prediction)
    if not number or not match or number.value.denominator == 1 or parse_numeral(prediction):
        return None
    return True if number.value == Fraction(f"{match[1]}.{match[2]}") else None
