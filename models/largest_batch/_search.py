"""The largest batch that fits, in few trials: from a guess outwards by doubling, then by halving what is left.

A trial costs seconds to minutes, so the search asks as little as it can: where the guess is d steps off, some
2 log2(d) + 2 trials. The guess is only where it begins: what it returns was tried and fits, and one step more was tried
and does not.

Source: Bentley and Yao 1976, An almost optimal algorithm for unbounded searching
"""

from __future__ import annotations

from collections.abc import Callable, Mapping


def largest(fits: Callable[[int], bool], guess: int, step: int, low: int, high: int) -> int:
    """The largest multiple of ``step`` that fits, where ``low`` does and ``high`` does not. Both are multiples too."""
    batch, stride = guess // step * step, step
    up: bool | None = None  # the way from the guess
    while high - low > step:
        batch = min(max(batch, low + step), high - step)
        answer = fits(batch)
        low, high = (batch, high) if answer else (low, batch)
        up = answer if up is None else up
        if answer == up:
            batch += stride if up else -stride
            stride *= 2
        if not low < batch < high:  # the answer turned, or a known end is reached: halve from here on
            batch, stride = (low + high) // 2 // step * step, 0
    return low


def line(points: Mapping[int, float]) -> tuple[float, float]:
    """Slope and intercept of the straight line with the least squares through two points or more."""
    count = len(points)
    x_mean, y_mean = sum(points) / count, sum(points.values()) / count
    slope = sum((x - x_mean) * (y - y_mean) for x, y in points.items()) / sum((x - x_mean) ** 2 for x in points)
    return slope, y_mean - slope * x_mean
