"""From a contender's file to its timed call: start the ranks, hand over the tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from archbench.models.parallel import ParallelCase
from archbench.models.parallel._ranks import Ranks
from archbench.training import Outcome


class Training:
    """A contender at a case: calling it trains. Its ranks live as long as it does."""

    def __init__(self, module: str, case: ParallelCase, size: int) -> None:
        self.case = case
        self.ranks = Ranks(module, case, size)

    def __call__(self, tokens: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.ranks.ask("train", tokens)
        return answer

    def study(self) -> Outcome:
        """What the ranks know of themselves."""
        return Outcome(self.ranks.ask("study", within_s=300.0))


def built(module: str, ranks: int | None = None) -> Callable[[ParallelCase], Training]:
    """A contender's ``build``. ``ranks``: how many, where that is not the case's number."""
    return lambda case: Training(module, case, ranks or case.world)
