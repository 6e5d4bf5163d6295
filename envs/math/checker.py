"""One comparison by math-verify; runs in a worker process that can be killed (`agentrl.envs.math.workers`)."""

import logging
from functools import lru_cache
from typing import Any


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
    """Whether math-verify holds the prediction for the gold answer, and their magnitudes agree.

    The library rounds to six decimals and chops what is tiny, so that 6.6 * 10^-34 equals 1.1 * 10^-20 for it; a
    relative difference above 1e-3 overrules such an equality.
    """
    if library_equal(gold, prediction):
        return _relative_gap(gold, prediction) <= 1e-3
    return tolerance is not None and _absolute_gap(gold, prediction) <= tolerance * (1 + 1e-9)


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


def _number(answer: str) -> complex | None:
    parsed = parse_boxed(answer)
    if not parsed or not getattr(parsed[0], "is_number", False):
        return None
    try:
        return complex(parsed[0].evalf(15))
    except (TypeError, ValueError, OverflowError):
        return None


def _absolute_gap(gold: str, prediction: str) -> float:
    a, b = _number(gold), _number(prediction)
    return abs(a - b) if a is not None and b is not None else float("inf")


def _relative_gap(gold: str, prediction: str) -> float:
    """0 where either is no number: only numbers are rounded by the library."""
    a, b = _number(gold), _number(prediction)
    if a is None or b is None or a == b or "%" in gold + prediction:  # 50 % equals 50 and 0.5
        return 0.0
    return abs(a - b) / max(abs(a), abs(b))
