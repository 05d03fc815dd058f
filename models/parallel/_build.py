"""From a contender's file to its timed call: start the ranks, hand over the tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from archbench.models.parallel import ParallelCase
from archbench.models.parallel._launch.ranks import Ranks
from archbench.training import Outcome


class Training:
    """A contender at a case: calling it trains. Its ranks live as long as it does."""

    def __init__(self, module: str, case: ParallelCase, size: int) -> None:
        self.module, self.case = module, case
        self.ranks = Ranks(module, case, size)

    def __call__(self, tokens: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.ranks.ask("train", tokens)
        return answer

    def study(self) -> Outcome:
        """What the clock does not show: memory, bytes sent, waiting, checkpoints, one worker alone."""
        from archbench.models.parallel._measures.study import study

        return study(self.module, self.case, self.ranks, self._start)

    def trace(self, folder: Path, tokens: Any) -> None:
        """Every rank writes what torch's profiler sees of a call."""
        self.ranks.ask("trace", tokens, str(folder), within_s=300.0)

    def _start(self, module: str, size: int) -> Ranks:
        return Ranks(module, self.case, size)


def built(module: str, ranks: int | None = None) -> Callable[[ParallelCase], Training]:
    """A contender's ``build``. ``ranks``: how many, where that is not the case's number."""
    return lambda case: Training(module, case, ranks or case.world)
