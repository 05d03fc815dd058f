"""A track small enough to see through: double the input. Contenders are passed in, honest or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from archbench.cells import Ceiling, Cell, ContenderNote
from archbench.checks import Tolerance, close_to
from archbench.discovery import Loaded
from archbench.harness import measure
from archbench.track import Contender, Device, Place, Timing, Track

PLACE = Place("cpu", cores=1, memory_bytes=1 << 30)


@dataclass(frozen=True)
class ToyCase:
    size: int = 2000
    work: float | None = None

    slug = property(lambda self: f"n{self.size}")
    axes = property(lambda self: {"size": self.size})
    dtype = "fp64"
    threads = None

    def flops(self) -> float | None:
        return self.work

    def bytes_moved(self) -> float | None:
        return None


def inputs(case: ToyCase, seed: int, device: Device) -> tuple[Any, ...]:
    return (np.random.default_rng(seed).normal(size=case.size),)


TRACK: Track[ToyCase] = Track(
    name="toy",
    question="Which doubles best?",
    version="1",
    baseline="honest",
    test_cases=(ToyCase(10),),
    bench_cases=(ToyCase(),),
    make_inputs=inputs,
    gate=close_to(lambda case, x: 2 * x, lambda case: Tolerance(1e-12, 1e-12, "doubling is exact")),
    timing=Timing(budget_s=0.05, min_sample_s=1e-5),
)


def honest(x: Any) -> Any:
    return 2 * x


def measured(
    monkeypatch: pytest.MonkeyPatch,
    build: Callable[[ToyCase], Callable[..., Any]],
    *,
    case: ToyCase | None = None,
    ceilings: tuple[Ceiling, ...] = (),
    **options: Any,
) -> Cell:
    """The cell of a contender that is not in any file."""
    entries = {
        "honest": Contender(build=lambda case: honest),
        "challenger": Contender(build=build, **options),
    }

    def load(track: str, contender: str) -> Loaded:
        return Loaded(track, contender, "toy", entries[contender], "ok", "", ContenderNote())

    monkeypatch.setattr(measure, "load_contender", load)
    bench = measure.Bench(PLACE, ceilings, cache_bytes=1 << 16)
    return measure.measure_cell(TRACK, case or ToyCase(), "challenger", bench)
