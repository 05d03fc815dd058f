"""The equations of docs/derivations/parallel.md on finding the largest batch, by counting trials."""

from __future__ import annotations

import math


class Tries:
    """Whether so many steps fit; counts how often it was asked, and is asked nothing twice."""

    def __init__(self, answer: int) -> None:
        self.answer = answer
        self.asked: list[int] = []

    def fits(self, steps: int) -> bool:
        assert steps not in self.asked
        self.asked.append(steps)
        return steps <= self.answer

    def between(self, fits: int, fails: int) -> int:
        while fails - fits > 1:
            middle = (fits + fails) // 2
            fits, fails = (middle, fails) if self.fits(middle) else (fits, middle)
        return fits

    def doubling(self) -> int:
        steps = 1
        while self.fits(steps):
            steps *= 2
        return self.between(steps // 2, steps)

    def around(self, estimate: int) -> int:
        sign = 1 if self.fits(estimate) else -1
        away, last = 1, estimate
        while self.fits(estimate + sign * away) is (sign > 0):
            last, away = estimate + sign * away, 2 * away
        edge = estimate + sign * away
        return self.between(min(last, edge), max(last, edge))


def test_equation_46_trials_by_doubling() -> None:
    for answer in range(1, 600):
        tries = Tries(answer)
        assert tries.doubling() == answer
        assert len(tries.asked) == 2 * math.floor(math.log2(answer)) + 2


def test_equation_47_trials_around_an_estimate() -> None:
    reached = set()
    for off in range(-300, 300):
        tries = Tries(1000)
        assert tries.around(1000 + off) == 1000
        bound = 2 * math.floor(math.log2(abs(off))) + 3 if off else 2
        assert len(tries.asked) <= bound
        reached.add(bound - len(tries.asked))
    assert 0 in reached
    assert len(tries.asked) < 2 * math.floor(math.log2(1000)) + 2
