"""Training runs: what a track with ``protocol="training"`` gets from its workload.

Such a track asks for two things at once, since speed means nothing without quality. Its contenders build a *factory* of
models, and its ``workload`` turns one into a ``Trainable``: called, it makes one optimizer step on the batch it is
given, and that step is timed against the baseline's like any other call; ``run`` trains a fresh model from start to end
for one seed. A case says how many ``seeds`` it has. The seeds are the same for every contender, so that contenders
compare in pairs of runs, and every error has an interval over them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from archbench.cells import Data, Metric, Span
from archbench.stats import mean_interval
from archbench.track import Case, Device

SUFFIXES = {"_s": "s", "_bytes": "B", "_j": "J"}  # a metric that ends so is in that unit

Curve = Sequence[tuple[float, float]]  # (step, value)


class TrainingCase(Case, Protocol):
    """A case of a training track."""

    @property
    def seeds(self) -> int:
        """Runs of one contender; their spread is the interval of its error."""


@dataclass(frozen=True)
class Outcome:
    """One run, finished.

    ``metrics``: finite numbers by name, lower is better: fractions (``test_error``), seconds (``..._s``), bytes
    (``..._bytes``), plain numbers. What a run did not reach (``seconds_to_target_s``) it leaves out.
    ``curves``: values over steps by name. ``spans``: a timeline of one call.
    """

    metrics: Mapping[str, float]
    curves: Mapping[str, Curve] = field(default_factory=dict)
    spans: Sequence[Span] = ()


class Trainable(Protocol):
    """A contender at a case of a training track."""

    def __call__(self, *batch: Any) -> Any:
        """One step (forward, backward, optimizer) on a batch of ``Track.make_inputs``; the loss, a scalar."""

    def run(self, seed: int, device: Device) -> Outcome:
        """Train a fresh model. The same seed gives the same run on the same machine."""

    def data(self) -> Data | None:
        """What it is trained on; results on other data never share a row. None: numbers without a source."""


def unit_of(metric: str) -> str:
    """The unit a metric's name ends with, else "ratio": fractions and plain numbers."""
    return next((unit for end, unit in SUFFIXES.items() if metric.endswith(end)), "ratio")


def over_seeds(name: str, values: Sequence[float]) -> Metric:
    """The runs' values as one number: their mean with Student's interval. One run alone is its own, without one.

    Times and sizes are positive and skewed: theirs is the geometric mean.
    """
    if len(values) == 1:
        return Metric(values[0], unit_of(name))
    if unit_of(name) != "ratio" and min(values) > 0:
        found = mean_interval([math.log(value) for value in values]).exp()
    else:
        found = mean_interval(values)
    return Metric(found.value, unit_of(name), (found.lo, found.hi), found.n)
