"""A search that is cut off: finished trials count, half a line does not, and nobody else's trials do."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="no torch installed")

from archbench.models.largest_batch._journal import FORGOTTEN_S, RUN_FILE, Journal, folder, sources
from archbench.models.largest_batch._trials import Trial

FITS, FULL = Trial(16, True, 1 << 30), Trial(32, False, reason="rank 1 ended with 1: can't allocate memory")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(RUN_FILE, raising=False)


def test_trials_are_known_to_the_next_one_by_seed_and_batch() -> None:
    first = Journal("ddp")
    first.add(0, FITS)
    first.add(1, FULL)
    again = Journal("ddp")
    assert (again.known(0, 16), again.known(1, 32)) == (FITS, FULL)
    assert again.known(1, 16) is None
    again.remove()
    assert Journal("ddp").known(0, 16) is None


@pytest.mark.parametrize("kept", [1, 20, -2, -1])
def test_half_a_line_is_cut_off_and_the_next_trial_is_whole(kept: int) -> None:
    journal = Journal("ddp")
    journal.add(0, FITS)
    whole = journal.path.stat().st_size
    journal.add(0, FULL)
    second = journal.path.stat().st_size - whole
    os.truncate(journal.path, whole + kept % second)
    mended = Journal("ddp")
    assert (mended.known(0, 16), mended.known(0, 32)) == (FITS, None)
    mended.add(0, FULL)
    assert Journal("ddp").known(0, 32) == FULL


def test_trials_of_another_key_or_another_run_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    Journal("ddp").add(0, FITS)
    assert Journal("fsdp").known(0, 16) is None
    monkeypatch.setenv(RUN_FILE, "/runs/1/cells.jsonl")
    assert Journal("ddp").known(0, 16) is None
    Journal("ddp").add(0, FULL)
    monkeypatch.setenv(RUN_FILE, "/runs/2/cells.jsonl")
    assert Journal("ddp").known(0, 32) is None


def test_what_nobody_went_on_with_is_removed_after_a_day() -> None:
    old, new = Journal("ddp"), Journal("fsdp")
    old.add(0, FITS)
    new.add(0, FITS)
    then = time.time() - FORGOTTEN_S - 60
    os.utime(old.path, (then, then))
    assert Journal("ddp").known(0, 16) is None
    assert list(folder().iterdir()) == [new.path]


def test_the_hash_of_sources_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x")
    first = sources(tmp_path)
    (tmp_path / "a.py").write_text("y")
    second = sources(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, sources(tmp_path)}) == 3
