"""Where a quantiser's levels lie before anything is learned.

``absmax``: as far below zero as above it, to the largest magnitude, as textbooks begin. ``minmax``: the range of the
values, as PyTorch's default observers take it. In both all rows of a matrix are alike. ``rows``: as ``minmax``, for
each row (or group) of a matrix on its own. ``least_squares``: the range, for each row, whose rounding and clipping
together give the least squared error; found by trying.

Letters: R rows, C columns.

Source: https://docs.pytorch.org/docs/stable/quantization-support.html (MinMaxObserver); Banner et al. 2019,
arXiv:1810.05723 (clipping that minimises the squared error)
"""

from __future__ import annotations

import torch
from torch import Tensor

from archbench.models.vit_int4._plan import Ranges

SHARES = torch.linspace(0.3, 1.0, 29).tolist()  # of the largest magnitude, tried as the end of the range
ENDS = SHARES[::2]  # of an activation's two ends
SAMPLE = 1 << 15  # values of an activation that are tried on
TINY = 1e-8
# Of a range that ends at an extreme. A product of rounded operands takes few values, its largest among them; with a
# step that is a simple part of that one, others would lie exactly between two levels, and the last digit would decide.
MARGIN = 1.001


def weight_steps(rows: Tensor, low: float, high: float, ranges: Ranges) -> Tensor:
    """(R, 1): steps of rows (R, C), levels from ``low`` to ``high``."""
    largest = rows.abs().amax(1, keepdim=True).clamp_min(TINY)
    if ranges in ("absmax", "minmax"):
        return torch.full_like(largest, float(largest.max()) / high)
    if ranges == "rows":
        return largest / high
    steps = [largest * share / high for share in SHARES]
    errors = [((rows / s).clamp(low, high).round() * s - rows).square().sum(1) for s in steps]
    return torch.stack(steps).gather(0, torch.stack(errors).argmin(0).view(1, -1, 1))[0]


def activation_range(values: Tensor, high: float, ranges: Ranges) -> tuple[Tensor, Tensor]:
    """Step and offset for values (C,), levels from 0 to ``high``. Zero is within the range."""
    least, largest = values.min().clamp_max(0.0), values.max().clamp_min(0.0)
    if ranges == "absmax":
        middle = (high + 1) / 2  # the level of zero
        step = (torch.maximum(largest, -least) * MARGIN / (middle - 1)).clamp_min(TINY)
        return step, -middle * step
    if ranges != "least_squares":
        step = ((largest - least) * MARGIN / high).clamp_min(TINY)
        return step, -(-least / step).round() * step
    sample = values
    if len(values) > SAMPLE:  # drawn, because any stride could meet the same features again and again
        drawn = torch.randint(len(values), (SAMPLE,), generator=torch.Generator().manual_seed(0))
        sample = values[drawn.to(values.device)]
    best: tuple[float, Tensor, Tensor] | None = None
    for below in ENDS:
        for above in ENDS:
            step = ((largest * above - least * below) / high).clamp_min(TINY)
            offset = least * below
            error = float((((sample - offset) / step).clamp(0, high).round() * step + offset - sample).square().sum())
            if best is None or error < best[0]:
                best = error, step, offset
    assert best is not None
    return best[1], best[2]
