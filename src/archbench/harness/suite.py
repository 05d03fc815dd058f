"""The asv base class: a suite is a subclass with a track's name.

    class Attention(Suite):
        track = "attention"

A track of training runs takes ``TrainingSuite``, which has their quality as one metric more.

asv runs one process per (metric, case, contender). The first metric asked for measures the whole cell and writes
its record; the others read it from the run's file. All metrics are lower-is-better, in SI units.

asv's traps this class is built around: it measures in ``track_*`` methods with our own clock, because asv re-runs
``setup`` before every ``time_*`` call; it returns a float or exactly ``{"samples", "number"}``, because any other
value breaks ``asv publish``; ``version`` is the track's, because asv's default hashes this file; it is abstract, so
that asv does not take the imported base class itself for a suite; params are the same strings on every machine.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from archbench.cells import Cell, Started, decode, encode
from archbench.discovery import load_track
from archbench.harness.configuration import parameters
from archbench.harness.isolate import Died, run_isolated
from archbench.harness.measure import measure_cell, utc_now
from archbench.harness.resume import CUT_OFF_TWICE, LIVES
from archbench.harness.session import (
    Session,
    append,
    begun,
    described,
    find_configuration,
    finished,
    open_run,
    track_note,
)

GRACE_S = (
    120.0  # asv's own limit comes after ours, a file that hangs when it is imported included: ours leaves a reason
)

Samples = dict[str, Any]


class Suite(ABC):
    """asv suite of one track. Subclasses set ``track``; parameters, version and time limit follow from it."""

    param_names: ClassVar[list[str]] = ["case", "contender"]
    params: ClassVar[list[list[str]]]
    version: ClassVar[str]
    timeout: ClassVar[float]

    @property
    @abstractmethod
    def track(self) -> str:
        """Name of the track."""

    def __init_subclass__(cls, *, base: bool = False) -> None:
        super().__init_subclass__()
        if base:
            return
        name: object = cls.track
        if not isinstance(name, str):
            raise TypeError(f"{cls.__name__}.track must be the name of a track, got {name!r}")
        track = load_track(name)
        cls.params = [list(names) for names in parameters(track)]
        cls.version = track.version
        cls.timeout = track.timing.deadline_s + GRACE_S
        if "run_server" in sys.argv:  # asv's fork server: what it imports, no cell has to import again
            for module in track.preload:
                with suppress(ImportError):
                    importlib.import_module(module)

    def setup_cache(self) -> Session:
        """Once per run: detect the machine, measure its ceilings, write the header."""
        # asv tells a benchmark neither its configuration nor its repository: both lie above the suite's own file.
        return open_run(find_configuration(Path(inspect.getfile(type(self))).resolve().parent))

    setup_cache.timeout = 600  # type: ignore[attr-defined]

    def setup(self, session: Session, case: str, contender: str) -> None:
        """Measure the cell, or find it measured. NotImplementedError is asv's "n/a"."""
        track = load_track(str(self.track))
        reason = track.skip(track.case(case), session.bench().place)
        if reason is not None:
            raise NotImplementedError(reason)
        self.cell = self._measured(session, case, contender)
        if self.cell.status == "unsupported":
            raise NotImplementedError(self.cell.reason)

    def track_latency(self, session: Session, case: str, contender: str) -> Samples:
        """Seconds per call, one sample per block."""
        duel = self._numbers().duel
        return {"samples": duel.contender_s, "number": 1} if duel else self._value("latency_s")

    track_latency.unit = "s"  # type: ignore[attr-defined]

    def track_slowdown(self, session: Session, case: str, contender: str) -> Samples:
        """Paired ratio to the baseline, one sample per block."""
        duel = self._numbers().duel
        if duel is None:
            return self._value("slowdown")
        pairs = zip(duel.contender_s, duel.baseline_s, duel.control_s, strict=True)
        return {"samples": [c / (b * a) ** 0.5 for c, b, a in pairs], "number": 1}

    track_slowdown.unit = "ratio"  # type: ignore[attr-defined]

    def track_peak_bytes(self, session: Session, case: str, contender: str) -> Samples:
        """Peak memory of one call above what was held before it."""
        return self._value("peak_bytes")

    track_peak_bytes.unit = "B"  # type: ignore[attr-defined]

    def _numbers(self) -> Cell:
        if self.cell.status != "ok":
            raise RuntimeError(f"{self.cell.status}: {self.cell.reason}")
        return self.cell

    def _value(self, metric: str) -> Samples:
        return {"samples": [self._numbers().metrics[metric].value], "number": 1}

    def _measured(self, session: Session, case: str, contender: str) -> Cell:
        path = Path(session.path)
        track = load_track(str(self.track))
        known = finished(path, track.name, case, contender)
        if known is not None:
            return known
        earlier, now = begun(path, track.name, case, contender, session.opened_at)
        if now or earlier >= LIVES:
            reason = "the process that measured it took ours with it" if now else CUT_OFF_TWICE
            cell = self._dead(case, contender, Died("crashed", reason))
            append(path, cell)
            return cell
        if not described(path, track.name):
            append(path, track_note(track.name, Path(session.derivations)))
        append(path, Started(track=track.name, case=case, contender=contender, baseline=track.baseline))
        answer = run_isolated(
            lambda: encode(measure_cell(track, track.case(case), contender, session.bench())), track.timing.deadline_s
        )
        cell = self._read(answer, case, contender)
        append(path, cell)
        return cell

    def _read(self, answer: bytes | Died, case: str, contender: str) -> Cell:
        if isinstance(answer, Died):
            return self._dead(case, contender, answer)
        try:
            record = decode(answer)
        except msgspec.DecodeError:
            record = None
        if isinstance(record, Cell) and (record.track, record.case, record.contender) == (self.track, case, contender):
            return record
        return self._dead(case, contender, Died("crashed", "its process answered with something that is not its cell"))

    def _dead(self, case: str, contender: str, end: Died) -> Cell:
        track = load_track(str(self.track))
        return Cell(
            track=track.name,
            case=case,
            contender=contender,
            baseline=track.baseline,
            status=end.status,
            reason=end.reason,
            started=utc_now(),
        )


class TrainingSuite(Suite, base=True):
    """asv suite of a training track: the quality of its runs, one sample for each seed."""

    def track_quality(self, session: Session, case: str, contender: str) -> Samples:
        """The track's quality metric (a test error), one sample a seed; lower is better."""
        cell = self._numbers()
        return {"samples": cell.samples[load_track(str(self.track)).quality], "number": 1}

    track_quality.unit = "ratio"  # type: ignore[attr-defined]
