"""Schedules of pipelines: what a stage does in which order, that no order waits for itself, and what a bubble is."""

from __future__ import annotations

from collections import Counter

import pytest

pytest.importorskip("torch", reason="schedules are of trainers, which need torch")

from hypothesis import given
from hypothesis import strategies as st

from archbench.models.parallel._trainer import Mark
from archbench.models.parallel._ways.schedule import COMPUTE, Slot, bubble, bubble_formula, gpipe
from archbench.models.parallel._ways.timeline import with_waits

SIZES = [(stages, parts) for stages in range(1, 7) for parts in range(1, 7)]


def played(orders: list[list[Slot]], cost: dict[str, float]) -> list[list[Mark]]:
    """When each stage does its slots, where nothing has to be sent. Raises AssertionError where all wait."""
    done: dict[tuple[str, int, int], float] = {}
    marks: list[list[Mark]] = [[] for _ in orders]
    free = [0.0] * len(orders)
    while any(len(made) < len(order) for made, order in zip(marks, orders, strict=True)):
        went_on = False
        for stage, order in enumerate(orders):
            while len(marks[stage]) < len(order):
                slot = order[len(marks[stage])]
                needs = []
                if slot.what == "forward" and stage > 0:
                    needs.append(("forward", stage - 1, slot.part))
                if slot.what == "backward":
                    needs.append(("forward", stage, slot.part))
                    if stage < len(orders) - 1:
                        needs.append(("backward", stage + 1, slot.part))
                if not all(need in done for need in needs):
                    break
                start = max([free[stage], *(done[need] for need in needs)])
                free[stage] = done[slot.what, stage, slot.part] = start + cost[slot.what]
                marks[stage].append(Mark(slot.what, start, free[stage], slot.part))
                went_on = True
        assert went_on, f"every stage waits for another, after {[len(made) for made in marks]} slots"
    return marks


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("parts", range(1, 7))
def test_every_micro_batch_goes_forward_once_and_then_back_once(parts: int, recompute: bool) -> None:
    order = gpipe(parts, recompute=recompute)
    for part in range(parts):
        what = [slot.what for slot in order if slot.part == part]
        again = recompute and part != parts - 1
        assert what == ["forward", *(["recompute"] if again else []), "backward"]
    forward = [slot.part for slot in order if slot.what == "forward"]
    assert forward == sorted(forward)
    assert all(slot.what == "forward" for slot in order[:parts]), "it fills before it drains"


@pytest.mark.parametrize("parts", range(1, 7))
def test_a_backward_has_what_it_needs_and_only_one_micro_batch_is_made_again_at_a_time(parts: int) -> None:
    for recompute, most in ((False, parts), (True, 1)):
        alive: set[int] = set()
        largest = 0
        for slot in gpipe(parts, recompute=recompute):
            if slot.what == "backward":
                alive.remove(slot.part)
            elif slot.keeps:
                alive.add(slot.part)
            largest = max(largest, len(alive))
        assert not alive
        assert largest == most


@pytest.mark.parametrize(("stages", "parts"), SIZES)
def test_no_stage_waits_for_ever_and_equal_slots_give_the_formula(stages: int, parts: int) -> None:
    marks = played([gpipe(parts)] * stages, {"forward": 1.0, "backward": 2.0})
    assert bubble(marks) == pytest.approx(bubble_formula(stages, parts), abs=1e-12)


@pytest.mark.parametrize(("stages", "parts"), SIZES)
def test_what_is_made_again_fills_a_part_of_the_bubble(stages: int, parts: int) -> None:
    marks = played([gpipe(parts, recompute=True)] * stages, {"forward": 1.0, "recompute": 1.0, "backward": 2.0})
    assert bubble(marks) <= bubble_formula(stages, parts) + 1e-12
    assert sum(Counter(mark.what for mark in made)["recompute"] for made in marks) == stages * (parts - 1)


def test_what_is_wrong_with_a_schedule_shows_as_waiting_for_ever() -> None:
    good = gpipe(2)
    with pytest.raises(AssertionError, match="every stage waits"):
        played([good, [good[0], Slot("backward", 1), *good[1:3]]], {"forward": 1.0, "backward": 2.0})


costs = st.floats(0.1, 10.0)


@given(stages=st.integers(1, 5), parts=st.integers(1, 6), forward=costs, backward=costs)
def test_the_bubble_of_equal_stages_does_not_depend_on_the_costs(
    stages: int, parts: int, forward: float, backward: float
) -> None:
    marks = played([gpipe(parts)] * stages, {"forward": forward, "backward": backward})
    assert bubble(marks) == pytest.approx(bubble_formula(stages, parts), abs=1e-9)


@given(
    pieces=st.lists(st.tuples(st.floats(0.0, 5.0), st.floats(0.1, 5.0), st.sampled_from(COMPUTE)), min_size=1),
    offset=st.floats(-1e3, 1e3),
)
def test_idle_time_is_what_no_pass_covers(pieces: list[tuple[float, float, str]], offset: float) -> None:
    made: list[Mark] = []
    at = offset
    for gap, length, what in pieces:
        made.append(Mark(what, at + gap, at + gap + length, 0))
        at += gap + length
    window = sum(gap + length for gap, length, _ in pieces) - pieces[0][0]
    busy = sum(length for _, length, _ in pieces)
    assert bubble([made]) == pytest.approx(1 - busy / window, abs=1e-6)
    # Another host's clock has another zero; what is no pass does not count.
    late = [mark._replace(start_s=mark.start_s + 99, stop_s=mark.stop_s + 99) for mark in made]
    other = [Mark("wait", offset - 9, offset), *made, Mark("update", at, at + 9)]
    assert bubble([other, late]) == pytest.approx(1 - busy / window, abs=1e-6)


def test_a_rank_without_a_pass_has_no_bubble() -> None:
    pass_ = Mark("forward", 0.0, 1.0, 0)
    for marks in ([], [[pass_], []], [[pass_], [Mark("update", 0.0, 1.0)]]):
        with pytest.raises(ValueError, match="needs a forward or backward pass of every rank"):
            bubble(marks)


def test_what_lies_between_two_pieces_is_waiting() -> None:
    pieces = [Mark("forward", 1.0, 2.0, 0), Mark("backward", 2.0, 3.0, 0), Mark("update", 5.0, 6.0)]
    found = with_waits(0.5, pieces)
    assert [(mark.what, mark.start_s, mark.stop_s) for mark in found] == [
        ("wait", 0.5, 1.0),
        ("forward", 1.0, 2.0),
        ("backward", 2.0, 3.0),
        ("wait", 3.0, 5.0),
        ("update", 5.0, 6.0),
    ]
