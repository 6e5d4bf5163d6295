"""Exact values of SymPy expressions that are rational: integers of any size, without a digit lost to rounding."""

import math
from collections.abc import Sequence
from typing import Any

Ratio = tuple[int, int]
"""Numerator and positive denominator, not reduced: reducing numbers of a million bits takes seconds."""
_MAX_BITS = 2_000_000  # of a value on the way; what is larger is left to others
_MAX_FACTORIAL = 100_000


def exact_values(expression: Any) -> list[Ratio] | None:
    """The rational numbers in a number, `x = number`, or a set, list or tuple of these; None where there is another."""
    kind = type(expression).__name__
    if kind in ("FiniteSet", "Tuple", "OrderedFiniteSet"):
        values = [exact_values(part) for part in expression.args]
        return [value for part in values if part for value in part] if values and None not in values else None
    if kind == "Equality" and getattr(expression.lhs, "is_Symbol", False):
        return exact_values(expression.rhs)
    value = exact_value(expression)
    return None if value is None else [value]


def same_values(first: Sequence[Ratio], second: Sequence[Ratio]) -> bool:
    """Whether both hold the same numbers, in any order; by cross products."""
    return all(
        any(a * d == c * b for c, d in other) for one, other in ((first, second), (second, first)) for a, b in one
    )


def exact_value(expression: Any) -> Ratio | None:
    """The value of an expression of integers, + - * /, integer powers, factorials and binomials; None for others."""
    if getattr(expression, "is_Rational", False):
        return int(expression.p), int(expression.q)
    kind = type(expression).__name__
    if kind not in _RULES:
        return None
    parts = [exact_value(part) for part in expression.args]
    if any(part is None for part in parts):
        return None
    value = _RULES[kind](*parts)
    return value if value and value[1] and max(map(int.bit_length, value)) <= _MAX_BITS else None


def _add(*parts: Ratio) -> Ratio | None:
    top, bottom = 0, 1
    for a, b in parts:
        top, bottom = top * b + a * bottom, bottom * b
        if bottom.bit_length() > _MAX_BITS:
            return None
    return top, bottom


def _multiply(*parts: Ratio) -> Ratio | None:
    if sum(a.bit_length() + b.bit_length() for a, b in parts) > 2 * _MAX_BITS:
        return None
    return math.prod(a for a, _ in parts), math.prod(b for _, b in parts)


def _power(base: Ratio, exponent: Ratio) -> Ratio | None:
    times, rest = divmod(exponent[0], exponent[1])
    if rest or max(map(int.bit_length, base)) * abs(times) > _MAX_BITS:
        return None
    top, bottom = base if times >= 0 else (base[1], base[0])
    if bottom == 0:
        return None
    top, bottom = top ** abs(times), bottom ** abs(times)
    return (-top, -bottom) if bottom < 0 else (top, bottom)


def _factorial(of: Ratio) -> Ratio | None:
    number, rest = divmod(of[0], of[1])
    return None if rest or not 0 <= number <= _MAX_FACTORIAL else (math.factorial(number), 1)


def _binomial(of: Ratio, chosen: Ratio) -> Ratio | None:
    (n, n_rest), (k, k_rest) = divmod(of[0], of[1]), divmod(chosen[0], chosen[1])
    return None if n_rest or k_rest or not 0 <= k <= n <= _MAX_FACTORIAL else (math.comb(n, k), 1)


_RULES: dict[str, Any] = {
    "Add": _add, "Mul": _multiply, "Pow": _power, "factorial": _factorial, "binomial": _binomial,
    "Abs": lambda value: (abs(value[0]), value[1]), "UnevaluatedExpr": lambda value: value,
}  # fmt: skip
