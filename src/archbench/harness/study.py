"""The long part of a training cell: whole runs, one for each seed, and what they say together.

Every seed's value is kept, so that the board can compare contenders seed by seed. A curve is the mean of the seeds'
curves where all of them have a value; a timeline is that of the first seed that has one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from archbench.cells import Data, Metric, Span
from archbench.checks import Wrong
from archbench.harness.gate import Examiner
from archbench.training import Curve, Outcome, over_seeds


@dataclass(frozen=True)
class Study:
    """What the runs of a cell found."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    samples: dict[str, list[float | None]] = field(default_factory=dict)
    data: Data | None = None
    spans: list[Span] = field(default_factory=list)


NONE = Study()


def train(examiner: Examiner) -> Study:
    """Train the contender once for each seed of the case. Raises Wrong where a number is missing or not finite."""
    work: Any = examiner.work  # of a training track: a Trainable
    if not callable(getattr(work, "run", None)):
        raise TypeError(f"the workload of track {examiner.track.name} makes a {type(work).__name__}, not a Trainable")
    outcomes: list[Outcome] = [work.run(seed, examiner.device) for seed in range(examiner.case.seeds)]
    return summary(outcomes, examiner.track.quality, work.data())


def look(examiner: Examiner) -> Study:
    """What the track's own instruments see of the contender's work: ``work.study()``, an Outcome. Raises Wrong."""
    work: Any = examiner.work
    if not callable(getattr(work, "study", None)):
        raise TypeError(f"the workload of track {examiner.track.name} makes a {type(work).__name__} without a study")
    return summary([work.study()], "")


def summary(outcomes: Sequence[Outcome], quality: str, data: Data | None = None) -> Study:
    """The runs as one. Raises Wrong."""
    names = list(dict.fromkeys(name for outcome in outcomes for name in outcome.metrics))
    if quality and any(quality not in outcome.metrics for outcome in outcomes):
        raise Wrong(f"a training run reports no {quality}")
    samples: dict[str, list[float | None]] = {}
    metrics: dict[str, Metric] = {}
    for name in names:
        values = [outcome.metrics.get(name) for outcome in outcomes]
        known = [float(value) for value in values if value is not None]
        if not all(map(math.isfinite, known)):
            raise Wrong(f"a training run reports {name} as {next(x for x in known if not math.isfinite(x))}")
        samples[name] = [None if value is None else float(value) for value in values]
        metrics[name] = over_seeds(name, known)
    curves = list(dict.fromkeys(name for outcome in outcomes for name in outcome.curves))
    means = {name: mean_curve([o.curves[name] for o in outcomes if name in o.curves]) for name in curves}
    spans = next((list(outcome.spans) for outcome in outcomes if outcome.spans), [])
    return Study(metrics, {name: curve for name, curve in means.items() if curve}, samples, data, spans)


def mean_curve(curves: Sequence[Curve]) -> list[tuple[float, float]]:
    """The mean at every step that all curves have; values that are not finite end a curve."""
    finite = [dict(_finite(curve)) for curve in curves]
    shared = [step for step, _ in _finite(curves[0]) if all(step in curve for curve in finite)]
    return [(float(step), fmean(curve[step] for curve in finite)) for step in shared]


def _finite(curve: Curve) -> list[tuple[float, float]]:
    kept = []
    for step, value in curve:
        if not math.isfinite(value):
            break
        kept.append((step, value))
    return kept
