"""What intervals say of a claim: shown, refuted, or open. Pure functions."""

from collections.abc import Sequence
from typing import Literal

Finding = Literal["shown", "refuted", "open"]


def at_least(limit: float, *, low: float, high: float) -> Finding:
    """Whether a quantity with this interval is at least `limit`: shown where all of it is, refuted where none is.

    >>> at_least(0, low=0.1, high=2), at_least(0, low=-3, high=-1), at_least(0, low=-1, high=2)
    ('shown', 'refuted', 'open')
    """
    if low >= limit:
        return "shown"
    return "refuted" if high < limit else "open"


def holds_in(findings: Sequence[Finding], count: int) -> Finding:
    """Whether a claim holds in at least `count` cases, of which each was judged by itself.

    That it holds in all cases needs no wider intervals: it is shown only where every single one is.

    >>> holds_in(["shown", "shown", "open"], 2), holds_in(["shown", "open"], 2), holds_in(["shown", "refuted"], 2)
    ('shown', 'open', 'refuted')
    """
    if findings.count("shown") >= count:
        return "shown"
    return "refuted" if len(findings) - findings.count("refuted") < count else "open"
