"""The history of a long series in a table cell: as ``spark`` draws it, thinned so that no peak is lost.

Made as text at once, without a template: an archive has thousands of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from archbench.reports.charts.spark import HEIGHT, MARGIN, WIDTH

COLUMNS = 60  # each shows its least and its largest value: at most 120 points


def dense(values: NDArray[np.float64], label: str, steps: Sequence[int]) -> Markup:
    """The finite values over their positions, with the positions of steps marked; empty below two values."""
    where = np.flatnonzero(np.isfinite(values))
    if len(where) < 2:
        return Markup("")
    kept = where[thinned(values[where])]
    x = MARGIN + (WIDTH - 2 * MARGIN) * kept / (len(values) - 1)
    held = values[kept]
    low, high = held.min(), held.max()
    share = (held - low) / (high - low) if high > low else np.full(len(held), 0.5)
    y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * share
    points = ("%.0f,%.1f " * len(kept)) % tuple(np.column_stack((x, y)).ravel().tolist())
    marks = "".join(
        f'<line class="step" x1="{at:.0f}" x2="{at:.0f}" y1="0" y2="{HEIGHT}"/>'
        for at in (MARGIN + (WIDTH - 2 * MARGIN) * (position - 0.5) / (len(values) - 1) for position in steps)
    )
    head = f'<svg class="spark" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
    return Markup(f'{head}<polyline points="{points}"/>{marks}</svg>')


def thinned(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Ascending positions of the values to draw: all of them, or the least and the largest of each column."""
    count = len(values)
    if count <= 2 * COLUMNS:
        return np.arange(count)
    size = -(-count // COLUMNS)
    full = count // size
    grid = values[: full * size].reshape(full, size)
    starts = np.arange(full) * size
    rest = values[full * size :]
    last = [full * size + rest.argmin(), full * size + rest.argmax()] if len(rest) else []
    kept = np.concatenate((starts + grid.argmin(axis=1), starts + grid.argmax(axis=1), np.array(last, dtype=np.int64)))
    kept.sort()
    return kept
