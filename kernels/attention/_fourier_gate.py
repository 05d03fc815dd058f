"""The gate of contenders that mix by Fourier transform: numpy's float64 transform of v.

One function, so that every implementation of FNet's mixing is held to the same bound.

Letters: B batch, H query heads, G KV heads, T length, D head size.

Source: Lee-Thorp et al. 2021, arXiv:2105.03824
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from archbench.checks import Tolerance, Wrong, compare, flatten, like, to_float64
from archbench.kernels.attention import AttentionCase

DIFFERS = "a fixed Fourier mix of v: no queries, no keys, no weights by content"
EPS = {"fp64": 2.0**-52, "fp32": 2.0**-23, "bf16": 2.0**-7, "fp16": 2.0**-10}


def gate(case: AttentionCase, inputs: tuple[Any, ...], outputs: Any) -> float:
    """Relative error against numpy's float64 transform. Raises Wrong.

    A transform of n = T x D standard normal values has a standard deviation of sqrt(n / 2) and an error that grows with
    log2(n), so the bound does both.
    """
    given = list(flatten(outputs).values())
    if len(given) != 1:
        raise Wrong(f"returned {len(given)} tensors, expected 1")
    like(given[0], inputs[2])
    points = case.length * case.head_dim
    want = np.fft.fft2(to_float64(inputs[2], "v"), axes=(-2, -1)).real.repeat(case.heads // case.groups, axis=1)
    eps = EPS[case.dtype]
    bound = 4 * eps * (1 + math.log2(points))
    reason = f"{case.dtype}, 4 eps per stage of a transform of {points} points"
    return compare(to_float64(given[0]), want, Tolerance(rtol=bound, atol=bound * math.sqrt(points / 2), reason=reason))
