"""Intervals and ties: the statistics behind every rank.

Paired log ratios of one duel are symmetric around the true log ratio (contender and baseline alternate in
random order, so under equal speed swapping them changes nothing). For symmetric data the Hodges-Lehmann
estimate with Wilcoxon's signed-rank interval is exact at any sample size, needs no random numbers, resists
heavy tails and loses 5 % efficiency against the mean under normal noise. A percentile bootstrap of the
median, which we tried first, covers about 90 % at ten blocks where 95 % is promised.

Source: Hodges & Lehmann 1963, doi:10.1214/aoms/1177704172; Hollander, Wolfe & Chicken 2013, ch. 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from archbench.cells import Duel

Floats = Sequence[float] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence bounds."""

    value: float
    lo: float
    hi: float
    n: int

    @property
    def halfwidth(self) -> float:
        return (self.hi - self.lo) / 2

    def exp(self) -> Interval:
        """From log space back to ratios."""
        return Interval(math.exp(self.value), math.exp(self.lo), math.exp(self.hi), self.n)


@lru_cache(maxsize=512)
def _signed_rank_cut(n: int, confidence: float) -> int:
    """How many Walsh averages to drop at each end so that the interval keeps at least ``confidence``.

    Exact distribution of the signed-rank sum up to n = 60, the normal approximation beyond.
    Returns 0 where the sample is too small for the confidence asked: then the interval is the whole range.
    """
    tail = (1 - confidence) / 2
    total = n * (n + 1) // 2
    if n <= 60:
        counts = np.zeros(total + 1)
        counts[0] = 1.0
        for rank in range(1, n + 1):
            counts[rank:] = counts[rank:] + counts[:-rank]
        below = np.cumsum(counts) / 2.0**n
        return int(np.searchsorted(below, tail, side="right"))
    z = NormalDist().inv_cdf(1 - tail)
    sd = math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    return max(0, math.floor(total / 2 - z * sd))


@lru_cache(maxsize=64)
def _pairs(n: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    return np.triu_indices(n)


def hodges_lehmann(values: Floats, confidence: float = 0.95) -> Interval:
    """Centre of symmetric data: the median of all pairwise means, with the signed-rank interval.

    Raises ValueError on an empty or non-finite sample.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"need at least one finite value, got {x.size} values")
    # A reader checks thousands of duels of a few blocks; the indices of long ones are too big to keep.
    i, j = _pairs(x.size) if x.size <= 64 else np.triu_indices(x.size)
    walsh = np.sort((x[i] + x[j]) / 2)
    cut = _signed_rank_cut(int(x.size), confidence)
    # cut counts the rank sums in the tail; the interval starts at the (cut)-th smallest Walsh average.
    lo, hi = max(cut - 1, 0), min(walsh.size - cut, walsh.size - 1)
    centre = (walsh[(walsh.size - 1) // 2] + walsh[walsh.size // 2]) / 2
    return Interval(float(centre), float(walsh[lo]), float(walsh[max(hi, lo)]), int(x.size))


def median_interval(values: Floats, confidence: float = 0.95) -> Interval:
    """Median with its order-statistic interval: distribution-free, so it holds for skewed times too."""
    x = np.sort(np.asarray(values, dtype=np.float64))
    if x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"need at least one finite value, got {x.size} values")
    n = int(x.size)
    tail, cumulative, k = (1 - confidence) / 2, 0.0, 0
    while k < n // 2:
        cumulative += math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))
        if cumulative > tail:
            break
        k += 1
    lo = max(k - 1, 0)
    return Interval(float((x[(n - 1) // 2] + x[n // 2]) / 2), float(x[lo]), float(x[n - 1 - lo]), n)


@lru_cache(maxsize=64)
def _student_cut(freedom: int, confidence: float) -> float:
    """The quantile of Student's t at both-sided ``confidence``: the tail integrated until it is small enough."""
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    # t = tan(angle) sqrt(freedom) makes the density a power of a cosine on a finite range.
    steps = 20_000
    width = math.pi / 2 / steps
    middles = (np.arange(steps) + 0.5) * width
    inside = np.cumsum(np.cos(middles) ** (freedom - 1)) * (2 * scale * math.sqrt(freedom) * width)
    return math.tan(float(np.interp(confidence, inside, middles + width / 2))) * math.sqrt(freedom)


def mean_interval(values: Floats, confidence: float = 0.95) -> Interval:
    """Mean with Student's interval: for few runs of nearly normal spread, as seeds of a training are.

    One value has no interval: its ends are the value. Raises ValueError on an empty or non-finite sample.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"need at least one finite value, got {x.size} values")
    centre, n = float(x.mean()), int(x.size)
    half = _student_cut(n - 1, confidence) * float(x.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return Interval(centre, centre - half, centre + half, n)


def log_ratios(duel: Duel) -> list[float]:
    """Per block: log of contender over baseline, the baseline being the geometric mean of its two samples."""
    return [
        math.log(c) - (math.log(b) + math.log(a)) / 2
        for c, b, a in zip(duel.contender_s, duel.baseline_s, duel.control_s, strict=True)
    ]


def control_log_ratios(duel: Duel) -> list[float]:
    """Per block: log of the baseline's second sample over its first. Zero but for noise."""
    return [math.log(a) - math.log(b) for b, a in zip(duel.baseline_s, duel.control_s, strict=True)]


def apart(a: Interval, b: Interval, band: float) -> bool:
    """Whether two log ratios against the same baseline are ranked apart.

    Both must hold: their intervals do not cross, and they differ by more than ``band``, the largest A/A
    difference this host showed for the case (in log units).
    """
    return (a.hi < b.lo or b.hi < a.lo) and abs(a.value - b.value) > band


@lru_cache(maxsize=8)
def _draws(size: int, draws: int, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Picks and standard normals of the bootstrap: the same for every mean over as many cases."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, size, (draws, size))
    return picks, rng.standard_normal(picks.shape)


def geometric_mean(intervals: Sequence[Interval], draws: int = 2000, seed: int = 0) -> Interval:
    """Geometric mean of ratios over cases (log intervals in, log interval out).

    The interval bootstraps over cases and adds each case's own uncertainty, with a fixed seed so that two
    renders of the same results are byte-equal.
    """
    if not intervals:
        raise ValueError("no cases to average")
    centre = np.array([i.value for i in intervals])
    spread = np.array([i.halfwidth for i in intervals]) / 1.96
    if len(intervals) == 1:
        return intervals[0]
    picks, noise = _draws(centre.size, draws, seed)
    means = (centre[picks] + noise * spread[picks]).mean(axis=1)
    lo, hi = np.quantile(means, [0.025, 0.975])
    return Interval(float(centre.mean()), float(lo), float(hi), len(intervals))
