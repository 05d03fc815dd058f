"""What came of a training run: curves over updates, and the numbers a track reports.

Plain numbers and lists only, so that a checkpoint can hold it and two runs can be compared with ``==``.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

Curve = list[tuple[float, float]]

ERROR = "test_error"


@dataclass
class History:
    """What came of a run. Curves are ``(updates done, value)``; seconds are of training, without evaluation."""

    curves: dict[str, Curve] = field(default_factory=dict)  # loss, grad_norm, ..., and what evaluate returned
    steps: int = 0  # updates done
    train_s: float = 0.0
    waited_s: float = 0.0  # of train_s, spent waiting for batches
    diverged_at: int | None = None  # the update whose loss (or evaluation) was no longer finite or far above the first
    steps_to_target: int | None = None  # updates at the first evaluation with target_error or less
    seconds_to_target: float | None = None
    events: list[str] = field(default_factory=list)  # what the reader of the numbers should know

    @property
    def diverged(self) -> bool:
        return self.diverged_at is not None

    @property
    def test_error(self) -> float | None:
        """Of the last evaluation; None where the run diverged."""
        return None if self.diverged else self.curves[ERROR][-1][1]

    @property
    def best_test_error(self) -> float:
        return min(value for _, value in self.curves[ERROR])

    @property
    def step_s(self) -> float:
        """Seconds per update: the median over the windows between two log steps."""
        return statistics.median(value for _, value in self.curves["step_s"])

    @property
    def input_bound(self) -> float:
        """Share of the training time spent waiting for batches."""
        return self.waited_s / self.train_s

    def scalars(self) -> dict[str, float]:
        """The numbers of the run by name; what it has not (an error after divergence, a target missed) is left out."""
        values = {
            "test_error": self.test_error,
            "best_test_error": self.best_test_error,
            "train_loss": self.curves["loss"][-1][1],
            "step_s": self.step_s,
            "train_s": self.train_s,
            "input_bound": self.input_bound,
            "steps_to_target": self.steps_to_target,
            "seconds_to_target": self.seconds_to_target,
            "diverged": float(self.diverged),
        }
        return {name: float(value) for name, value in values.items() if value is not None}

    def add(self, name: str, step: int, value: float) -> None:
        """Append a point; a value that is not finite has no place on a curve."""
        if math.isfinite(value):
            self.curves.setdefault(name, []).append((float(step), float(value)))
