"""Curves over batches: pure functions on plain numbers."""

import math


def sparkline(values: list[float], *, width: int = 48) -> str:
    """A curve in one line of text: `▁▂▅█ 12 % -> 61 %`, means of equal stretches, scaled from 0 to 1."""
    if not values:
        return "-"
    size = max(1, math.ceil(len(values) / width))
    means = [sum(values[i : i + size]) / len(values[i : i + size]) for i in range(0, len(values), size)]
    bars = "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * max(0.0, mean)))] for mean in means)
    return f"{bars} {means[0]:.0%} -> {means[-1]:.0%}"
