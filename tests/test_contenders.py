"""The generic test: every contender of every track at every test case, on this host's CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from archbench.discovery import contender_modules, load_contender, load_track, track_modules
from archbench.harness.measure import Refused, availability, check_cell
from archbench.track import Place

PLACE = Place("cpu", cores=2, memory_bytes=4 << 30)
EVERY = [(track, contender) for track in track_modules() for contender in contender_modules(track)]


@pytest.fixture
def torch_as_it_was() -> Iterator[None]:
    torch = pytest.importorskip("torch", reason="no torch installed")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.compiler.reset()


@pytest.mark.parametrize(("track", "contender"), EVERY, ids=["/".join(pair) for pair in EVERY])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch's compiler, not ours
def test_a_contender_is_right_at_every_test_case(track: str, contender: str, torch_as_it_was: None) -> None:
    loaded = load_contender(track, contender)
    status, reason = availability(loaded, PLACE)
    if status == "unsupported":
        pytest.skip(f"{contender}: {reason}")
    assert status == "ok", reason
    assert loaded.note.summary, "the module's docstring is what the board says about it"
    asked: Any = load_track(track)
    verdicts = {case.slug: ask(asked, case, contender) for case in asked.test_cases}
    wrong = {slug: v for slug, v in verdicts.items() if isinstance(v, Refused) and v.status != "unsupported"}
    assert wrong == {}
    answered = [v for v in verdicts.values() if not isinstance(v, Refused)]
    assert answered, f"no test case was answered: {verdicts}"
    assert max(answered) < 0.1


def ask(track: Any, case: Any, contender: str) -> float | Refused:
    """The relative error at a case, or why there is none."""
    try:
        return check_cell(track, case, contender, PLACE, seed=1)
    except Refused as refused:
        return refused


@pytest.mark.parametrize("track", list(track_modules()))
def test_a_track_is_well_formed(track: str) -> None:
    asked: Any = load_track(track)
    assert asked.question.endswith("?")
    assert asked.baseline in contender_modules(track)
    for cases in (asked.test_cases, asked.bench_cases):
        slugs = [case.slug for case in cases]
        assert slugs
        assert len(set(slugs)) == len(slugs)
        assert all(asked.case(slug) in cases for slug in slugs)
