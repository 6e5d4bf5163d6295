"""One comparison by math-verify; runs in a worker process that can be killed (`agentrl.envs.math.workers`)."""

import logging
import re
from functools import lru_cache
from typing import Any

from agentrl.envs.math.exact_values import Ratio, exact_values, same_values

_DECIMAL = re.compile(r"\.[0-9]")


def initialise() -> None:
    """Load and warm up the library, so that forked workers answer at full speed from their first request."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own (SIGALRM) time-outs are off
    library_equal(r"\frac{1}{2}", "0.25")
    library_equal(r"x^2+\sqrt{2}", "y=3x")
    library_equal("(1,2]", r"\{1,2\}")
    library_equal("x>1", "(1,3)")


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Answer `{"gold", "prediction", "tolerance"}` with `{"equal": bool}`."""
    return {"equal": check(request["gold"], request["prediction"], tolerance=request.get("tolerance"))}


def check(gold: str, prediction: str, *, tolerance: float | None = None) -> bool:
    """Whether the prediction is the gold answer: exactly where both are rational, else as math-verify sees it.

    The library rounds to six decimals and chops what is tiny, so that 1/1500! equals 1/1501! and 6.6 * 10^-34 equals
    1.1 * 10^-20 for it. Rational numbers, alone or in lists, are compared exactly (decimals are rounded by nature, and
    left to the library); of other numbers a relative difference above 1e-3 overrules it.
    """
    first, second = _exact_values(gold), _exact_values(prediction)
    if first is None or second is None:
        equal = library_equal(gold, prediction) and _relative_gap(gold, prediction) <= 1e-3
    else:
        are_numbers = all(getattr(parse_boxed(answer)[0], "is_number", False) for answer in (gold, prediction))
        equal = same_values(first, second) and (are_numbers or library_equal(gold, prediction))
    return equal or (tolerance is not None and _absolute_gap(gold, prediction) <= tolerance * (1 + 1e-9))


@lru_cache(maxsize=64)
def _exact_values(answer: str) -> list[Ratio] | None:
    """The rational numbers that an answer consists of; None where it has others, decimals, or percent signs."""
    if "%" in answer or _DECIMAL.search(answer):
        return None
    parsed = parse_boxed(answer)
    return exact_values(parsed[0]) if parsed else None


def library_equal(gold: str, prediction: str) -> bool:
    """math-verify's verdict on two LaTeX answers, without its time-outs: they need SIGALRM, and workers are killed."""
    gold_forms, forms = list(parse_boxed(gold)), list(parse_boxed(prediction))
    return bool(_library().verify(gold_forms, forms, timeout_seconds=None, allow_set_relation_comp=True))


@lru_cache(maxsize=4096)
def parse_boxed(answer: str) -> tuple[Any, ...]:
    """math-verify's reading of a LaTeX answer: a SymPy object where it has one, and the text."""
    # A box is all that is read: with `Expr` extraction on, "The answer is 42." would count without one.
    boxes_only = (_library().LatexExtractionConfig(boxed_match_priority=0),)
    return tuple(_library().parse(rf"\boxed{{{answer}}}", extraction_config=boxes_only, parsing_timeout=None))


@lru_cache(maxsize=1)
def _library() -> Any:
    import math_verify

    return math_verify


def _number(answer: str) -> tuple[Any, Any] | None:
    """(real, imaginary) part to 15 digits, of any magnitude: a double would take 1/1500! for zero."""
    parsed = parse_boxed(answer)
    if not parsed or not getattr(parsed[0], "is_number", False):
        return None
    try:
        parts = parsed[0].evalf(15).as_real_imag()
    except (TypeError, ValueError, OverflowError, AttributeError):
        return None
    return parts if all(part.is_Float or part.is_Rational for part in parts) else None


def _squares(gold: str, prediction: str) -> tuple[Any, Any] | None:
    """Squared distance of two numbers, and the larger one's squared magnitude; None where either is no number."""
    a, b = _number(gold), _number(prediction)
    if a is None or b is None:
        return None
    return (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2, max(a[0] ** 2 + a[1] ** 2, b[0] ** 2 + b[1] ** 2)


def _absolute_gap(gold: str, prediction: str) -> float:
    squares = _squares(gold, prediction)
    try:
        return float(squares[0]) ** 0.5 if squares else float("inf")
    except OverflowError:
        return float("inf")


def _relative_gap(gold: str, prediction: str) -> float:
    """0 where either is no number: only numbers are rounded by the library."""
    squares = _squares(gold, prediction)
    if squares is None or squares[0] == 0 or "%" in gold + prediction:  # 50 % equals 50 and 0.5
        return 0.0
    return float(squares[0] / squares[1]) ** 0.5
