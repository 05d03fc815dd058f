"""The equations of docs/derivations/parallel.md on the wire, by counting in simulated ranks and links."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest

ALPHA, BETA = Fraction(1, 20_000), Fraction(10**9)  # seconds of a message, bytes a second
BYTES = 4  # of a number
SIZES = (2, 3, 4, 5, 8)
POWERS = (2, 4, 8, 16)


class Network:
    """Ranks with numbers of their own that send in rounds; counts bytes by rank and seconds."""

    def __init__(self, ranks: int, numbers: int) -> None:
        self.values = np.random.default_rng(ranks).integers(-99, 99, (ranks, numbers)).astype(float)
        self.want = self.values.sum(0)
        self.sent = [0] * ranks
        self.seconds = Fraction(0)
        self.ranks = ranks

    def round(self, messages: list[tuple[int, int, slice]], *, adds: bool) -> None:
        """(from, to, which numbers), all at once: a rank sends one message and receives one."""
        for side in (0, 1):
            assert len({message[side] for message in messages}) == len(messages)
        before = self.values.copy()
        for source, target, part in messages:
            self.values[target, part] = before[source, part] + (before[target, part] if adds else 0)
            self.sent[source] += before[source, part].size * BYTES
        self.seconds += max(ALPHA + before[0, part].size * BYTES / BETA for _, _, part in messages)

    def summed(self) -> bool:
        return all(np.array_equal(own, self.want) for own in self.values)


def chunk(index: int, ranks: int, numbers: int) -> slice:
    size = numbers // ranks
    return slice(index % ranks * size, (index % ranks + 1) * size)


def ring(ranks: int, numbers: int) -> Network:
    network = Network(ranks, numbers)
    for half, adds in ((0, True), (1, False)):
        for step in range(ranks - 1):
            parts = [(r, (r + 1) % ranks, chunk(r + half - step, ranks, numbers)) for r in range(ranks)]
            network.round(parts, adds=adds)
    return network


def halving(ranks: int, numbers: int) -> Network:
    network = Network(ranks, numbers)
    own, taken = [slice(0, numbers)] * ranks, []
    distance = ranks // 2
    while distance:
        messages = []
        for r in range(ranks):
            middle = (own[r].start + own[r].stop) // 2
            low, high = slice(own[r].start, middle), slice(middle, own[r].stop)
            keeps, gives = (high, low) if r & distance else (low, high)
            messages.append((r, r ^ distance, gives))
            own[r] = keeps
        network.round(messages, adds=True)
        taken.append(distance)
        distance //= 2
    for distance in reversed(taken):
        network.round([(r, r ^ distance, own[r]) for r in range(ranks)], adds=False)
        pairs = [(own[r], own[r ^ distance]) for r in range(ranks)]
        own = [slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in pairs]
    return network


def tree(ranks: int, numbers: int) -> Network:
    network, everything = Network(ranks, numbers), slice(0, numbers)
    distances = [1 << i for i in range(ranks.bit_length() - 1)]
    for distance in distances:
        messages = [(r + distance, r, everything) for r in range(0, ranks, 2 * distance)]
        network.round(messages, adds=True)
    for distance in reversed(distances):
        network.round([(r, r + distance, everything) for r in range(0, ranks, 2 * distance)], adds=False)
    return network


def test_equation_5_a_chunk_collects_what_it_visits() -> None:
    for ranks in SIZES:
        network = Network(ranks, ranks)
        first = network.values.copy()
        for step in range(1, ranks):
            network.round([(r, (r + 1) % ranks, chunk(r - step + 1, ranks, ranks)) for r in range(ranks)], adds=True)
            for c in range(ranks):
                visited = [(c + t) % ranks for t in range(step + 1)]
                assert network.values[(c + step) % ranks, c] == first[visited, c].sum()
        assert all(network.values[(c - 1) % ranks, c] == network.want[c] for c in range(ranks))


def test_equation_6_bytes_of_a_ring() -> None:
    for ranks in SIZES:
        network = ring(ranks, 7 * ranks)
        assert network.summed()
        assert set(network.sent) == {2 * (ranks - 1) * 7 * BYTES}
        assert network.sent[0] == Fraction(2 * (ranks - 1), ranks) * 7 * ranks * BYTES


def test_equation_7_seconds_of_a_ring() -> None:
    for ranks in SIZES:
        numbers = 1000 * ranks
        assert ring(ranks, numbers).seconds == 2 * (ranks - 1) * (ALPHA + numbers * BYTES / (ranks * BETA))


def fewest_transfers(ranks: int) -> int:
    """Of one number, until every rank knows about all: every order of messages is tried, breadth first.

    A message tells all its sender knows, which is more than a sum can, so no sum takes fewer.
    """
    start = tuple(1 << r for r in range(ranks))
    everything = (1 << ranks) - 1
    seen, waiting = {start}, deque([(start, 0)])
    while waiting:
        known, count = waiting.popleft()
        if all(one == everything for one in known):
            return count
        for source in range(ranks):
            for target in range(ranks):
                after = (*known[:target], known[target] | known[source], *known[target + 1 :])
                if after not in seen:
                    seen.add(after)
                    waiting.append((after, count + 1))
    raise AssertionError("some order reaches everybody")


def test_equation_8_no_sum_takes_fewer_transfers() -> None:
    for ranks in (2, 3, 4):
        assert fewest_transfers(ranks) == 2 * (ranks - 1)
        assert sum(ring(ranks, ranks).sent) == fewest_transfers(ranks) * ranks * BYTES, "the ring meets the bound"


def test_equation_9_bytes_of_halving_and_doubling() -> None:
    for ranks in POWERS:
        network = halving(ranks, 7 * ranks)
        assert network.summed()
        series = sum(Fraction(7 * ranks * BYTES, 2**i) for i in range(1, ranks.bit_length()))
        assert set(network.sent) == {2 * series} == {2 * Fraction(ranks - 1, ranks) * 7 * ranks * BYTES}


def test_equation_10_seconds_of_halving_and_doubling() -> None:
    for ranks in POWERS:
        numbers = 1000 * ranks
        moved = Fraction(ranks - 1, ranks) * numbers * BYTES / BETA
        assert halving(ranks, numbers).seconds == 2 * ALPHA * (ranks.bit_length() - 1) + 2 * moved
    assert halving(2, 2000).seconds == ring(2, 2000).seconds


def test_equation_11_where_the_ring_overtakes_a_tree() -> None:
    for ranks in (4, 8, 16):
        assert tree(ranks, ranks).summed()
        rounds = ranks.bit_length() - 1
        edge = ALPHA * BETA * (ranks - 1 - rounds) / (rounds - 1 + Fraction(1, ranks)) / BYTES
        below, above = (ranks * (math.floor(edge / ranks) + more) for more in (0, 1))
        assert ring(ranks, below).seconds >= tree(ranks, below).seconds
        assert ring(ranks, above).seconds < tree(ranks, above).seconds
    assert ring(2, 2).seconds < tree(2, 2).seconds, "two ranks: from the first byte on"


def in_turn(ready: Sequence[Fraction | int], takes: Fraction | int) -> list[Fraction]:
    """When each job of a link is done that begins when it is ready and the one before is done."""
    done, now = [], Fraction(0)
    for moment in ready:
        now = max(now, moment) + takes
        done.append(now)
    return done


def test_equation_12_buckets_behind_the_backward() -> None:
    for buckets in (1, 2, 5, 40):
        for b, e in ((10, 1), (10, 10), (10, 13), (3, 40)):
            computed = [b * (i + 1) for i in range(buckets)]
            exposed = in_turn(computed, e)[-1] - computed[-1]
            assert exposed == e + (buckets - 1) * max(0, e - b)
    parts = [in_turn([600 // n * (i + 1) for i in range(n)], 300 // n)[-1] - 600 for n in (1, 2, 10, 100)]
    assert parts == [300, 150, 30, 3], "smaller buckets expose less"


class Sharded:
    """A rank that walks through units it owns a share of; counts bytes it sends, and bytes it holds."""

    def __init__(self, ranks: int, units: int, size: int, gathered: int = 4, scattered: int = 4) -> None:
        self.size, self.share = size, size // ranks
        self.each_sends = (ranks - 1) * self.share  # numbers of one gather or one scatter, by equation (6)
        self.bytes = (gathered, scattered)
        self.sent = 0
        self.held = self.most = 16 * units * self.share
        self.walk(range(units), backward=False)
        self.walk(range(units - 1, -1, -1), backward=True)

    def hold(self, numbers: int) -> None:
        self.held += numbers * 4
        self.most = max(self.most, self.held)

    def walk(self, order: range, *, backward: bool) -> None:
        self.gather()
        for unit in order:
            if unit != order[-1]:
                self.gather()  # the next one, while this one is used
            if backward:
                self.hold(self.size)  # its whole gradient
                self.sent += self.each_sends * self.bytes[1]
                self.hold(-self.size)
            self.hold(-self.size)

    def gather(self) -> None:
        self.sent += self.each_sends * self.bytes[0]
        self.hold(self.size)


def test_equation_13_bytes_of_sharded_parameters() -> None:
    for ranks in SIZES:
        size, units = 6 * ranks, 5
        found = Sharded(ranks, units, size)
        assert found.sent == 3 * Fraction(ranks - 1, ranks) * units * size * 4
        assert found.sent == Fraction(3, 2) * ring(ranks, units * size).sent[0]


def test_equation_14_bytes_where_the_gather_is_in_bf16() -> None:
    for ranks in SIZES:
        size, units = 6 * ranks, 5
        found = Sharded(ranks, units, size, gathered=2)
        assert found.sent == (2 * 2 + 4) * Fraction(ranks - 1, ranks) * units * size
        assert found.sent / Sharded(ranks, units, size).sent == pytest.approx(8 / 12, rel=1e-12)


def test_equation_15_memory_of_sharded_parameters() -> None:
    for ranks in SIZES:
        size, units = 6 * ranks, 5
        found = Sharded(ranks, units, size)
        assert found.held == 16 * units * size // ranks, "nothing but the share is left"
        assert found.most == 16 * units * size // ranks + 3 * size * 4


def sharded_exposed(units: int, compute: Fraction, transfer: Fraction) -> Fraction:
    """Seconds a rank does not compute in forward and backward, one link, each gather ahead of its use."""
    now = link = Fraction(0)
    for backward in (False, True):
        link = max(link, now) + transfer
        here = link
        for unit in range(units):
            now = max(now, here)
            if unit < units - 1:
                link = max(link, now) + transfer  # the next unit's, while this one is computed
                here = link
            now += compute * (2 if backward else 1)
            if backward:
                link = max(link, now) + transfer  # its gradient, while the next one is computed
    return max(now, link) - 3 * units * compute


def replicas_exposed(units: int, compute: Fraction, transfer: Fraction) -> Fraction:
    """The same where gradients are summed in buckets of a unit, two transfers each."""
    computed = [2 * compute * (unit + 1) for unit in range(units)]
    return in_turn(computed, 2 * transfer)[-1] - computed[-1]


@pytest.mark.parametrize("exposed", [sharded_exposed, replicas_exposed])
def test_equation_16_tokens_that_hide_the_wire(exposed: Callable[[int, Fraction, Fraction], Fraction]) -> None:
    size, rate = 10**6, 10**11
    for ranks in (2, 8):
        enough = Fraction(rate * BYTES, 2 * BETA) * Fraction(ranks - 1, ranks)
        transfer = size * BYTES * Fraction(ranks - 1, ranks) / BETA
        for tokens, hidden in ((enough, True), (2 * enough, True), (enough * Fraction(9, 10), False)):
            compute = 2 * size * tokens / rate
            more = exposed(12, compute, transfer) - exposed(1, compute, transfer)
            assert (more == 0) is hidden, "more units expose no more"
    for rate, each, ranks, beta, said in (
        (4e14, 2, 8, 2e11, 1750), (4e14, 2, 8, 2.5e10, 14_000), (1e11, 4, 2, 1e9, 100)
    ):  # fmt: skip
        assert rate * each / (2 * beta) * (ranks - 1) / ranks == said


def test_equation_17_what_has_nothing_to_hide_behind() -> None:
    transfer = Fraction(1)
    for units in (1, 2, 12):
        for compute in (Fraction(1), Fraction(7, 2)):
            assert sharded_exposed(units, compute, transfer) == 3 * transfer
    assert sharded_exposed(12, Fraction(9, 10), transfer) > 3 * transfer
