"""From a trainer of the track ``parallel`` to a contender of this one: the timed call, and its searches.

Letters: B sequences of the global batch, M micro-batches, W ranks.
"""

from __future__ import annotations

import importlib
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from archbench.cells import Data
from archbench.models import parallel
from archbench.models.largest_batch import MIB, LargestBatchCase
from archbench.models.largest_batch._journal import Journal, sources
from archbench.models.largest_batch._search import largest, line
from archbench.models.largest_batch._trials import Trial, empty_bytes, trial
from archbench.models.parallel import BACKENDS
from archbench.track import Device, Failed, Unavailable
from archbench.training import Outcome

MOST = 4096  # times the smallest batch: a search that comes so far has no end
REACH = 4
Cut = Literal["ranks", "micro_batches", "nothing"]


class Searching:
    """A contender at a case: calling it trains at the smallest batch, ``run`` searches for the largest."""

    def __init__(self, module: str, cut: Cut, case: LargestBatchCase, training: Any) -> None:
        self.module, self.cut, self.case = module, cut, case
        self.training = training  # of the track parallel, at the smallest batch
        self.size: int = training.ranks.size

    def __call__(self, tokens: Any) -> Any:
        return self.training(tokens)

    def trace(self, folder: Path, tokens: Any) -> None:
        """What torch's profiler sees of the timed call."""
        self.training.trace(folder, tokens)

    def data(self) -> Data | None:
        """Tokens are drawn."""
        return None

    def run(self, seed: int, device: Device) -> Outcome:
        """One search. Raises Failed where a trial ends for want of anything but memory, or nothing fits."""
        began = time.monotonic()
        journal = Journal(self._key())
        empty = self._empty(journal, seed)
        trials: dict[int, Trial] = {}

        def fits(batch: int) -> bool:
            trials[batch] = self._tried(journal, seed, batch)
            return trials[batch].fits

        found = self._largest(fits, trials)
        peaks = {batch: float(t.peak_bytes) for batch, t in sorted(trials.items()) if t.fits}
        metrics = {
            "cap_share_per_sequence": 1 / found,
            "largest_batch": float(found),
            "largest_micro_batch": found / self._pieces(),
            "empty_bytes": float(empty),
            "trials": float(len(trials)),
            "search_s": time.monotonic() - began,
        }
        if self.case.training.batch in peaks:
            metrics["peak_bytes"] = peaks[self.case.training.batch]
        if len(peaks) > 1:
            metrics["sequence_bytes"], metrics["fixed_bytes"] = line(peaks)
        if seed == self.case.seeds - 1:
            journal.remove()
        return Outcome(metrics, {"peak_bytes_over_batch": list(peaks.items())})

    def _largest(self, fits: Callable[[int], bool], trials: dict[int, Trial]) -> int:
        """Sequences. Raises Failed where none fit, or any number of them."""
        case, first = self.case, self.case.training.batch
        if not fits(first):
            found = largest(fits, first // 2, case.step, 0, first)
        elif not fits(2 * first):
            found = largest(fits, first + first // 2, case.step, first, 2 * first)
        else:
            found = self._beyond(fits, trials, first, 2 * first)
        if found == 0:
            raise Failed(
                "oom", f"not even {case.step} sequences fit into {case.cap_mib} MiB: {trials[case.step].reason}"
            )
        return found

    def _beyond(self, fits: Callable[[int], bool], trials: dict[int, Trial], before: int, low: int) -> int:
        """Where both batches fit. A line is trusted so far as ``REACH`` times what it was drawn through."""
        case = self.case
        while low < MOST * case.training.batch:
            slope, fixed = line({batch: trials[batch].peak_bytes for batch in (before, low)})
            far = REACH * low
            guess = min(far, int((case.cap_bytes - fixed) / slope)) if slope > 0 else far
            if guess < far:
                return largest(fits, guess, case.step, low, (MOST + 1) * case.training.batch)
            if not fits(far):
                return largest(fits, (low + far) // 2, case.step, low, far)
            before, low = low, far
        raise Failed("timeout", f"{low} sequences still fit into {case.cap_mib} MiB: the search has no end")

    def _tried(self, journal: Journal, seed: int, batch: int) -> Trial:
        done = journal.known(seed, batch)
        if done is None:
            training = replace(self.case.training, batch=batch, steps=2)
            done = trial(self.module, training, self.size, self.case.cap_bytes, seed)
            journal.add(seed, done)
        return done

    def _empty(self, journal: Journal, seed: int) -> int:
        """What a rank takes without a model. Raises Unavailable where that, or the machine, leaves no room."""
        done = journal.known(seed, 0)
        if done is None:
            done = Trial(0, True, empty_bytes(self.module, self.case.training, self.size))
            journal.add(seed, done)
        on_host = BACKENDS[self.case.training.backend] == "cpu"
        free = psutil.virtual_memory().available
        if on_host and self.size * self.case.cap_bytes > free:
            raise Unavailable(
                f"{self.size} ranks may take {self.case.cap_mib} MiB each, and {free / MIB:.0f} MiB of the machine's "
                "memory are free: it would run out first"
            )
        if done.peak_bytes >= self.case.cap_bytes:
            raise Unavailable(
                f"a rank without a model takes {done.peak_bytes / MIB:.0f} MiB here, the cap is {self.case.cap_mib} MiB"
            )
        return done.peak_bytes

    def _pieces(self) -> int:
        return {"ranks": self.size, "micro_batches": self.case.training.micro_batches, "nothing": 1}[self.cut]

    def _key(self) -> tuple[Any, ...]:
        code = sources(Path(__file__).parent, *map(Path, parallel.__path__))
        return (self.module, self.case, torch.__version__, platform.python_version(), code)


def searched(trainer: str, cut: Cut) -> Callable[[LargestBatchCase], Searching]:
    """A contender's ``build``. ``trainer``: a contender of the track parallel; ``cut``: what divides its batch."""

    def build(case: LargestBatchCase) -> Searching:
        module = f"{parallel.__name__}.{trainer}"
        training = importlib.import_module(module).CONTENDER.build(case.training)
        return Searching(module, cut, case, training)

    return build
