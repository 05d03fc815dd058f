"""Random numbers by place, not by turn: a draw depends on what it is for and on no draw before it.

SplitMix64's finaliser hashes (seed, step, row, number of the draw). Any step can therefore be made again alone, in any
thread, and a resumed run meets the same batches without saved generators.

Source: Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
ORDERS = 1 << 62  # steps stay below: an epoch's order shares no hash with a step's draws
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser: every bit of the output depends on every bit of the input."""
    words = (words ^ (words >> np.uint64(30))) * FIRST
    words = (words ^ (words >> np.uint64(27))) * SECOND
    return words ^ (words >> np.uint64(31))


def words(seed: int, step: int, rows: NDArray[np.int64], draws: int) -> NDArray[np.uint64]:
    """Hashes [rows, draws]."""
    keys = mixed(np.array([seed % 2**64], dtype=np.uint64) + GOLDEN)
    keys = mixed((keys ^ np.uint64(step)) + GOLDEN)
    by_row = mixed((keys ^ rows.astype(np.uint64)) + GOLDEN)
    return mixed(by_row[:, None] + GOLDEN * np.arange(1, draws + 1, dtype=np.uint64))


def uniform(seed: int, step: int, rows: NDArray[np.int64], draws: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) as float64 [rows, draws]."""
    return (words(seed, step, rows, draws) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """An order of ``count`` rows: that of their hashes."""
    return np.argsort(words(seed, ORDERS + epoch, np.arange(count), 1)[:, 0], kind="stable")
