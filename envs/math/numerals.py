"""Plain numbers in normalised answers, and their exact comparison; nothing here needs math-verify."""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Numeral:
    """A number as written.

    Attributes:
        value: the exact value, a percent sign left aside.
        exact: an integer or a fraction; False for decimals, which are rounded by nature.
        scientific: written with a power of ten.
        percent: followed by a percent sign.
    """

    value: Fraction
    exact: bool
    scientific: bool = False
    percent: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether it is an integer, decimal or fraction and nothing else: the forms math-verify reads likewise."""
        return not (self.scientific or self.percent)


_INTEGER = r"[0-9]{1,40}|[1-9][0-9]{0,2}(?:,[0-9]{3}){1,8}"
_DECIMAL = r"(?:[0-9]{1,12}|[1-9][0-9]{0,2}(?:,[0-9]{3}){1,3})?\.[0-9]{1,12}"
_NUMERAL = re.compile(
    rf"(?P<sign>[+-]?)\s*(?:\\\$\s*)?(?:"
    rf"(?P<decimal>{_DECIMAL})|(?P<integer>{_INTEGER})|"
    r"(?P<slash>[0-9]{1,20}\s*/\s*[0-9]{1,20})|"
    r"\\[dtc]?frac\s*(?:\{\s*(?P<top>-?[0-9]{1,20})\s*\}\s*\{\s*(?P<bottom>[0-9]{1,20})\s*\}|(?P<digits>[0-9]{2}))"
    r")(?P<percent>\s*\\?%)?"
)
_POWER_OF_TEN = re.compile(
    rf"(?:(?P<mantissa>[+-]?(?:{_DECIMAL}|{_INTEGER}))\s*(?:\\times|\\cdot|\*|x)\s*|(?P<sign>[+-]?))"
    r"10\s*\^\s*(?:\{\s*(?P<braced>[+-]?[0-9]{1,3})\s*\}|(?P<bare>[+-]?[0-9]{1,3}))"
)


@lru_cache(maxsize=1 << 14)
def parse_numeral(answer: str) -> Numeral | None:
    """The number that a normalised answer is, or None.

    >>> parse_numeral(r"-\\frac{1}{2}").value
    Fraction(-1, 2)
    >>> parse_numeral("1,000") == parse_numeral("1000")
    True
    """
    if match := _NUMERAL.fullmatch(answer):
        return _numeral(match)
    if match := _POWER_OF_TEN.fullmatch(answer):
        mantissa = (match["mantissa"] or match["sign"] + "1").replace(",", "")
        power = Fraction(10) ** int(match["braced"] or match["bare"])
        return Numeral(Fraction(mantissa) * power, exact="." not in mantissa, scientific=True)
    return None


def _numeral(match: re.Match[str]) -> Numeral | None:
    written = match["decimal"] or match["integer"]
    if written:
        value = Fraction(written.replace(",", ""))
    else:
        top, bottom = match["top"], match["bottom"]
        if match["slash"]:
            top, bottom = match["slash"].split("/")
        elif match["digits"]:
            top, bottom = match["digits"][0], match["digits"][1]
        if int(bottom) == 0 or (match["sign"] and int(top) < 0):
            return None
        value = Fraction(int(top), int(bottom))
    value = -value if match["sign"] == "-" else value
    return Numeral(value, exact=match["decimal"] is None, percent=match["percent"] is not None)


def numerals_equal(gold: Numeral, prediction: Numeral, *, tolerance: float | None = None) -> bool | None:
    """Whether two numbers are the same answer; None where math-verify's rounding to six decimals has to decide.

    Integers and fractions are compared exactly. Decimals further apart than 1e-6 differ. A power of ten makes the
    comparison relative (1e-6). 50 % is accepted for 50 and for 0.5. `tolerance` is an absolute one, in the gold's unit.
    """
    pairs = [(gold.value, prediction.value)]
    if gold.percent and not prediction.percent:
        pairs.append((gold.value / 100, prediction.value))
    elif prediction.percent and not gold.percent:
        pairs.append((gold.value, prediction.value / 100))
    gaps = [abs(a - b) for a, b in pairs]
    if 0 in gaps or (tolerance is not None and min(gaps) <= Fraction(tolerance) * (1 + Fraction(1, 10**9))):
        return True
    if gold.exact and prediction.exact:
        return False
    if gold.scientific or prediction.scientific:
        return any(gap <= max(abs(a), abs(b)) / 10**6 for gap, (a, b) in zip(gaps, pairs, strict=True))
    return False if min(gaps) > Fraction(1, 10**6) else None
