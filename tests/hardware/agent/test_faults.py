"""The agent under fire, the short version; ``nox -s agent_faults`` is the long one.

A kill in each part of its life, two agents at once, and a clock that was moved back a day: no row is lost, none comes
twice, both repositories are sound, and the next look goes on.
"""

from __future__ import annotations

import shutil
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from agent_faults import clock, kills, two_agents

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="what a killed agent started is found by Linux's means"),
    pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen, which signs deliveries"),
]


def test_killed_at_random_points_it_loses_nothing(tmp_path: Path) -> None:
    what, problems = kills(tmp_path, Namespace(kills=3, seed=7, install=False))
    assert not problems, what


def test_of_two_agents_one_works_and_the_other_says_so(tmp_path: Path) -> None:
    what, problems = two_agents(tmp_path, Namespace(pairs=1))
    assert not problems, what


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, for a clock that is wrong")
def test_a_clock_that_is_moved_back_costs_nothing(tmp_path: Path) -> None:
    what, problems = clock(tmp_path, Namespace(midrun=False))
    assert not problems, what
