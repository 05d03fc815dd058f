"""Training runs: what a track with ``protocol="training"`` gets from its workload.

Such a track asks for two things at once, since speed means nothing without quality. Its contenders build a *factory* of
models, and its ``workload`` turns one into a ``Trainable``: called, it makes one optimizer step on the batch it is
given, and that step is timed against the baseline's like any other call; ``run`` trains a fresh model from start to end
for one seed. A case says how many ``seeds`` it has. The seeds are the same for every contender, so that contenders
compare in pairs of runs, and every error has an interval over them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from archbench.cells import Data
from archbench.track import Case, Device

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
    ``curves``: values over steps by name.
    """

    metrics: Mapping[str, float]
    curves: Mapping[str, Curve] = field(default_factory=dict)


class Trainable(Protocol):
    """A contender at a case of a training track."""

    def __call__(self, *batch: Any) -> Any:
        """One step (forward, backward, optimizer) on a batch of ``Track.make_inputs``; the loss, a scalar."""

    def run(self, seed: int, device: Device) -> Outcome:
        """Train a fresh model. The same seed gives the same run on the same machine."""

    def data(self) -> Data | None:
        """What it is trained on; results on other data never share a row. None: numbers without a source."""
