"""How sure a measured rate is."""

import math


def wilson_interval(successes: int, count: int, *, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a success rate by Wilson's score method (E. B. Wilson, JASA 1927).

    >>> tuple(round(x, 3) for x in wilson_interval(8, 10))
    (0.49, 0.943)
    """
    if count == 0:
        return 0.0, 1.0
    rate, square = successes / count, z * z
    center = (rate + square / (2 * count)) / (1 + square / count)
    half = z * math.sqrt(rate * (1 - rate) / count + square / (4 * count * count)) / (1 + square / count)
    return max(0.0, center - half), min(1.0, center + half)
