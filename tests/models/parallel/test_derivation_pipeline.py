"""The equations of docs/derivations/parallel.md on pipelines and on where to cut, by playing schedules through."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode

from archbench.models.parallel import ParallelCase
from archbench.models.parallel._model import language_model

pytestmark = pytest.mark.usefixtures("one_thread")

FORWARD, AGAIN, BACKWARD = "forward", "again", "backward"
Order = list[tuple[str, int]]  # what a stage does, and with which micro-batch
SHAPES = [(stages, parts) for stages in (1, 2, 3, 4) for parts in (1, 2, 3, 4, 8, 9)]


def gpipe(stage: int, stages: int, parts: int) -> Order:
    return [(FORWARD, m) for m in range(parts)] + [(BACKWARD, m) for m in reversed(range(parts))]


def gpipe_again(stage: int, stages: int, parts: int) -> Order:
    """Forgets all micro-batches but the last, which comes back first."""
    order = [(FORWARD, m) for m in range(parts)] + [(BACKWARD, parts - 1)]
    for m in reversed(range(parts - 1)):
        order += [(AGAIN, m), (BACKWARD, m)]
    return order


def one_f_one_b(stage: int, stages: int, parts: int) -> Order:
    ahead = min(stages - stage - 1, parts)
    order = [(FORWARD, m) for m in range(ahead)]
    for m in range(parts - ahead):
        order += [(FORWARD, ahead + m), (BACKWARD, m)]
    return order + [(BACKWARD, m) for m in range(parts - ahead, parts)]


@dataclass(frozen=True)
class Played:
    """A schedule from start to end."""

    seconds: Fraction
    busy: Fraction  # of all stages together
    stages: int

    @property
    def idle(self) -> Fraction:
        return 1 - self.busy / (self.stages * self.seconds)


def play(
    order: Callable[[int, int, int], Order],
    parts: int,
    costs: list[int],
    backward: int = 2,
    transfer: int = 0,
) -> Played:
    """Stages work through their orders one thing at a time, as soon as what they need is there.

    ``costs`` forward by stage, ``backward`` times as much back; a forward that is done again needs nothing. A link
    between two stages carries one message at a time in each direction.
    """
    stages = len(costs)
    arrived: dict[tuple[str, int, int], Fraction] = {}
    clocks, links = (
        [Fraction(0)] * stages,
        dict.fromkeys(itertools.product((FORWARD, BACKWARD), range(stages)), Fraction(0)),
    )
    waiting = [order(stage, stages, parts) for stage in range(stages)]
    busy = Fraction(0)
    while any(waiting):
        moved = False
        for stage in range(stages):
            while waiting[stage]:
                what, part = waiting[stage][0]
                needs_none = what == AGAIN or stage == (0 if what == FORWARD else stages - 1)
                if not needs_none and (what, stage, part) not in arrived:
                    break
                there = Fraction(0) if needs_none else arrived[what, stage, part]
                takes = costs[stage] * (backward if what == BACKWARD else 1)
                clocks[stage] = max(clocks[stage], there) + takes
                busy += takes
                if what != AGAIN:
                    neighbour = stage + (1 if what == FORWARD else -1)
                    links[what, stage] = max(links[what, stage], clocks[stage]) + transfer
                    arrived[what, neighbour, part] = links[what, stage]
                waiting[stage].pop(0)
                moved = True
        assert moved, "nobody can go on"
    return Played(max(clocks), busy, stages)


def drawn(count: int) -> list[tuple[list[int], int, int]]:
    """Stages that cost differently, micro-batches, the backward over the forward."""
    chance = random.Random(0)
    return [
        ([chance.randint(1, 9) for _ in range(chance.randint(1, 5))], chance.randint(1, 9), chance.randint(1, 4))
        for _ in range(count)
    ]


def test_equation_18_time_of_gpipe() -> None:
    for stages, parts in SHAPES:
        for t_f, c in ((1, 2), (3, 1), (2, 3)):
            assert play(gpipe, parts, [t_f] * stages, c).seconds == (parts + stages - 1) * (t_f + c * t_f)


def test_equation_19_the_bubble() -> None:
    for stages, parts in SHAPES:
        for c in (1, 2, 3):
            assert play(gpipe, parts, [5] * stages, c).idle == Fraction(stages - 1, parts + stages - 1)


def test_equation_20_time_of_unequal_stages() -> None:
    for costs, parts, c in drawn(300):
        assert play(gpipe, parts, costs, c).seconds == (1 + c) * (sum(costs) + (parts - 1) * max(costs))


def test_equation_21_idle_share_of_unequal_stages() -> None:
    for costs, parts, c in drawn(300):
        passed = sum(costs) + (parts - 1) * max(costs)
        assert play(gpipe, parts, costs, c).idle == 1 - Fraction(parts * sum(costs), len(costs) * passed)


def test_equation_22_what_more_micro_batches_do_not_cure() -> None:
    for costs in ([3, 5], [4, 4, 6, 2], [7, 7]):
        limit = 1 - Fraction(sum(costs), len(costs) * max(costs))
        idle = [play(gpipe, parts, costs).idle for parts in (1, 10, 100, 1000)]
        assert idle == sorted(idle, reverse=True)
        assert limit < idle[-1] < limit + Fraction(1, 200)


def test_equation_23_work_of_doing_the_forward_again() -> None:
    """Operations as torch counts them, matrix products alone and the blocks of the model."""

    def counted(work: Callable[[], Any]) -> int:
        with FlopCounterMode(display=False) as counter:
            work()
        return int(counter.get_total_flops())

    case = ParallelCase(layers=1, dim=32, length=16, batch=4)
    x = torch.randn(4, 16, 32, requires_grad=True)
    for part in (torch.nn.Linear(32, 64), language_model(case)[1]):
        forward = counted(lambda part=part: part(x))
        both = counted(lambda part=part: part(x).sum().backward())
        with set_checkpoint_early_stop(False):
            again = counted(lambda part=part: checkpoint(part, x, use_reentrant=False).sum().backward())
        stopped = counted(lambda part=part: checkpoint(part, x, use_reentrant=False).sum().backward())
        c = Fraction(both - forward, forward)
        assert Fraction(again, both) == (2 + c) / (1 + c)
        assert stopped < again, "the last product is not needed"
        assert c == 2 if isinstance(part, torch.nn.Linear) else 2 <= c < 2.1  # attention does five for two


def test_equation_24_the_forward_again_while_waiting() -> None:
    for stages, parts in SHAPES:
        for c in (1, 2, 3):
            again, kept = play(gpipe_again, parts, [5] * stages, c), play(gpipe, parts, [5] * stages, c)
            assert again.idle == (stages - 1) / (parts + stages - 1 + Fraction(parts - 1, 1 + c))
            assert again.busy - kept.busy == stages * (parts - 1) * 5
            assert stages * again.seconds - again.busy == stages * kept.seconds - kept.busy, "idle as long"
            late = play(gpipe, parts, [5] * stages, c + 1)  # all of them, and only when the gradient has come
            assert late.idle == kept.idle
            assert again.seconds < late.seconds


def test_equation_25_one_forward_one_backward_takes_as_long() -> None:
    for stages, parts in SHAPES:
        for t_f, c in ((1, 2), (3, 1), (2, 3)):
            assert play(one_f_one_b, parts, [t_f] * stages, c).seconds == (parts + stages - 1) * (t_f + c * t_f)
    pairs = [(play(one_f_one_b, m, costs, c), play(gpipe, m, costs, c)) for costs, m, c in drawn(300)]
    assert all(mine.seconds <= theirs.seconds for mine, theirs in pairs)
    assert sum(mine.seconds < theirs.seconds for mine, theirs in pairs) > 50


def test_equation_26_transfers_in_gpipe() -> None:
    for stages, parts in SHAPES:
        for x in (1, 4, 10):
            found = play(gpipe, parts, [10] * stages, transfer=x).seconds
            assert found == (parts + stages - 1) * 30 + 2 * (stages - 1) * x


def test_equation_27_transfers_in_one_forward_one_backward() -> None:
    for stages in (2, 3, 4, 5):
        for x in (1, 4, 10):
            short, long = (play(one_f_one_b, m * stages, [10] * stages, transfer=x).seconds for m in (4, 9))
            assert (long - short) / (5 * stages) == 30 + Fraction(2 * (stages - 1), stages) * x
            assert play(gpipe, 9 * stages, [10] * stages, transfer=x).seconds < long


def test_equation_28_bytes_across_a_cut() -> None:
    for layers, parts in ((2, 2), (5, 4)):
        case = ParallelCase(layers=layers, dim=32, length=15, batch=8, micro_batches=parts)
        model = list(language_model(case))
        moved = 0
        for tokens in torch.randint(0, case.vocabulary, (8, 15)).chunk(parts):
            sent = tokens
            for part in model[:2]:
                sent = part(sent)
            received = sent.detach().requires_grad_()
            out = received
            for part in model[2:]:
                out = part(out)
            out.sum().backward()
            assert received.grad is not None
            sent.backward(received.grad)
            moved += sum(tensor.numel() * tensor.element_size() for tensor in (received, received.grad))
        assert moved == 2 * 8 * 15 * 32 * 4


def least_maximum(costs: list[int], parts: int) -> int:
    """By equation (29)."""
    sums = list(itertools.accumulate(costs, initial=0))
    best = sums
    for _ in range(parts - 1):
        best = [0] + [min(max(best[i], sums[j] - sums[i]) for i in range(j)) for j in range(1, len(sums))]
    return best[-1]


def every_cut(costs: list[int], parts: int) -> int:
    ends = itertools.combinations(range(1, len(costs)), parts - 1)
    bounds = [(0, *cut, len(costs)) for cut in ends]
    return min(max(sum(costs[a:b]) for a, b in itertools.pairwise(cut)) for cut in bounds)


def layers(count: int) -> list[tuple[list[int], int]]:
    chance = random.Random(1)
    found = []
    for _ in range(count):
        costs = [chance.randint(1, 20) for _ in range(chance.randint(1, 10))]
        found.append((costs, chance.randint(1, len(costs))))
    return found


def test_equation_29_where_to_cut() -> None:
    for costs, parts in layers(300):
        assert least_maximum(costs, parts) == every_cut(costs, parts)


def test_equation_30_how_good_a_cut_can_be() -> None:
    tight = 0
    for costs, parts in layers(300):
        mean, largest, found = Fraction(sum(costs), parts), max(costs), least_maximum(costs, parts)
        assert max(mean, largest) <= found <= mean + largest
        tight += found == max(mean, largest)
        running, part, cut = 0, 0, [0] * parts
        for cost in costs:  # a layer belongs to the part in which it begins
            part = min(parts - 1, int(running / mean))
            cut[part] += cost
            running += cost
        assert found <= max(cut) <= mean + largest
    assert tight > 30


def test_equation_48_sharing_bubble_and_waiting() -> None:
    """Replicas of a pipeline that share the micro-batches and then wait for a sum."""
    for stages, parts in SHAPES:
        for replicas, x in ((1, 0), (2, 7), (3, 40)):
            found = play(gpipe, parts, [10] * stages)
            alone = play(gpipe, parts * replicas, [10 * stages]).seconds
            bubble = Fraction(stages - 1, parts + stages - 1)
            assert found.seconds + x == alone / (stages * replicas * (1 - bubble)) + x
    for costs, parts, c in drawn(100):
        found, alone = play(gpipe, parts, costs, c), play(gpipe, parts, [sum(costs)], c).seconds
        assert found.seconds == alone / (len(costs) * (1 - found.idle))


def test_equation_49_the_cost_of_being_many() -> None:
    for costs, parts, c in drawn(100):
        workers, x = len(costs), 7
        found, alone = play(gpipe, parts, costs, c), play(gpipe, parts, [sum(costs)], c)
        efficiency = alone.seconds / (workers * (found.seconds + x))
        assert 1 / efficiency == 1 / (1 - found.idle) + workers * x / alone.seconds
        assert efficiency < 1
