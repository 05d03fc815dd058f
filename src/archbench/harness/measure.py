"""One cell from start to end: build, gate, protocol, gate again, physics, meters, record.

Whatever happens becomes a status with a reason; only a bug of ours escapes as an exception.
"""

from __future__ import annotations

import contextlib
import importlib
import random
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from archbench.cells import Ceiling, Cell, Energy, Metric, Scalar, Status
from archbench.checks import Wrong
from archbench.discovery import Loaded, load_contender, track_modules
from archbench.hardware.load import Watch
from archbench.hardware.meters import peak_device_bytes, peak_host_bytes
from archbench.harness import trace
from archbench.harness.energy import energy_of
from archbench.harness.gate import Examiner
from archbench.harness.neighbours import crowding, wait_for_quiet
from archbench.harness.physics import IMPOSSIBLE_ABOVE, floor
from archbench.harness.protocols import PROTOCOLS, STUDIES, Findings, Setting
from archbench.harness.seal import Seal
from archbench.harness.study import NONE, Study
from archbench.harness.survey import Description
from archbench.reasons import first_line, short, told
from archbench.track import Call, Failed, Place, Track, Unavailable

RETRY_SHARE = 0.25  # of a cell's deadline: what took longer is not measured twice
_OUT_OF_MEMORY = ("OutOfMemoryError", "can't allocate memory", "out of memory", "bad_alloc")


@dataclass(frozen=True)
class Bench:
    """What all cells of a run share: the place, its ceilings, its last-level cache."""

    place: Place
    ceilings: Sequence[Ceiling] = ()
    cache_bytes: int = 0
    forced: str = ""  # what stood in the way of measuring and was overruled


class Refused(Exception):
    """A cell that ends here with a status; the message is the reason."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = short(reason)


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def availability(contender: Loaded | Description, place: Place) -> tuple[Status, str]:
    """Whether a contender can be asked at all on this place, before any case is looked at."""
    if contender.status != "ok":
        return contender.status, contender.reason
    wanted = contender.device
    if wanted is not None and wanted != place.device:
        return "unsupported", f"needs {'CUDA' if wanted == 'cuda' else 'a CPU host'}"
    return "ok", ""


def _is_out_of_memory(error: BaseException) -> bool:
    text = told(error)
    return isinstance(error, MemoryError) or any(mark in text for mark in _OUT_OF_MEMORY)


def _last_frame(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    name = frames[-1].filename.replace("\\", "/").rsplit("/", 1)[-1]
    return f" ({name}:{frames[-1].lineno})"


def settle(action: Callable[[], Any]) -> Any:
    """Run foreign code; turn everything it can raise into ``Refused``."""
    try:
        return action()
    except Refused:
        raise
    except Wrong as error:
        raise Refused("wrong", str(error)) from error
    except Unavailable as error:
        raise Refused("unsupported", str(error)) from error
    except Failed as error:
        raise Refused(error.status, str(error)) from error
    except Exception as error:
        if _is_out_of_memory(error):
            raise Refused("oom", f"out of memory: {first_line(error)}") from error
        raise Refused("crashed", told(error) + _last_frame(error)) from error


def examiner(track: Track[Any], case: Any, loaded: Loaded, place: Place) -> Examiner:
    """Build a contender for a case. Raises Refused."""
    status, reason = availability(loaded, place)
    if status != "ok" or loaded.entry is None:
        raise Refused(status, reason)
    entry = loaded.entry
    call: Call = settle(lambda: entry.build(case))
    if not callable(call):
        raise Refused("crashed", f"build() returned a {type(call).__name__}, not a call")
    work: Call = settle(lambda: track.workload(case, call))
    judging: Any = work if work is not call and hasattr(type(work), "judge") else None
    return Examiner(track, case, entry, work, place.device, loaded.contender, judging)


def preload(track: Track[Any]) -> None:
    """Import what the track's cells need anyway; a package that is missing is the contender's to report."""
    for name in track.preload:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def use_threads(case: Any, place: Place) -> None:
    """Set torch's thread count to the case's, where torch is loaded."""
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(case.threads or place.cores)


def check_cell(track: Track[Any], case: Any, contender: str, place: Place, seed: int | None = None) -> float:
    """The gate alone: relative error of a contender on a case. Raises Refused."""
    preload(track)
    use_threads(case, place)
    asked = examiner(track, case, load_contender(track.name, contender), place)
    number = secrets.randbelow(1 << 30) if seed is None else seed
    error: float = settle(lambda: asked.examine(number))
    return error


def measure_cell(track: Track[Any], case: Any, contender: str, bench: Bench) -> Cell:
    """Measure one cell in this process. Never raises for what a contender does."""
    started, clock = utc_now(), time.monotonic()
    host: dict[str, Scalar] = {"forced": bench.forced} if bench.forced else {}

    def cell(status: Status, reason: str = "", **found: Any) -> Cell:
        return Cell(
            track=track.name,
            case=case.slug,
            contender=contender,
            baseline=track.baseline,
            status=status,
            reason=reason,
            started=started,
            seconds=round(time.monotonic() - clock, 3),
            host=host,
            **found,
        )

    try:
        found, study, energy = _measure(track, case, contender, bench, host)
    except Refused as refused:
        return cell(refused.status, refused.reason)
    entry = load_contender(track.name, contender).entry
    # The case's operations are those of the track's question: they bind nobody who answers another one.
    comparable = entry is not None and entry.differs is None
    limit = floor(case, bench.ceilings, bench.cache_bytes, track.rereads(case)) if comparable else None
    fraction = limit.seconds / (found.latency_s * track.items(case)) if limit else None
    if limit and fraction and fraction > IMPOSSIBLE_ABOVE:
        reason = f"{fraction:.0%} of the measured {limit.kind} ceiling: no number is given"
        return cell("impossible", reason, duel=None)
    throttle = host.get("throttle")
    if throttle:
        return cell("throttled", f"the machine throttled while it was measured: {throttle}")
    return cell(
        "ok",
        crowding(host, bench.place),
        metrics=found.metrics | study.metrics,
        control=found.control,
        duel=found.duel,
        series=found.series | study.series,
        samples=study.samples,
        spans=study.spans,
        data=study.data or track.data(case),
        limit_fraction=fraction,
        limit_kind=limit.kind if limit else None,
        energy_trust=energy.trust if energy else None,
    )


def _rival(track: Track[Any], case: Any, contender: str, place: Place, seed: int) -> Examiner:
    """The baseline, right at this case. Raises Refused."""
    try:
        rival = examiner(track, case, load_contender(track.name, track.baseline), place)
        if contender != track.baseline:
            settle(lambda: rival.ask_once(seed))
    except Refused as refused:
        if contender == track.baseline:
            raise
        # One that ended this time may not the next: that is no want of this host, and the same end for the cell.
        status: Status = refused.status if refused.status in ("crashed", "timeout", "oom") else "unsupported"
        raise Refused(status, f"the baseline {track.baseline} is {refused.status}: {refused.reason}") from refused
    return rival


def _watched(track: Track[Any], setting: Setting) -> tuple[Findings, dict[str, Scalar]]:
    """What the track's protocol finds, and what else happened meanwhile. Raises Refused."""
    watch = Watch()
    watch.start()
    try:
        found: Findings = settle(lambda: PROTOCOLS[track.protocol](setting))
    finally:
        seen = watch.stop()
    return found, seen


def _measure(
    track: Track[Any], case: Any, contender: str, bench: Bench, host: dict[str, Scalar]
) -> tuple[Findings, Study, Energy | None]:
    place = bench.place
    preload(track)
    use_threads(case, place)
    seed = secrets.randbelow(1 << 30)
    host["seed"] = seed
    host["threads"] = case.threads or place.cores
    rival = _rival(track, case, contender, place, seed)
    # Before anything of the contender is imported: what it finds here, it must leave here.
    intact = Seal(track_modules().get(track.name, track.name)).check
    asked = examiner(track, case, load_contender(track.name, contender), place)
    use_threads(case, place)  # again: building it may have been what loaded torch
    settle(intact)
    error = settle(lambda: asked.examine(seed))
    settle(intact)
    setting = Setting(asked, rival.work, place, bench.cache_bytes, seed + 10, random.Random(secrets.randbits(64)))
    began = time.monotonic()
    found, seen = _watched(track, setting)
    if crowding(host | seen, place) and time.monotonic() - began < track.timing.deadline_s * RETRY_SHARE:
        wait_for_quiet()
        found, seen = _watched(track, replace(setting, seed=seed + 40))
    host.update(seen)
    error = max(error, found.error, settle(lambda: asked.ask_once(seed + 20)))
    extra = {"error": Metric(value=error, unit="ratio")}
    inputs = track.make_inputs(case, seed + 30, place.device)
    peak = peak_device_bytes if place.device == "cuda" else peak_host_bytes
    # The least of three: what other threads of the process touch meanwhile only ever adds.
    peaks = [float(settle(lambda: peak(lambda: asked.work(*inputs)))) for _ in range(3)]
    extra["peak_bytes"] = Metric(value=min(peaks), unit="B", n=len(peaks))
    items = track.items(case)
    energy: Energy | None = settle(
        lambda: energy_of(lambda: asked.work(*inputs), place.device, found.latency_s * items)
    )
    if energy is not None:
        extra["energy_j"] = Metric(value=energy.joules / items, unit="J")
    study: Study = settle(lambda: STUDIES[track.protocol](asked)) if track.protocol in STUDIES else NONE
    settle(lambda: trace.leave(asked, inputs))
    settle(intact)
    return replace(found, metrics=found.metrics | extra, error=error), study, energy
